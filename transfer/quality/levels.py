"""Counts of rows that stand for others, and the noise of a level that is taken from them.

A row that was recorded with probability 0.1 stands for ten rows of the traffic. `transfer.data.levels` says where that comes
from; this file knows arrays alone. Gate, online calibration and adaptation use it.
"""

from __future__ import annotations

import numpy as np

from pipeline.arrays import F64, Array

__all__ = ["level_variance", "relative"]


def relative(stands_for: Array) -> F64:
    """What rows stand for, float64 `[n]`, 1 in the mean; exactly 1 where all stand for as many.

    >>> relative(np.array([10.0, 10.0])), relative(np.array([1.0, 3.0]))
    (array([1., 1.]), array([0.5, 1.5]))
    """
    counts = np.asarray(stands_for, np.float64)
    if not len(counts) or (counts == counts[0]).all():
        return np.ones(len(counts))
    found: F64 = counts / counts.mean()
    return found


def level_variance(probabilities: F64, labels: Array, counts: F64) -> F64:
    """Part of each row in the variance of `sum(counts * (probability - label))`, float64 `[n]`.

    Args:
        probabilities: `[n]`, of a model that is about right.
        labels: `[n]`.
        counts: as of `relative`.
    """
    if (counts == 1.0).all():
        return probabilities * (1.0 - probabilities)
    # A row that was kept by chance stands for rows that were not: its own error, as often as it counts, is the noise.
    found: F64 = np.square(counts * (probabilities - labels))
    return found
