"""Calibration figures of a model by decile of its scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.arrays import Floats

__all__ = ["Decile", "deciles"]


@dataclass(frozen=True, slots=True)
class Decile:
    """A tenth of the rows by score: their number, their mean score and the fraction of them that was clicked."""

    rows: int
    predicted: float
    observed: float


def deciles(scores: Floats, labels: Floats, parts: int = 10, stands_for: Floats | None = None) -> list[Decile]:
    """Calibration by tenths of the rows in order of their score, lowest first.

    Args:
        scores: probabilities `[n]`.
        labels: 0 or 1, `[n]`.
        parts: how many of about equal size; fewer where there are fewer rows.
        stands_for: rows of the traffic that each row of a sampled log stands for, `[n]`: both means are of these.

    >>> [(d.rows, round(d.predicted, 2), d.observed) for d in deciles(np.array([0.1, 0.3, 0.7, 0.9]), np.array([0, 1, 1, 1]), 2)]
    [(2, 0.2, 0.5), (2, 0.8, 1.0)]
    """
    order = np.argsort(scores, kind="stable")
    counts = np.ones(len(scores)) if stands_for is None else np.asarray(stands_for, np.float64)
    tenths = []
    for part in np.array_split(order, min(parts, max(1, len(order)))):
        if len(part):
            predicted, observed = (float(np.average(values[part], weights=counts[part])) for values in (scores, labels))
            tenths.append(Decile(len(part), predicted, observed))
    return tenths
