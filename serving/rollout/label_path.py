"""Path of an endpoint's labels as the lanes see it, and why rows with labels do not come: one reason for each cause.

`serving.wiring.observe` fills it in from the lanes' reports; `reconcile` asks it where labels are missing or old. It knows no
rows: what came, when, and how long after its prediction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from serving.rollout.status.codes import Code
from serving.runtime.status import LABEL_EDGES_S, LabelArrivals, LabelStatus

__all__ = ["Arrived", "LabelPath"]

FEW_ENTRIES = 20
"""Fewer entries say too little about all to be worth a note."""
FEW_REQUESTS = 3
"""Fewer of them within the age that rows may have, and the age says nothing."""
LATE_FRACTION = 0.05
"""Of labels after the window: above this share a rollout says so while it waits for something else."""
MOST_FRACTION = 0.5
"""From this share on they are the reason why rows with labels do not come."""
SILENT_S = 60.0
"""Time without any feedback, beyond its usual delay, after which nobody sends it."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """Feedback of one kind over all lanes, of the last hour.

    Args:
        entries: accepted; late: of them, after the attribution window of their prediction.
        median_s, slow_s: half, and nine of ten, came within so many seconds of their prediction; None without entries.
        last_ms: Unix time of the last one, 0 without.
    """

    entries: int = 0
    late: int = 0
    median_s: float | None = None
    slow_s: float | None = None
    last_ms: int = 0

    @classmethod
    def of(cls, lanes: Collection[LabelArrivals]) -> Arrived:
        """Over all lanes."""
        counts: Counter[int] = Counter()
        for lane in lanes:
            counts.update(lane.counts)
        return cls(
            entries=sum(lane.entries for lane in lanes),
            late=sum(lane.late for lane in lanes),
            median_s=_quantile(counts, 0.5),
            slow_s=_quantile(counts, 0.9),
            last_ms=max((lane.last_ms for lane in lanes), default=0),
        )

    @property
    def late_fraction(self) -> float:
        """Share of late entries; 0 without any."""
        return self.late / self.entries if self.entries else 0.0

    def lateness(self, what: str, window_s: float) -> str:
        """Share, delay and window in words."""
        return (
            f"{what} come late: {self.late_fraction:.0%} of the last {self.entries} came after the attribution window of "
            f"{window_s:g} s (traffic.attribution_window); the delay from the prediction is {_seconds(self.median_s)} for half of "
            f"them and at most {_seconds(self.slow_s)} for nine of ten"
        )


@dataclass(frozen=True, slots=True)
class LabelPath:
    """Path of one endpoint's labels.

    Args:
        known: whether any lane reports; without one nothing can be said.
        requests: answered in the last minute, by both arms and here; told_ms: Unix time when predictions of other servers were
            last told, 0: never.
        shown, labelled: exposures and outcomes that were accepted.
        refused: entries of the last hour that were invalid or too old, of whatever endpoint.
    """

    known: bool = False
    requests: int = 0
    told_ms: int = 0
    shown: Arrived = Arrived()
    labelled: Arrived = Arrived()
    refused: int = 0

    @classmethod
    def of(cls, lanes: Collection[LabelStatus], requests: int) -> LabelPath:
        """From the reports of the lanes."""
        return cls(
            known=bool(lanes),
            requests=requests,
            told_ms=max((lane.told_ms for lane in lanes), default=0),
            shown=Arrived.of([lane.shown for lane in lanes]),
            labelled=Arrived.of([lane.labelled for lane in lanes]),
            refused=sum(lane.refused for lane in lanes),
        )

    def late(self, window_s: float, fraction: float = MOST_FRACTION, least: int = 1) -> str:
        """How labels, or exposures, come after the window; "" where less than a fraction of them does, or fewer are known."""
        for what, arrived in (("labels", self.labelled), ("exposures", self.shown)):
            if arrived.entries >= least and arrived.late_fraction >= fraction:
                return arrived.lateness(what, window_s)
        return ""

    def note(self, window_s: float) -> str:
        """What an operator should know of late labels while rows with labels do come; "" for nothing."""
        return self.late(window_s, LATE_FRACTION, FEW_ENTRIES)

    def why(self, now_ms: int, window_s: float, limit_s: float) -> tuple[Code, str] | None:
        """Code and reason why rows with labels do not come; None where the lanes do not tell.

        Args:
            limit_s: age that the newest rows may have.
        """
        if not self.known:
            return None
        last_ms = max(self.shown.last_ms, self.labelled.last_ms)
        usual_s = max(self.shown.slow_s or 0.0, self.labelled.slow_s or 0.0)
        comes = last_ms and now_ms - last_ms <= 1000 * (SILENT_S + usual_s)
        if comes and (late := self.late(window_s)):
            return Code.LABELS_AFTER_WINDOW, late
        if comes and max(self.requests / 60, self.shown.entries / 3600) * limit_s < FEW_REQUESTS:
            return (
                Code.FEW_REQUESTS,
                f"{self.requests} requests were answered in the last minute, so that rows come seldom",
            )
        if comes:
            return Code.JOIN_BEHIND, (
                f"exposures and labels come, the last {(now_ms - last_ms) / 1000:.0f} s ago, and the join gives out no new rows of them"
            )
        since = "since the lanes began" if not last_ms else f"since {_time(last_ms)}"
        if self.refused:
            return Code.LABELS_REFUSED, (
                f"no exposure and no label was accepted {since}; {self.refused} entries of feedback in the last hour were refused as "
                "invalid or too old"
            )
        if not self.requests and now_ms - self.told_ms > 1000 * (SILENT_S + usual_s):
            return (
                Code.FEW_REQUESTS,
                f"no request was answered in the last minute, and no exposure or label came {since}",
            )
        answered = f"{self.requests} requests were answered in the last minute, and " if self.requests else ""
        return Code.LABELS_NOT_SENT, (
            f"{answered}no exposure and no label came {since}: nobody sends them, or these are test calls, which are never labelled"
        )


def _quantile(counts: Mapping[int, int], q: float) -> float | None:
    total, seen = sum(counts.values()), 0
    for bucket, count in sorted(counts.items()):
        seen += count
        if seen >= q * total > 0:
            return LABEL_EDGES_S[min(max(bucket, 0), len(LABEL_EDGES_S) - 1)]
    return None


def _seconds(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.0f} s" if value >= 10 else f"{value:.1f} s"


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
