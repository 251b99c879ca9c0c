"""Whom to believe: the teacher's share `a` of the loss, from paired losses on rows that the student has not trained on yet.

    logit(a) = logit(start) + eta * clip(z, -3, 3)

`z` is the discounted paired z-score of the student's label loss minus the teacher's, per batch. Equal models keep the
start; a student that has overtaken its teacher gets away from it, one that is behind leans on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import InvalidInput

__all__ = ["Trust", "label_losses"]


def label_losses(logits: npt.NDArray[np.float32], labels: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """LogLoss per row of logits `[n]` against labels `[n]`, in nats."""
    z = logits.astype(np.float64)
    losses: npt.NDArray[np.float64] = np.logaddexp(0.0, z) - labels * z
    return losses


class Trust:
    """Feed it one batch at a time, read `a`.

    Args:
        start: a of equal models.
        eta: how strongly evidence moves it.
        discount: of a batch per later batch.
        highest: bound on a.
        least: batches before it moves.

    >>> trust = Trust(0.7)
    >>> trust.a
    0.7
    """

    _STATE = ("_batches", "_weight", "_square_weight", "_sum", "_square", "a")

    def __init__(
        self, start: float, *, eta: float = 1.5, discount: float = 0.98, highest: float = 0.9, least: int = 5
    ) -> None:
        if not 0.0 <= start <= 1.0 or not 0.0 < discount < 1.0:
            raise InvalidInput(f"a of {start} and a discount of {discount} must lie between 0 and 1", "a")
        self._start, self._eta, self._discount, self._highest, self._least = start, eta, discount, highest, least
        self._batches = 0
        self._weight = self._square_weight = self._sum = self._square = 0.0
        self.a = start

    def update(self, student_losses: npt.NDArray[Any], teacher_losses: npt.NDArray[Any]) -> float:
        """Take in a batch's losses per row, both before training on it; the new a."""
        difference = float(np.mean(student_losses, dtype=np.float64) - np.mean(teacher_losses, dtype=np.float64))
        d = self._discount
        self._weight = d * self._weight + 1.0
        self._square_weight = d * d * self._square_weight + 1.0
        self._sum = d * self._sum + difference
        self._square = d * self._square + difference * difference
        self._batches += 1
        if self._batches < self._least or self._start in (0.0, 1.0):
            return self.a
        mean = self._sum / self._weight
        variance = max(self._square / self._weight - mean * mean, 1e-18)
        z = mean / np.sqrt(variance * self._square_weight) * self._weight
        moved = np.log(self._start / (1.0 - self._start)) + self._eta * float(np.clip(z, -3.0, 3.0))
        self.a = float(min(self._highest, 1.0 / (1.0 + np.exp(-moved))))
        return self.a

    def state(self) -> dict[str, float]:
        """What `restore` takes, as JSON values."""
        return {name: getattr(self, name) for name in self._STATE}

    def restore(self, state: Mapping[str, float]) -> None:
        for name in self._STATE:
            setattr(self, name, state[name])
