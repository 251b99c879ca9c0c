"""Calibration: logits to probabilities, in one pass and double precision."""

from __future__ import annotations

import math

import numpy as np
from numba import float32, float64

from pipeline.arrays import F32, F64, Floats
from pipeline.compiled import njit

__all__ = ["probabilities", "sigmoid"]


@njit(float32[::1](float32[::1], float64, float64), nogil=True, cache=True)
def probabilities(logits: F32, alpha: float, beta: float) -> F32:
    """`1 / (1 + exp(-(alpha * logit + beta)))`, float32 `[n]` of float32 `[n]`; NaN stays NaN.

    >>> probabilities(np.array([0.0, 1000.0, -1000.0], np.float32), 1.0, 0.0).tolist()
    [0.5, 1.0, 0.0]
    """
    scores = np.empty_like(logits)
    for i in range(len(logits)):
        scores[i] = 1.0 / (1.0 + math.exp(-(alpha * logits[i] + beta)))
    return scores


def sigmoid(logits: Floats | float) -> F64:
    """`1 / (1 + exp(-logit))`, float64 of any shape; no overflow, NaN stays NaN.

    >>> sigmoid(np.array([0.0, 1000.0, -1000.0])).tolist()
    [0.5, 1.0, 0.0]
    """
    with np.errstate(over="ignore"):  # a probability of 0 then, as it should be
        found: F64 = 1.0 / (1.0 + np.exp(-np.asarray(logits, np.float64)))
    return found
