"""Moments of columns of block sums: what the mean and the variance of any weighted sum of the columns follow from.

Blocks that follow each other are alike: a busy hour, a visit of one user, a swing over the day. The variance of single
blocks is then too small for a mean of them. Batch means (Conway 1963; Flegal and Jones 2010, "Batch means and spectral
variance estimators in Markov chain Monte Carlo") take it from sums over L blocks in a row instead: L times the variance of
their means, for L = 1, 2, 4, ... while enough batches are left. The largest of them is used.
"""

from __future__ import annotations

from typing import Self

import numpy as np

from pipeline.arrays import F64

__all__ = ["LEAST_BATCHES", "Moments"]

LEAST_BATCHES = 20
"""Fewest batches that a variance is taken from."""


class Moments:
    """Moments of lines of `columns` values, which are added in the order of time.

    Attributes:
        count: number of lines.
        sums: of the columns, float64 `[columns]`.
    """

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._levels = [_Level(columns)]
        self._waiting: list[F64] = []
        self._stacked: tuple[F64, F64, F64, F64] | None = None

    def add(self, lines: F64) -> None:
        """Add lines, float64 `[m, columns]`, that come after all others."""
        pairs = self._levels[0].add(lines)
        if len(pairs):
            self._waiting.append(pairs)
            self._stacked = None

    def copy(self) -> Self:
        """The same moments, to go on by themselves."""
        made = type(self)(self._columns)
        made._levels = [level.copy() for level in self._levels]
        made._waiting = [*self._waiting]
        return made

    @property
    def count(self) -> int:
        return self._levels[0].count

    @property
    def sums(self) -> F64:
        return self._levels[0].sums

    def mean(self, weights: F64) -> float:
        """Mean of the lines' weighted sums; NaN without a line."""
        return float(weights @ self.sums) / self.count if self.count else float("nan")

    def variance(self, weights: F64, *, batched: bool, count: int | None = None) -> float:
        """Variance of a line's weighted sum, for the mean of many lines; 0 below two lines.

        Args:
            weights: of the columns, float64 `[columns]`.
            batched: take the largest of the variances by batches; else lines count as independent.
            count: lines that are meant, where the weighted sum of the others is 0; None: all. Not with `batched`.
        """
        if not batched:
            first = self._levels[0]
            return first.variance(weights, first.count if count is None else count)
        first = self._levels[0]
        if first.count < 2:
            return 0.0
        counts, lengths, sums, squares = self._batches()
        totals = sums @ weights
        found = (squares @ weights @ weights - totals * totals / counts) / ((counts - 1.0) * lengths)
        return max(first.variance(weights, first.count), float(found.max(initial=0.0)))

    def _batches(self) -> tuple[F64, F64, F64, F64]:
        """Counts, lengths, sums and squares of the levels above the first that have enough batches."""
        if self._stacked is None:
            # They are brought up to date when they are asked for: a look at a short window never asks.
            for lines in self._waiting:
                at = 1
                while len(lines):
                    if at == len(self._levels):
                        self._levels.append(_Level(self._columns))
                    lines = self._levels[at].add(lines)
                    at += 1
            self._waiting.clear()
            used = [level for level in self._levels[1:] if level.count >= LEAST_BATCHES]
            counts = np.array([level.count for level in used], np.float64)
            sums = np.array([level.sums for level in used]).reshape(-1, self._columns)
            squares = np.array([level.squares for level in used]).reshape(-1, self._columns, self._columns)
            self._stacked = counts, np.exp2(1.0 + np.arange(len(used))), sums, squares
        return self._stacked

    def information(self, column: int) -> float:
        """How many equal lines a column's sum is worth: `(sum y)^2 / sum y^2`; 0 without any."""
        first = self._levels[0]
        squares = float(first.squares[column, column])
        return float(first.sums[column]) ** 2 / squares if squares > 0 else 0.0


class _Level:
    """Sums and products of columns over batches of one length; `left` is the line that waits for the one after it."""

    __slots__ = ("count", "left", "squares", "sums")

    def __init__(self, columns: int) -> None:
        self.count = 0
        self.sums: F64 = np.zeros(columns)
        self.squares: F64 = np.zeros((columns, columns))
        self.left: F64 = np.zeros((0, columns))

    def add(self, lines: F64) -> F64:
        """Add lines; returns the sums of pairs that are complete now."""
        self.count += len(lines)
        self.sums = self.sums + lines.sum(axis=0)
        self.squares = self.squares + lines.T @ lines
        if len(self.left):
            lines = np.concatenate([self.left, lines])
        pairs = len(lines) // 2
        self.left = lines[2 * pairs :]
        return lines[0 : 2 * pairs : 2] + lines[1 : 2 * pairs : 2]

    def copy(self) -> _Level:
        made = _Level(0)
        made.count, made.sums, made.squares, made.left = self.count, self.sums, self.squares, self.left
        return made

    def variance(self, weights: F64, count: int) -> float:
        if count < 2:
            return 0.0
        total = float(weights @ self.sums)
        return max((float(weights @ self.squares @ weights) - total * total / count) / (count - 1), 0.0)
