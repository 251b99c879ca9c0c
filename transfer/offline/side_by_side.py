"""Teacher and student on the same rows, which neither was trained on here, and the levels of what they were made from.

A log that was thinned without saying so, or a teacher that was trained on one, ranks as well as any; only its level tells.
So the level of the labels, of the teacher's scores on this log, and of an endpoint's traffic are held against each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.arrays import F32
from pipeline.errors import DataError
from pipeline.features import Rows
from transfer.data.log import Log
from transfer.offline.held import measure
from transfer.quality.figures import deciles

__all__ = ["TOLERANCE_FRACTION", "Level", "SideBySide", "disagreements", "side_by_side"]

TOLERANCE_FRACTION = 0.2
"""Levels that differ by more than this fraction of the smaller one disagree. Drift moves a base rate by less; a log without nine
tenths of its negatives moves it by several times."""


@dataclass(frozen=True, slots=True)
class Level:
    """Share of positives, or mean score, of some rows. `what`: whose, as a sentence's subject; `remedy`: what to do where it is wrong."""

    what: str
    value: float
    remedy: str


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Scores of models on the same rows, float32 `[n]` by name, with labels and what the rows stand for."""

    scores: dict[str, F32]
    labels: F32
    stands_for: F32

    @property
    def rate(self) -> float:
        """Share of positives of the traffic."""
        return float(np.average(self.labels, weights=self.stands_for))

    def mean(self, name: str) -> float:
        """Mean score of a model on the traffic."""
        return float(np.average(self.scores[name], weights=self.stands_for))

    def figures(self, name: str) -> dict[str, Any]:
        """auc, logloss, bias, pcoc, rows and positives of a model, and its calibration by decile."""
        scores = self.scores[name]
        found = measure(scores, self.labels, self.stands_for)
        bias = found["bias"]
        tenths = [asdict(decile) for decile in deciles(scores, self.labels, stands_for=self.stands_for)]
        return {**found, "pcoc": None if bias is None else bias + 1.0, "deciles": tenths}


def side_by_side(log: Log, start: float, stop: float, models: Mapping[str, Callable[[Rows], F32]]) -> SideBySide | None:
    """Some models on the rows of a range of a log; None where it is empty.

    Args:
        models: by name, functions that give probabilities float32 `[n]` of rows with the log's fields.

    Raises:
        DataError: a score is not finite.
    """
    chunks = list(log.chunks(start, stop))
    if not chunks:
        return None
    scores = {name: np.concatenate([score(chunk.rows) for chunk in chunks]) for name, score in models.items()}
    for name, values in scores.items():
        if not np.isfinite(values).all():
            raise DataError(f"scores of the {name} are not finite", name)
    labels, counts = (np.concatenate([getattr(chunk, of) for chunk in chunks]) for of in ("labels", "stands_for"))
    return SideBySide(scores, labels, counts)


def disagreements(first: Level, *others: Level, tolerance: float = TOLERANCE_FRACTION) -> list[str]:
    """A sentence for each level that is too far from the first one.

    >>> level = Level("labels of the log", 0.5, "declare sampling")
    >>> disagreements(level, Level("scores of the teacher", 0.1, "calibrate it"))[0][:58]
    'the levels disagree: labels of the log have a mean of 0.50'
    """
    found = []
    for other in others:
        low, high = sorted((first.value, other.value))
        if high > (1 + tolerance) * low:
            found.append(
                f"the levels disagree: {first.what} have a mean of {first.value:.4f}, {other.what} one of {other.value:.4f}, "
                f"more than {tolerance:.0%} apart; {first.remedy}, or {other.remedy}"
            )
    return found
