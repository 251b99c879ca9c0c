"""Intake of labels as one lane sees it: what came for which endpoint, how long after its prediction, and what was refused.

Counts go to the metrics, and the last hour to the status, from which a rollout tells why it gets no labels. It knows the
replies of the traffic log alone. Read next: `serving.rollout.label_path` judges it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.clock import Clock
from pipeline.errors import BatonError
from pipeline.traffic.log import ACCEPTED, EXPIRED, INVALID, FeedbackEntry, FeedbackReply
from serving.runtime.status import LABEL_EDGES_S, LabelArrivals, LabelStatus
from serving.telemetry import Telemetry
from serving.wire.errors import code_of

__all__ = ["LabelIntake"]

RECENT_S = 3600.0
MOST_ENTRIES = 1024
"""Entries that are remembered of an endpoint and a kind: the newest."""


@dataclass(slots=True)
class _Arrivals:
    """The last entries of one kind: when each came (monotonic), bucket of its delay, and whether it was late."""

    entries: deque[tuple[float, int, bool]] = field(default_factory=lambda: deque(maxlen=MOST_ENTRIES))
    last_ms: int = 0

    def add(self, now: float, now_ms: int, delay_ms: int, late: bool) -> None:
        self.entries.append((now, bisect_left(LABEL_EDGES_S, delay_ms / 1000), late))
        self.last_ms = now_ms

    def told(self, now: float) -> LabelArrivals:
        recent = [entry for entry in list(self.entries) if entry[0] > now - RECENT_S]
        counts = Counter(bucket for _, bucket, _ in recent)
        late = sum(late for _, _, late in recent)
        return LabelArrivals(entries=len(recent), late=late, counts=dict(counts), last_ms=self.last_ms)


@dataclass(slots=True)
class _Endpoint:
    shown: _Arrivals = field(default_factory=_Arrivals)
    labelled: _Arrivals = field(default_factory=_Arrivals)
    told_ms: int = 0


class LabelIntake:
    """Counts of one lane. One thread counts; any may read the status."""

    def __init__(self, clock: Clock, telemetry: Telemetry) -> None:
        self._clock = clock
        self._telemetry = telemetry
        self._endpoints: dict[str, _Endpoint] = {}
        self._refused: deque[float] = deque(maxlen=MOST_ENTRIES)

    def replied(
        self,
        entries: Sequence[FeedbackEntry],
        replies: Sequence[FeedbackReply],
        endpoints: Collection[str],
        caller: str = "",
    ) -> None:
        """Count feedback with the log's replies.

        Args:
            endpoints: that there are; what names another one is counted as of an unknown one.
            caller: who sent it, "" where nobody knows.
        """
        now, now_ms = self._clock.monotonic(), self._clock.wall_ms()
        for entry, reply in zip(entries, replies, strict=True):
            named = reply.endpoint or entry.endpoint
            endpoint = named if named in endpoints else ""
            self._telemetry.feedback(endpoint, "exposure", reply.exposed)
            self._telemetry.feedback(endpoint, "outcome", reply.outcomes)
            if entry.exposed_all:
                self._telemetry.feedback(endpoint, "exposed_all", (INVALID if reply.reason else ACCEPTED,))
            statuses = (*reply.exposed, *reply.outcomes)
            for status in statuses:
                if status != ACCEPTED:
                    self._telemetry.caller_failed(caller, "label", status)
            if INVALID in statuses or EXPIRED in statuses:
                self._refused.append(now)
            if endpoint:  # what waits for its prediction has no delay yet, and has come all the same
                self._arrived(endpoint, entry, reply, reply.delay_ms or 0, now, now_ms)

    def failed(self, error: BatonError, caller: str = "") -> None:
        """Count feedback of which nothing could be taken."""
        self._telemetry.caller_failed(caller, "label", code_of(error))

    def predicted(self, endpoint: str) -> None:
        """Predictions that other servers answered were told."""
        self._of(endpoint).told_ms = self._clock.wall_ms()

    def status(self) -> Mapping[str, LabelStatus]:
        """By endpoint, for the status file."""
        now = self._clock.monotonic()
        refused = sum(at > now - RECENT_S for at in list(self._refused))
        return {
            name: LabelStatus(
                shown=found.shown.told(now), labelled=found.labelled.told(now), told_ms=found.told_ms, refused=refused
            )
            for name, found in list(self._endpoints.items())
        }

    def expect(self, endpoints: Collection[str]) -> None:
        """Have an entry of each endpoint, and forget those that are gone."""
        self._endpoints = {name: self._endpoints.get(name) or _Endpoint() for name in endpoints}

    def _arrived(
        self, endpoint: str, entry: FeedbackEntry, reply: FeedbackReply, delay_ms: int, now: float, now_ms: int
    ) -> None:
        found = self._of(endpoint)
        labels = reply.outcomes.count(ACCEPTED)
        if labels:
            found.labelled.add(now, now_ms, delay_ms, reply.late)
            self._telemetry.labelled(endpoint, delay_ms / 1000, labels, reply.late)
        if ACCEPTED in reply.exposed or (entry.exposed_all and not reply.reason):
            found.shown.add(now, now_ms, delay_ms, reply.late)

    def _of(self, endpoint: str) -> _Endpoint:
        found = self._endpoints.get(endpoint)
        if found is None:
            found = self._endpoints.setdefault(endpoint, _Endpoint())
        return found
