"""Calibration: `score = sigmoid(alpha * logit + beta)`, fitted on labels later than the trained ones.

It knows arrays only. `transfer.offline.train` and `transfer.offline.distill` hold the rows out.
"""

from __future__ import annotations

import numpy as np

from pipeline.arrays import F64, Array, Floats
from pipeline.bundle.bundle import Calibration
from pipeline.calibration import sigmoid
from pipeline.errors import DataError

__all__ = ["ALPHA_POSITIVES", "fit_calibration", "offset_for"]

ALPHA_POSITIVES = 5_000
"""Labels of the rarer class above which the slope is fitted as well."""


def fit_calibration(
    logits: Floats, labels: Array, weights: Floats | None = None, *, alpha_positives: int = ALPHA_POSITIVES
) -> Calibration:
    """Maximum likelihood alpha and beta by Newton's method (Platt, 1999); alpha stays 1 on few labels.

    Args:
        logits: `[n]`, on rows held out in time.
        labels: 0 or 1, `[n]`.
        weights: what each row stands for, `[n]`: 1 / probability of the rows of a sampled log. Weights bring the labels
            to their natural rate; how many there are is counted in rows.
        alpha_positives: fit alpha when both classes have more labels than this.

    Raises:
        DataError: one class only, or logits that are not finite.
    """
    s, y = np.asarray(logits, np.float64), np.asarray(labels, np.float64)
    if not np.isfinite(s).all():
        raise DataError("logits to calibrate hold NaN or infinity; the model has diverged, lower its rates", "logits")
    positives = float(y.sum())
    rarer = min(positives, len(y) - positives)
    if rarer < 1:
        raise DataError(
            f"calibration needs both classes; the {len(y)} held-out rows have {positives:.0f} positives: hold out more rows",
            "label",
        )
    w = np.ones_like(s) if weights is None else np.asarray(weights, np.float64)
    alpha, beta = _newton(s, y, w, slope=rarer > alpha_positives)
    if alpha <= 0.05:  # a model that ranks no better than chance; only its level can be corrected
        alpha, beta = _newton(s, y, w, slope=False)
    return Calibration(alpha=alpha, beta=beta)


def offset_for(logits: F64, target: float, weights: F64 | None = None) -> float:
    """The b for which `sum(weights * sigmoid(logits + b)) == target`, by Newton's method from 0, guarded by bisection."""
    w = np.ones_like(logits) if weights is None else weights
    low, high = -30.0, 30.0
    b = 0.0
    for _ in range(60):
        p = sigmoid(logits + b)
        excess = float((w * p).sum()) - target
        low, high = (low, b) if excess > 0 else (b, high)
        slope = float((w * p * (1 - p)).sum())
        step = b - excess / slope if slope > 1e-12 else (low + high) / 2
        step = step if low < step < high else (low + high) / 2
        if abs(step - b) < 1e-10:
            return step
        b = step
    return b


def _newton(s: F64, y: F64, weights: F64, *, slope: bool) -> tuple[float, float]:
    share = weights / weights.sum()
    # Around the mean logit, where the two are nearly independent and the start is close.
    mean, rate = float(share @ s), float(share @ y)
    centred = s - mean
    x = np.stack([centred, np.ones_like(s)], 1) if slope else np.ones((len(s), 1))
    fixed = np.zeros_like(s) if slope else centred
    start = np.log(rate / (1.0 - rate))
    w = np.array([1.0, start]) if slope else np.array([start])

    def loss(v: F64) -> float:
        z = fixed + x @ v
        return float(share @ (np.logaddexp(0.0, z) - y * z))

    current = loss(w)
    for _ in range(100):
        p = sigmoid(fixed + x @ w)
        gradient = x.T @ (share * (p - y))
        hessian = (x * (share * p * (1.0 - p))[:, None]).T @ x + 1e-12 * np.eye(x.shape[1])
        move = np.linalg.solve(hessian, gradient)
        pace = 1.0
        while loss(w - pace * move) > current + 1e-15 and pace > 1e-6:  # halve until it helps: far from the optimum
            pace *= 0.5
        w = w - pace * move
        current = loss(w)
        if np.abs(pace * move).max() < 1e-10:
            break
    alpha = float(w[0]) if slope else 1.0
    return alpha, float(w[-1] - alpha * mean)
