"""Reliability of scores by decile, and stability of a population, from binned counts.

Works on the histograms of `pipeline.metrics.Sums` (one bin is 1/128 of log-odds), so both are merged by addition and
do not need the rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.arrays import F64
from pipeline.metrics import Sums

__all__ = ["Tenth", "calibration_error", "deciles", "score_stability", "stability"]

TENTHS = 10


@dataclass(frozen=True, slots=True)
class Tenth:
    """One tenth of the rows by score, to the width of a bin.

    `mean` is their mean score, `rate` the fraction of clicks among them, `bias` is `mean / rate - 1`, None without a click.
    """

    rows: float
    clicks: float
    mean: float
    rate: float
    bias: float | None


def deciles(sums: Sums) -> list[Tenth]:
    """The rows by rising score in ten parts of about equal size; a tenth that lies within a single bin is left out.

    >>> sums = Sums()
    >>> sums.update(np.array([0, 0, 1, 1]), np.array([0.1, 0.1, 0.8, 0.9]))
    >>> [(t.rows, round(t.mean, 2), t.rate) for t in deciles(sums)]
    [(2.0, 0.1, 0.0), (1.0, 0.8, 1.0), (1.0, 0.9, 1.0)]
    """
    clicks, rows = sums.binned.positives, sums.binned.positives + sums.binned.negatives
    total = float(rows.sum())
    if total <= 0:
        return []
    tenth = _tenths(rows)
    sizes = np.bincount(tenth, rows, TENTHS)
    hits = np.bincount(tenth, clicks, TENTHS)
    predicted = np.bincount(tenth, sums.predicted_in, TENTHS)
    return [
        Tenth(
            rows=float(n),
            clicks=float(y),
            mean=float(p / n),
            rate=float(y / n),
            bias=float(p / y - 1.0) if y > 0 else None,
        )
        for n, y, p in zip(sizes, hits, predicted, strict=True)
        if n > 0
    ]


def calibration_error(sums: Sums) -> float:
    """Expected calibration error: the mean over rows of `|mean score - click rate|` of their tenth; NaN without rows.

    Naeini, Cooper, Hauskrecht 2015, with bins of equal size.
    """
    parts = deciles(sums)
    rows = sum(part.rows for part in parts)
    return sum(part.rows * abs(part.mean - part.rate) for part in parts) / rows if rows else float("nan")


def stability(reference: F64, present: F64) -> float:
    """Population stability index between two histograms of the same bins or values, `[k]` counts each.

    `sum (q - p) ln(q / p)` over parts, half a row added to each so that an empty one is finite. Ordered bins must be
    put into tenths first (`score_stability`). Below 0.1 is read as stable, above 0.25 as another population. NaN without rows.

    >>> round(stability(np.array([50.0, 50.0]), np.array([80.0, 20.0])), 2)
    0.41
    """
    if reference.sum() <= 0 or present.sum() <= 0:
        return float("nan")
    p = (reference + 0.5) / (reference.sum() + 0.5 * len(reference))
    q = (present + 0.5) / (present.sum() + 0.5 * len(present))
    return float(((q - p) * np.log(q / p)).sum())


def score_stability(reference: Sums, present: Sums) -> float:
    """`stability` of the scores: the present rows, counted in the tenths of the reference."""
    before = reference.binned.positives + reference.binned.negatives
    now = present.binned.positives + present.binned.negatives
    if before.sum() <= 0:
        return float("nan")
    tenth = _tenths(before)
    parts: list[F64] = [np.bincount(tenth, counts, TENTHS).astype(np.float64) for counts in (before, now)]
    return stability(*parts)


def _tenths(rows: F64) -> npt.NDArray[np.intp]:
    """Tenth of each bin by the fraction of rows up to its middle, `[bins]` counts -> intp `[bins]`."""
    middle = (np.cumsum(rows) - 0.5 * rows) / rows.sum()
    found: npt.NDArray[np.intp] = np.minimum((TENTHS * middle).astype(np.intp), TENTHS - 1)
    return found
