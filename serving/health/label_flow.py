"""Flow of labels by endpoint: how many requests an endpoint usually has between two labels, and how many since the last one.

Whether labels are missing is a question of requests, not of minutes: at night with ten requests a minute the next label may
be an hour away, and at noon a minute without one is far too long. So labels count as missing where an endpoint has answered
many times as many requests as it usually does from one label to the next. Requests that are younger than labels usually take
do not count yet.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Mapping

from serving.runtime.status import LABEL_EDGES_S, LabelArrivals, LabelFlow, Statuses

__all__ = ["LabelFlows", "missing"]

MISSING_GAPS_COUNT = 20.0
"""Labels that should have come by now, from which on their silence is no chance: e^-20 by the law of rare events."""
_SETTLED_GAPS_COUNT = 5
_NEW_FRACTION = 0.1
_DELAY_FRACTION = 0.9
_PAST_EVERY_MS = 20_000
_PAST_ENTRIES = 24 * 180
"""A day of the requests by time, which is the longest delay of labels that is taken into account."""


def missing(flow: LabelFlow) -> bool:
    """Whether labels are missing: they came before, and by their usual pace many should have come since."""
    return flow.gaps >= _SETTLED_GAPS_COUNT and flow.due_requests > MISSING_GAPS_COUNT * max(1.0, flow.mean_gap)


class _Requests:
    """Requests of an endpoint since this process began, and by time."""

    def __init__(self) -> None:
        self.total = 0
        self._past: deque[tuple[int, int]] = deque(maxlen=_PAST_ENTRIES)

    def add(self, answered: int, now_ms: int) -> None:
        self.total += answered
        if not self._past or not 0 <= now_ms - self._past[-1][0] < _PAST_EVERY_MS:
            self._past.append((now_ms, self.total))

    def by(self, time_ms: int) -> int:
        """Requests by a time; 0 where that is before all that is known."""
        at = bisect_right(self._past, time_ms, key=lambda entry: entry[0])
        return self._past[at - 1][1] if at else 0


class _Kind:
    """Exposures or outcomes of an endpoint."""

    def __init__(self, known: LabelFlow) -> None:
        self.gaps, self.mean_gap, self.last_ms, self.delay_s = known.gaps, known.mean_gap, known.last_ms, known.delay_s
        self._at_last = -known.due_requests  # requests of before this process

    def take(self, arrivals: list[LabelArrivals], requests: _Requests, now_ms: int) -> LabelFlow:
        """Take in what the lanes say now."""
        counts: Counter[int] = Counter()
        for arrived in arrivals:
            counts.update(arrived.counts)
        if counts:
            self.delay_s = _quantile(counts, _DELAY_FRACTION)
        last_ms = max((arrived.last_ms for arrived in arrivals), default=0)
        if last_ms > self.last_ms:
            if self.last_ms and self._at_last >= 0:  # neither before the first one, nor over a restart
                self.gaps += 1
                fraction = max(_NEW_FRACTION, 1 / self.gaps)
                self.mean_gap += fraction * (requests.total - self._at_last - self.mean_gap)
            self.last_ms, self._at_last = last_ms, requests.total
        due = max(0, requests.by(now_ms - round(1000 * self.delay_s)) - self._at_last)
        return LabelFlow(
            gaps=self.gaps, mean_gap=self.mean_gap, due_requests=due, last_ms=self.last_ms, delay_s=self.delay_s
        )


class LabelFlows:
    """Follows the labels of every endpoint by what the lanes report. One thread calls it.

    Args:
        known: what the process before this one had found, by endpoint and kind.
    """

    def __init__(self, known: Mapping[str, Mapping[str, LabelFlow]]) -> None:
        self._requests: dict[str, _Requests] = {}
        self._kinds = {(name, kind): _Kind(flow) for name, kinds in known.items() for kind, flow in kinds.items()}
        self._before: dict[tuple[str, int, str], int] = {}

    def step(self, statuses: Statuses, now_ms: int) -> dict[str, dict[str, LabelFlow]]:
        """Take in what the lanes report now; every few seconds. Returns the flows by endpoint and kind: `shown`, `labelled`."""
        lanes = statuses.fresh().lanes
        answered = self._answered(statuses)
        flows: dict[str, dict[str, LabelFlow]] = {}
        labels = [lane.status.labels for lane in lanes.values()]
        for endpoint in {*answered, *(name for by_name in labels for name in by_name)}:
            requests = self._requests.setdefault(endpoint, _Requests())
            requests.add(answered[endpoint], now_ms)
            found = [by_name[endpoint] for by_name in labels if endpoint in by_name]
            for kind, arrivals in (("shown", [f.shown for f in found]), ("labelled", [f.labelled for f in found])):
                known = self._kinds.setdefault((endpoint, kind), _Kind(LabelFlow()))
                flows.setdefault(endpoint, {})[kind] = known.take(arrivals, requests, now_ms)
        return flows

    def _answered(self, statuses: Statuses) -> Counter[str]:
        """Requests by endpoint since the last step. What lanes had answered before the first one is not known to be new."""
        answered: Counter[str] = Counter()
        totals: dict[tuple[str, int, str], int] = {}
        for name, lane in statuses.lanes.items():
            for endpoint, arms in lane.status.endpoints.items():
                key = name, lane.status.pid, endpoint
                totals[key] = sum(arm.requests for arm in arms.values())
                before = self._before.get(key, 0 if self._before else totals[key])
                answered[endpoint] += max(0, totals[key] - before)
        self._before = totals
        return answered


def _quantile(counts: Counter[int], fraction: float) -> float:
    """Upper bound in seconds of the bucket that holds a fraction of the entries."""
    left = fraction * sum(counts.values())
    for bucket in sorted(counts):
        left -= counts[bucket]
        if left <= 0:
            return LABEL_EDGES_S[min(bucket, len(LABEL_EDGES_S) - 1)]
    return 0.0
