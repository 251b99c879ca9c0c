"""Rows that are scored before they are trained on: the metrics at birth, and the calibration of the weights at the end.

Scores from before give metrics and a slope without any row being set aside. Their level, though, is the mean of all the
weights that the model had along the tail, and one step's level is off by several percent of the next one's. So the offset
is moved by what the last weights score differently on the newest of these rows. They have been trained on by then, which
moves scores up and down, but not their mean, as long as every row counts the same. Rows of a sampled log do not: there every
`ASIDE_BATCHES`-th batch of the tail is never trained on, and these alone are scored again.
"""

from __future__ import annotations

from collections import Counter, deque

import numpy as np

from pipeline.arrays import F32
from pipeline.bundle.bundle import Calibration
from pipeline.calibration import probabilities, sigmoid
from pipeline.errors import DataError
from pipeline.features import Rows
from pipeline.metrics import auc, bias, logloss
from transfer.click_model.calibration import ALPHA_POSITIVES, fit_calibration, offset_for
from transfer.click_model.model import ClickModel

__all__ = ["ASIDE_BATCHES", "Held", "measure"]

KEPT_ROWS = 100_000
"""Newest rows that are kept to be scored again."""
ASIDE_BATCHES = 5


class Held:
    """Logits, labels and what they stand for, of rows that were scored before they were trained on."""

    def __init__(self) -> None:
        self._ids: Counter[str] = Counter()
        self._unknown: Counter[str] = Counter()
        self._final: list[bool] = []
        self._logits: list[F32] = []
        self._labels: list[F32] = []
        self._stand_for: list[F32] = []
        self._kept: deque[tuple[Rows, F32, F32]] = deque()
        self._kept_rows = 0

    def add(self, logits: F32, labels: F32, stands_for: F32, *, final: bool = False) -> None:
        self._final.append(final)
        self._logits.append(logits)
        self._labels.append(labels)
        self._stand_for.append(stands_for)

    def score(
        self, model: ClickModel, rows: Rows, labels: F32, stands_for: F32, *, again: bool = True, final: bool = False
    ) -> None:
        """Add rows that the model has not been trained on, as it serves them.

        Args:
            stands_for: as of `Levels`.
            again: score them again at the end.
            final: the model learns nothing more before it is calibrated.
        """
        logits = model.served_logits(rows)
        self.add(logits, labels, stands_for, final=final)
        if again and not final:
            self._kept.append((rows, logits, stands_for))
            self._kept_rows += len(rows)
        while self._kept_rows > KEPT_ROWS and len(self._kept) > 1:
            self._kept_rows -= len(self._kept.popleft()[0])
        for table, (ids, unknown) in model.id_counts(rows).items():
            self._ids[table] += ids
            self._unknown[table] += unknown

    @property
    def unknown_ids(self) -> dict[str, float]:
        """By table: fraction of the ids of scored rows that had no row."""
        return {table: self._unknown[table] / ids for table, ids in self._ids.items() if ids}

    @property
    def logits(self) -> F32:
        return np.concatenate(self._logits) if self._logits else np.empty(0, np.float32)

    @property
    def labels(self) -> F32:
        return np.concatenate(self._labels) if self._labels else np.empty(0, np.float32)

    @property
    def stands_for(self) -> F32:
        return np.concatenate(self._stand_for) if self._stand_for else np.empty(0, np.float32)

    def calibrate(self, model: ClickModel, *, slope: bool = True) -> tuple[Calibration, dict[str, float | None]]:
        """The calibration of a model's present weights, and metrics of the second half of the rows under the calibration of the
        first half.

        Args:
            model: that scored the rows.
            slope: False fits beta alone, however many labels there are.

        Raises:
            DataError: one class only, or logits that are not finite.
        """
        logits, labels, counts = self.logits, self.labels, self.stands_for
        enough = ALPHA_POSITIVES if slope else len(labels)
        passing = np.concatenate(
            [np.full(len(part), not last) for part, last in zip(self._labels, self._final, strict=True)]
        )
        moved = self._moved(model, fit_calibration(logits, labels, counts, alpha_positives=enough))
        logits = np.where(passing, logits + moved, logits).astype(np.float32)
        calibration, half = fit_calibration(logits, labels, counts, alpha_positives=enough), len(labels) // 2
        try:
            earlier = fit_calibration(logits[:half], labels[:half], counts[:half], alpha_positives=enough)
        except DataError:
            earlier = calibration
        scores = probabilities(logits[half:], earlier.alpha, earlier.beta)
        return calibration, measure(scores, labels[half:], counts[half:])

    def _moved(self, model: ClickModel, about: Calibration) -> float:
        """By how much the level of the present weights' logits is above that of the weights of the time. `about`: the level."""
        if not self._kept_rows:
            return 0.0
        rows, then, stands_for = zip(*self._kept, strict=True)
        now = np.concatenate([model.served_logits(part) for part in rows]).astype(np.float64)
        if not np.isfinite(now).all():
            raise DataError(
                "logits to calibrate hold NaN or infinity; the model has diverged, lower its rates", "logits"
            )
        counts = np.concatenate(stands_for).astype(np.float64)
        before = about.alpha * np.concatenate(then).astype(np.float64) + about.beta
        mean = float(counts @ sigmoid(about.alpha * now + about.beta))
        return offset_for(before, mean, counts) / about.alpha


def measure(scores: F32, labels: F32, stands_for: F32 | None = None) -> dict[str, float | None]:
    """auc, logloss, bias, rows, positives of predictions; None where a figure does not exist. Of a sampled log `stands_for`
    `[n]` brings the first three to those of the traffic; rows and positives are counted as they are there."""
    figures = {
        "auc": auc(labels, scores, stands_for),
        "logloss": logloss(labels, scores, stands_for),
        "bias": bias(labels, scores, stands_for),
    }
    known: dict[str, float | None] = {k: v if np.isfinite(v) else None for k, v in figures.items()}
    return known | {"rows": float(len(labels)), "positives": float(labels.sum())}
