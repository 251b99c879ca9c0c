"""Histograms of a request's path: totals in Prometheus' form, and latencies of the last minute that add up over lanes.

An observation costs a fraction of a microsecond; `prometheus_client`'s own histogram takes a lock and looks a label up
for each, of which a request makes half a dozen. One thread counts; another may read at the same time and finds figures
at most one observation apart.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from prometheus_client.samples import Exemplar

from pipeline.arrays import F64, I64
from serving.runtime.status import RecentTotals

__all__ = ["EDGES", "Histogram", "Recent", "added", "quantile"]

EDGES: F64 = (1e-4 * 1.125 ** np.arange(118)).astype(np.float64)
"""Bounds in seconds of the buckets of latencies, 0.1 ms to about 100 s. They grow by an eighth, so a quantile is at most
6.5 % off."""
_BOUNDS: list[float] = EDGES.tolist()


class Histogram:
    """Values by bucket. For one writing thread.

    Args:
        bounds: upper bounds, rising; one more bucket holds what lies above.
        now: Unix seconds, of exemplars.

    >>> seconds = Histogram((0.1, 1.0))
    >>> for value in (0.05, 0.1, 0.5, 7.0):
    ...     seconds.observe(value)
    >>> seconds.buckets(), seconds.total
    ([('0.1', 2), ('1.0', 3), ('+Inf', 4)], 7.65)
    """

    __slots__ = ("_exemplars", "_now", "bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float], now: Callable[[], float] = time.time) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        self._exemplars: dict[int, Exemplar] = {}
        self._now = now

    def observe(self, value: float, trace_id: str = "", count: int = 1) -> None:
        """One more value, or several alike; one that equals a bound lies below it. The last with a trace id is its
        bucket's exemplar."""
        bucket = bisect_left(self.bounds, value)
        self.counts[bucket] += count
        self.total += count * value
        if trace_id:
            self._exemplars[bucket] = Exemplar({"trace_id": trace_id}, value, self._now())

    def buckets(self) -> list[tuple[str, float] | tuple[str, float, Exemplar]]:
        """Upper bound as text, how many values are not above it, and where there is one the bucket's exemplar."""
        found: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
        running = 0
        for bucket, (bound, count) in enumerate(zip((*self.bounds, None), list(self.counts), strict=True)):
            running += count
            name = "+Inf" if bound is None else repr(float(bound))
            exemplar = self._exemplars.get(bucket)
            found.append((name, running) if exemplar is None else (name, running, exemplar))
        return found


def quantile(counts: Sequence[int] | I64, q: float) -> float | None:
    """The q-quantile in seconds of counts per bucket of `EDGES` (one more bucket above the last edge); None of nothing.

    >>> quantile([0, 4] + [0] * 117, 0.5)
    0.00010606601717798213
    """
    totals = np.cumsum(counts)
    if not len(totals) or totals[-1] == 0:
        return None
    bucket = int(np.searchsorted(totals, q * totals[-1], side="left"))
    if bucket == 0:
        return float(EDGES[0])
    if bucket >= len(EDGES):
        return float(EDGES[-1])
    return float(np.sqrt(EDGES[bucket - 1] * EDGES[bucket]))


def added(windows: Iterable[RecentTotals]) -> RecentTotals:
    """One arm's recent totals over several lanes; `seconds` of the longest window."""
    windows = list(windows)
    counts = np.zeros(len(EDGES) + 1, np.int64)
    for window in windows:
        for bucket, count in window.counts.items():
            counts[min(max(bucket, 0), len(EDGES))] += count  # another version may have other buckets
    return _totals(
        counts,
        max((window.seconds for window in windows), default=0.0),
        sum(window.errors for window in windows),
        sum(window.deadline_misses for window in windows),
        sum(window.degraded for window in windows),
    )


def _totals(counts: I64, seconds: float, errors: int, deadline_misses: int, degraded: int) -> RecentTotals:
    p50_s, p99_s = quantile(counts, 0.5), quantile(counts, 0.99)
    return RecentTotals(
        seconds=seconds,
        requests=int(counts.sum()),
        errors=errors,
        deadline_misses=deadline_misses,
        degraded=degraded,
        p50_ms=None if p50_s is None else 1000 * p50_s,
        p99_ms=None if p99_s is None else 1000 * p99_s,
        counts={bucket: int(count) for bucket, count in enumerate(counts) if count},
    )


@dataclass
class _Second:
    at: int
    counts: list[int] = field(default_factory=lambda: [0] * (len(EDGES) + 1))
    errors: int = 0
    late: int = 0
    degraded: int = 0


class Recent:
    """Latencies by bucket of `EDGES`, errors, missed deadlines and degraded answers of the last `seconds`, counted by the
    second."""

    def __init__(self, seconds: int = 60) -> None:
        self.seconds = seconds
        self._slots: deque[_Second] = deque()
        self._what: object = None
        self._began: float | None = None

    def begin(self, now: float, what: object) -> None:
        """The window begins anew where it is of something else than before, for example of another version."""
        if self._began is None or what != self._what:
            self._slots.clear()
            self._what, self._began = what, now

    def observe(self, now: float, seconds: float) -> None:
        """An answer that took `seconds`; `now` is monotonic."""
        self._slot(now).counts[bisect_left(_BOUNDS, seconds)] += 1

    def error(self, now: float) -> None:
        """A request that failed by a fault of the lane or for lack of capacity."""
        self._slot(now).errors += 1

    def deadline_missed(self, now: float) -> None:
        """A request that was not answered in time."""
        self._slot(now).late += 1

    def degraded(self, now: float) -> None:
        """An answer that lacks rows of a tier; it was observed, too."""
        self._slot(now).degraded += 1

    def counts(self, now: float) -> I64:
        """Answers per bucket within the window."""
        self._expire(now)
        total = np.zeros(len(EDGES) + 1, np.int64)
        for slot in self._slots:
            total += np.array(slot.counts, np.int64)
        return total

    def failures(self, now: float) -> tuple[int, int]:
        """Errors and missed deadlines within the window."""
        self._expire(now)
        return sum(s.errors for s in self._slots), sum(s.late for s in self._slots)

    def totals(self, now: float) -> RecentTotals:
        """All of it, for the status file."""
        counts = self.counts(now)
        seconds = self.seconds if self._began is None else min(self.seconds, max(1.0, now - self._began))
        return _totals(counts, seconds, *self.failures(now), sum(slot.degraded for slot in self._slots))

    def _slot(self, now: float) -> _Second:
        second = int(now)
        if not self._slots or self._slots[-1].at != second:
            self._slots.append(_Second(second))
            self._expire(now)
        return self._slots[-1]

    def _expire(self, now: float) -> None:
        while self._slots and self._slots[0].at <= int(now) - self.seconds:
            self._slots.popleft()
