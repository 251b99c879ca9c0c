"""History of an endpoint's figures for the charts: bounded, in memory, begun from the stores.

The stores hold the figures at every verdict (audit) and of every stay at a step (phases), not those in between. A
`Track` begins with them and adds a point at each look while the control process runs. When it is full, every second
point is dropped and points are added half as often, so a rollout of weeks and one of minutes take the same memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from serving.admin.answers import AuditEntry, Rollout

__all__ = ["CAPACITY_POINTS", "Series", "Track"]

CAPACITY_POINTS = 240
"""Points of a series; a chart is a few hundred pixels wide."""
EVIDENCE = ("bias", "bias_low", "bias_high", "stable_bias", "bound")
QUALITY = ("auc_stable", "auc_candidate", "logloss_stable", "logloss_candidate")
LATENCY = ("p99_stable", "p99_candidate")

Point = tuple[int, tuple[float | None, ...]]


class Series:
    """Values over time: at most `capacity` points; a full series is thinned and keeps its oldest point.

    >>> series = Series(("a",), capacity=4)
    >>> for second in range(6):
    ...     series.add(1000 * second, (float(second),))
    >>> [time for time, _ in series.points]
    [0, 2000, 4000, 5000]
    """

    def __init__(self, names: Sequence[str], capacity: int = CAPACITY_POINTS) -> None:
        self.names, self._capacity, self._apart = tuple(names), capacity, 0
        self.points: tuple[Point, ...] = ()

    def add(self, time_ms: int, values: Sequence[float | None]) -> None:
        """Add a point. A point that comes too soon replaces the last one; a point older than the last is skipped."""
        points = list(self.points)
        if points and time_ms <= points[-1][0]:
            return
        if len(points) > 1 and points[-1][0] - points[-2][0] < self._apart:
            points.pop()
        points.append((time_ms, tuple(values)))
        if len(points) > self._capacity:
            self._apart = 2 * max(self._apart, (points[-1][0] - points[0][0]) // (len(points) - 1))
            points = points[::2] if len(points) % 2 else [*points[::2], points[-1]]
        self.points = tuple(points)

    def column(self, name: str, factor: float = 1.0, digits: int = 4) -> list[list[float | None]]:
        """`[time, value]` of each point, rounded."""
        at = self.names.index(name)
        return [
            [time, None if values[at] is None else round(factor * values[at], digits)]  # type: ignore[operator]
            for time, values in self.points
        ]


class Track:
    """The series of one rollout."""

    def __init__(self, rollout: str) -> None:
        self.rollout = rollout
        self.evidence, self.quality, self.latency = Series(EVIDENCE), Series(QUALITY), Series(LATENCY)
        self._looked_ms: int | None = None

    def begin(self, rollout: Rollout, audit: Sequence[AuditEntry]) -> None:
        """Add the points before this process from the stores."""
        for entry in audit:
            if entry.rollout == rollout.id and "bias_low" in entry.evidence:
                step = int(entry.before.get("state", {}).get("step", 0))
                self._evidence(entry.time_ms, entry.evidence, _bound(rollout, step))
        for phase, following in zip(rollout.phases, rollout.phases[1:], strict=False):
            self._quality(following["entered_ms"], phase)

    def look(self, rollout: Rollout, p99: Mapping[str, float | None], now_ms: int) -> None:
        """Add the present figures if a look was made since the last point."""
        if rollout.next_look_ms == self._looked_ms:
            return
        self._looked_ms = rollout.next_look_ms
        self._evidence(now_ms, rollout.evidence, _bound(rollout, rollout.step))
        if rollout.phases:
            self._quality(now_ms, rollout.phases[-1])
        self.latency.add(now_ms, (p99.get("stable"), p99.get("candidate")))

    def _evidence(self, time_ms: int, seen: Mapping[str, Any], bound: float | None) -> None:
        if seen.get("bias") is not None:
            self.evidence.add(time_ms, (*(seen.get(name) for name in EVIDENCE[:-1]), bound))

    def _quality(self, time_ms: int, phase: Mapping[str, Any]) -> None:
        figures = [phase[metric][arm] for metric in ("auc", "logloss") for arm in ("stable", "candidate")]
        if any(value is not None for value in figures):
            self.quality.add(time_ms, figures)


def _bound(rollout: Rollout, step: int) -> float | None:
    """Bias bound of the next step; at the last step, of that one."""
    return rollout.steps[min(step + 1, len(rollout.steps) - 1)].bias_below
