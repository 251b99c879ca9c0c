"""Sums of both arms' scores over the last seconds, per endpoint, for the rollout guard `score_ratio`: it needs no labels.

The shadow lane adds the rows that it scores. `serving.wiring.observe` reads the sums from its status file.
"""

from __future__ import annotations

import math

import numpy as np

from pipeline.arrays import F64
from serving.runtime.status import ScoreSums

__all__ = ["ScoreRatio"]

_ROWS, _WEIGHT, _STABLE, _CANDIDATE, _PREDICTIONS, _DEGRADED = range(6)

Versions = tuple[str, str]
"""Of stable and of the candidate."""


class ScoreRatio:
    """Ring buffer of sums: one line for each of the last `seconds` whole seconds and each endpoint. Its memory does not
    grow with traffic. The window of an endpoint begins anew with another version of an arm."""

    def __init__(self, seconds: int = 10) -> None:
        self.seconds = seconds
        self._second = np.full(seconds, -1, np.int64)
        self._lines: dict[str, F64] = {}
        self._versions: dict[str, Versions] = {}
        self._began: dict[str, float] = {}

    def add(
        self,
        now: float,
        endpoint: str,
        rows: int,
        stable: float,
        candidate: float,
        versions: Versions = ("", ""),
        weight: float = 0.0,
        *,
        degraded: bool = False,
    ) -> None:
        """Add rows scored at `now` (monotonic seconds, never going back) and the sums of their scores. Sums that are not
        finite (a record of an earlier release) are left out: they would blind the window.

        Args:
            versions: that scored them; weight: rows of the traffic that they stand for, 0: as many.
            degraded: whether the arm that did not answer was scored with default rows in place of a tier's.
        """
        if not math.isfinite(stable + candidate):
            return
        before = self._versions.get(endpoint)
        if before != versions:
            self._versions[endpoint] = versions
            self._began[endpoint] = -math.inf if before is None else now
            self._lines.pop(endpoint, None)
        lines = self._lines.get(endpoint)
        if lines is None:
            lines = self._lines[endpoint] = np.zeros((self.seconds, 6))
        line = lines[self._slot(int(now))]
        line[_ROWS] += rows
        line[_WEIGHT] += weight or rows
        line[_STABLE] += stable
        line[_CANDIDATE] += candidate
        line[_PREDICTIONS] += 1
        line[_DEGRADED] += degraded

    def sums(self, now: float) -> dict[str, ScoreSums]:
        """Sums of the window by endpoint; endpoints without rows are left out."""
        recent = self._second > int(now) - self.seconds
        found: dict[str, ScoreSums] = {}
        for endpoint, lines in list(self._lines.items()):
            rows, weight, stable, candidate, predictions, degraded = lines[recent].sum(axis=0).tolist()
            if rows:
                versions = self._versions[endpoint]
                found[endpoint] = ScoreSums(
                    seconds=min(self.seconds, max(1.0, now - self._began[endpoint])),
                    rows=round(rows),
                    stable=stable,
                    candidate=candidate,
                    weight=weight,
                    predictions=round(predictions),
                    degraded=round(degraded),
                    stable_version=versions[0],
                    candidate_version=versions[1],
                )
            else:
                del self._lines[endpoint], self._versions[endpoint], self._began[endpoint]
        return found

    def _slot(self, second: int) -> int:
        """The line of a second, emptied for all endpoints when the second begins."""
        slot = second % self.seconds
        if self._second[slot] != second:
            self._second[slot] = second
            for lines in self._lines.values():
                lines[slot] = 0.0
        return slot
