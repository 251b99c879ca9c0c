"""Latencies of the recent past in buckets that add up over processes.

Bounds grow by an eighth, so a quantile read from the buckets is at most 6.5 % off. Counted per second, summed over a
window; it knows nothing of arms or files.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

__all__ = ["EDGES", "Recent", "quantile"]

# Seconds: 0.1 ms to about 100 s.
EDGES: npt.NDArray[np.float64] = (1e-4 * 1.125 ** np.arange(118)).astype(np.float64)

_BOUNDS: list[float] = EDGES.tolist()


def quantile(counts: Sequence[int] | npt.NDArray[np.int64], q: float) -> float | None:
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


@dataclass
class _Second:
    at: int
    counts: list[int] = field(default_factory=lambda: [0] * (len(EDGES) + 1))
    errors: int = 0
    late: int = 0


class Recent:
    """Answers, errors and missed deadlines of the last `seconds`."""

    def __init__(self, seconds: int = 60) -> None:
        self.seconds = seconds
        self._slots: deque[_Second] = deque()

    def observe(self, now: float, seconds: float) -> None:
        """An answer that took `seconds`; `now` is monotonic."""
        self._slot(now).counts[bisect_left(_BOUNDS, seconds)] += 1

    def error(self, now: float) -> None:
        """A request that failed by our fault or for want of capacity."""
        self._slot(now).errors += 1

    def deadline_missed(self, now: float) -> None:
        self._slot(now).late += 1

    def counts(self, now: float) -> npt.NDArray[np.int64]:
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

    def _slot(self, now: float) -> _Second:
        second = int(now)
        if not self._slots or self._slots[-1].at != second:
            self._slots.append(_Second(second))
            self._expire(now)
        return self._slots[-1]

    def _expire(self, now: float) -> None:
        while self._slots and self._slots[0].at <= int(now) - self.seconds:
            self._slots.popleft()
