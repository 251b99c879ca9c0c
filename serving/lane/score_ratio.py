"""Sums of both arms' scores over the last seconds, per endpoint, for the rollout guard `score_ratio`: it needs no labels.

The shadow lane adds the rows that it scores. `serving.wiring.observe` reads the sums from its status file.
"""

from __future__ import annotations

import math

import numpy as np

from pipeline.arrays import F64
from serving.runtime.status import ScoreSums

__all__ = ["ScoreRatio"]

_ROWS, _STABLE, _CANDIDATE = range(3)


class ScoreRatio:
    """Ring buffer of sums: one line for each of the last `seconds` whole seconds and each endpoint. Its memory does not
    grow with traffic."""

    def __init__(self, seconds: int = 10) -> None:
        self.seconds = seconds
        self._second = np.full(seconds, -1, np.int64)
        self._lines: dict[str, F64] = {}

    def add(self, now: float, endpoint: str, rows: int, stable: float, candidate: float) -> None:
        """Add rows scored at `now` (monotonic seconds, never going back) and the sums of their scores. Sums that are not
        finite (a record of an earlier release) are left out: they would blind the window."""
        if not math.isfinite(stable + candidate):
            return
        lines = self._lines.get(endpoint)
        if lines is None:
            lines = self._lines[endpoint] = np.zeros((self.seconds, 3))
        line = lines[self._slot(int(now))]
        line[_ROWS] += rows
        line[_STABLE] += stable
        line[_CANDIDATE] += candidate

    def sums(self, now: float) -> dict[str, ScoreSums]:
        """Sums of the window by endpoint; endpoints without rows are left out."""
        recent = self._second > int(now) - self.seconds
        found: dict[str, ScoreSums] = {}
        for endpoint, lines in list(self._lines.items()):
            rows, stable, candidate = lines[recent].sum(axis=0).tolist()
            if rows:
                found[endpoint] = ScoreSums(seconds=self.seconds, rows=round(rows), stable=stable, candidate=candidate)
            else:
                del self._lines[endpoint]
        return found

    def _slot(self, second: int) -> int:
        """The line of a second, emptied for all endpoints when the second begins."""
        slot = second % self.seconds
        if self._second[slot] != second:
            self._second[slot] = second
            for lines in self._lines.values():
                lines[slot] = 0.0
        return slot
