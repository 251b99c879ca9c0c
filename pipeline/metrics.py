"""Metrics of predictions: AUC, LogLoss and bias, exact on arrays or from sums that can be merged and reverted.

Labels may be any number in 0..1; one of 0.3 counts as 0.3 of a positive and 0.7 of a negative row. `weights` are what each
row stands for, 1 / probability of a row of a sampled log; without them every row counts once. It knows nothing of
arms, rollouts or training; `serving.rollout.analysis` and `transfer` both use it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pipeline.arrays import F64, Floats, Index, Mask

__all__ = ["BinnedAuc", "Sums", "auc", "bias", "logloss", "pcoc", "row_logloss"]

Numbers = Floats | Index | Mask

SMALLEST_PROBABILITY = 1e-7
"""Probabilities are clipped to [SMALLEST, 1 - SMALLEST] before a logarithm; float32 scores are not more exact."""


def auc(labels: Numbers, scores: Numbers, weights: Numbers | None = None) -> float:
    """Area under the ROC curve: the chance that a positive row outscores a negative one, ties counted as half.

    Args:
        labels: `[n]` in 0..1.
        scores: `[n]`, any monotonic score.
        weights: `[n]`, what each row stands for.

    Returns:
        NaN where one class is absent.

    >>> auc(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8]))
    0.75
    """
    y = np.asarray(labels, np.float64).ravel()
    s = np.asarray(scores).ravel()
    if not len(y):
        return float("nan")
    order = np.argsort(s, kind="stable")
    s, y = s[order], y[order]
    w = np.ones(len(y)) if weights is None else np.asarray(weights, np.float64).ravel()[order]
    starts = np.flatnonzero(np.concatenate(([True], s[1:] != s[:-1])))
    positives = np.add.reduceat(w * y, starts)
    negatives = np.add.reduceat(w * (1.0 - y), starts)
    return _area(positives, negatives)


def row_logloss(labels: Numbers, scores: Numbers) -> F64:
    """LogLoss (nats) of each row: labels `[n]` in 0..1, scores `[n]` probabilities -> float64 `[n]`."""
    y = np.asarray(labels, np.float64)
    p = np.clip(np.asarray(scores, np.float64), SMALLEST_PROBABILITY, 1.0 - SMALLEST_PROBABILITY)
    losses: F64 = -(y * np.log(p) + (1.0 - y) * np.log1p(-p))
    return losses


def logloss(labels: Numbers, scores: Numbers, weights: Numbers | None = None) -> float:
    """Mean LogLoss (nats); NaN without rows. `weights` `[n]`: what each row stands for.

    >>> round(logloss(np.array([1, 0]), np.array([0.8, 0.2])), 4)
    0.2231
    """
    if not np.size(labels):
        return float("nan")
    losses = row_logloss(labels, scores)
    return float(losses.mean()) if weights is None else float(np.average(losses, weights=np.asarray(weights)))


def pcoc(labels: Numbers, scores: Numbers, weights: Numbers | None = None) -> float:
    """Predicted over observed clicks, `sum(scores) / sum(labels)`; NaN without a positive. `weights` `[n]`: what each row
    stands for.

    >>> round(pcoc(np.array([1, 0]), np.array([0.4, 0.3]), np.array([1, 2])), 3)
    1.0

    >>> pcoc(np.array([1, 0]), np.array([0.8, 0.3]))
    1.1
    """
    y, p = np.asarray(labels, np.float64), np.asarray(scores, np.float64)
    if weights is not None:
        w = np.asarray(weights, np.float64)
        y, p = w * y, w * p
    clicks = float(y.sum())
    return float(p.sum()) / clicks if clicks > 0 else float("nan")


def bias(labels: Numbers, scores: Numbers, weights: Numbers | None = None) -> float:
    """Relative prediction bias, `pcoc - 1`: 0.02 means two percent too many clicks predicted; NaN without a positive."""
    return pcoc(labels, scores, weights) - 1.0


@dataclass(slots=True)
class BinnedAuc:
    """AUC from a histogram of log-odds, for streams that are too long to sort: O(bins) memory, merged by addition.

    Two rows of one bin count as a tie. The exact AUC therefore lies within `bound()` of `value()`: half the fraction of
    (positive, negative) pairs that fall into one bin. With the default bins, 1/128 of log-odds wide, that is about 1e-3
    for scores as spread out as a click model's, and the error itself, in which the two directions cancel, near 1e-6.

    Args:
        low, high: log-odds covered; the outermost bins take everything beyond.
        bins: number of bins.

    >>> binned = BinnedAuc()
    >>> binned.update(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8]))
    >>> binned.value(), binned.bound()
    (0.75, 0.0)
    """

    low: float = -16.0
    high: float = 16.0
    bins: int = 4096
    positives: F64 = field(init=False)
    negatives: F64 = field(init=False)

    def __post_init__(self) -> None:
        self.positives = np.zeros(self.bins)
        self.negatives = np.zeros(self.bins)

    def bin_of(self, scores: Numbers) -> npt.NDArray[np.intp]:
        """Bin of each probability: `[n]` -> intp `[n]` in 0..bins-1."""
        p = np.clip(np.asarray(scores, np.float64), SMALLEST_PROBABILITY, 1.0 - SMALLEST_PROBABILITY)
        logits = np.log(p) - np.log1p(-p)
        at = ((logits - self.low) * (self.bins / (self.high - self.low))).astype(np.intp)
        clipped: npt.NDArray[np.intp] = np.clip(at, 0, self.bins - 1)
        return clipped

    def update(self, labels: Numbers, scores: Numbers, weight: float = 1.0) -> None:
        """Add rows: labels `[n]` in 0..1, scores `[n]` probabilities. A weight of -1 reverts them."""
        self.update_bins(np.asarray(labels, np.float64), self.bin_of(scores), weight)

    def update_bins(self, labels: F64, bins: npt.NDArray[np.intp], weight: float | F64 = 1.0) -> None:
        """As `update`, for rows whose bins are known; `weight` may be one per row, `[n]`."""
        self.positives += np.bincount(bins, weight * labels, self.bins)
        self.negatives += np.bincount(bins, weight * (1.0 - labels), self.bins)

    def merge(self, other: BinnedAuc) -> None:
        """Add another histogram of the same bins.

        Raises:
            ValueError: its bins differ.
        """
        if (self.low, self.high, self.bins) != (other.low, other.high, other.bins):
            raise ValueError("histograms with different bins cannot be merged")
        self.positives += other.positives
        self.negatives += other.negatives

    def value(self) -> float:
        """The AUC; NaN where one class is absent."""
        return _area(self.positives, self.negatives)

    def bound(self) -> float:
        """The most by which `value()` can be wrong; NaN where one class is absent."""
        pairs = self.positives.sum() * self.negatives.sum()
        return float(0.5 * (self.positives @ self.negatives) / pairs) if pairs > 0 else float("nan")


@dataclass(slots=True)
class Sums:
    """Rows, clicks, predicted clicks, LogLoss and AUC of one arm on one stream; can be merged, and rows reverted.

    `predicted_in` float64 `[binned.bins]` holds the sum of scores per bin, for `pipeline.reliability`.
    """

    rows: int = 0
    clicks: float = 0.0
    predicted: float = 0.0
    losses: float = 0.0
    binned: BinnedAuc = field(default_factory=BinnedAuc)
    predicted_in: F64 = field(init=False)

    def __post_init__(self) -> None:
        self.predicted_in = np.zeros(self.binned.bins)

    def update(self, labels: Numbers, scores: Numbers, sign: float = 1.0) -> None:
        """Add rows: labels `[n]` in 0..1, scores `[n]` probabilities. A sign of -1 reverts them."""
        y, p = np.asarray(labels, np.float64), np.asarray(scores, np.float64)
        self.update_rows(y, p, row_logloss(y, p), self.binned.bin_of(p), np.full(len(y), sign))

    def revert(self, labels: Numbers, scores: Numbers) -> None:
        """Revert rows that were added with these labels and scores."""
        self.update(labels, scores, -1.0)

    def update_rows(self, y: F64, p: F64, losses: F64, bins: npt.NDArray[np.intp], sign: F64) -> None:
        """As `update`, for rows whose LogLoss and bin are known: all `[n]`; `sign` 1 adds a row, -1 reverts it."""
        # Sums of products, not dot products: BLAS would use a pool of threads for those.
        weighted = sign * p
        self.rows += round(float(sign.sum()))
        self.clicks += float((sign * y).sum())
        self.predicted += float(weighted.sum())
        self.losses += float((sign * losses).sum())
        self.binned.update_bins(y, bins, sign)
        self.predicted_in += np.bincount(bins, weighted, self.binned.bins)

    def merge(self, other: Sums) -> None:
        """Add another stream's sums."""
        self.rows += other.rows
        self.clicks += other.clicks
        self.predicted += other.predicted
        self.losses += other.losses
        self.binned.merge(other.binned)
        self.predicted_in += other.predicted_in

    @property
    def auc(self) -> float:
        """AUC, within `binned.bound()`; NaN where one class is absent."""
        return self.binned.value()

    @property
    def logloss(self) -> float:
        """Mean LogLoss in nats; NaN without rows."""
        return self.losses / self.rows if self.rows else float("nan")

    @property
    def bias(self) -> float:
        """`predicted / clicks - 1`; NaN without a positive."""
        return self.predicted / self.clicks - 1.0 if self.clicks > 0 else float("nan")


def _area(positives: F64, negatives: F64) -> float:
    """AUC of rows grouped by equal score, groups in rising order."""
    pairs = positives.sum() * negatives.sum()
    if not pairs > 0:
        return float("nan")
    below = np.cumsum(negatives) - negatives
    return float((positives @ (below + 0.5 * negatives)) / pairs)
