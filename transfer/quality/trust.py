"""Evidence for the teacher weight `a` of the loss: paired losses on rows that the student has not trained on yet.

    logit(a) = logit(start) + eta * clip(z, -3, 3)

`z` is the discounted paired z-score of the student's label loss minus the teacher's. Equal models keep the start; a
student that has overtaken its teacher gets away from it, one that is behind leans on it. Rows of one request resemble
each other, so what is counted are means of blocks of neighbouring rows.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pipeline.arrays import F32, F64, Array
from pipeline.calibration import sigmoid
from pipeline.errors import InvalidInput

__all__ = ["Trust", "label_losses"]


def label_losses(logits: F32, labels: Array) -> F64:
    """LogLoss per row of logits `[n]` against labels `[n]`, in nats."""
    z = logits.astype(np.float64)
    losses: F64 = np.logaddexp(0.0, z) - labels * z
    return losses


class Trust:
    """Teacher weight that follows the evidence: `update` takes one batch at a time.

    Args:
        start: a of equal models.
        eta: how strongly evidence moves it.
        discount: of a batch per later batch.
        highest: bound on a.
        least: blocks before it moves.
        blocks: of a batch, at most; none is shorter than `SHORTEST` rows.

    >>> trust = Trust(0.7)
    >>> trust.teacher_weight
    0.7
    """

    SHORTEST = 64
    _STATE = ("_blocks", "_weight", "_square_weight", "_sum", "_square", "z")

    def __init__(
        self,
        start: float,
        *,
        eta: float = 1.5,
        discount: float = 0.98,
        highest: float = 0.9,
        least: int = 5,
        blocks: int = 8,
    ) -> None:
        if not 0.0 <= start <= 1.0 or not 0.0 < discount < 1.0:
            raise InvalidInput(f"a of {start} and a discount of {discount} must lie between 0 and 1", "a")
        self._start, self._eta, self._discount, self._highest, self._least = start, eta, discount, highest, least
        self._most = blocks
        self._blocks = 0
        self._weight = self._square_weight = self._sum = self._square = 0.0
        self.z = 0.0
        self.teacher_weight = start

    def update(self, student_losses: Array, teacher_losses: Array, lean: float = 0.0) -> float:
        """Add a batch's losses per row, both before training on it; the new weight.

        Args:
            lean: added to the log-odds of a, for evidence beside the losses.
        """
        difference = np.asarray(student_losses, np.float64) - teacher_losses
        count = int(np.clip(len(difference) // self.SHORTEST, 1, self._most))
        means = np.array([part.mean() for part in np.array_split(difference, count)])
        d = self._discount
        self._weight = d * self._weight + count
        self._square_weight = d * d * self._square_weight + count
        self._sum = d * self._sum + float(means.sum())
        self._square = d * self._square + float((means * means).sum())
        self._blocks += count
        if self._blocks < self._least or self._start in (0.0, 1.0):
            return self.teacher_weight
        mean = self._sum / self._weight
        variance = max(self._square / self._weight - mean * mean, 1e-18)
        self.z = float(mean / np.sqrt(variance * self._square_weight) * self._weight)
        moved: float = np.log(self._start / (1.0 - self._start)) + self._eta * float(np.clip(self.z, -3.0, 3.0)) + lean
        self.teacher_weight = min(self._highest, float(sigmoid(moved)))
        return self.teacher_weight

    def forget(self, kept: float) -> None:
        """Multiply the evidence so far by `kept`, since it may not hold any more."""
        self._weight, self._square_weight = kept * self._weight, kept * self._square_weight
        self._sum, self._square = kept * self._sum, kept * self._square

    def state(self) -> dict[str, float]:
        """The state that `restore` takes, as JSON values."""
        return {name: getattr(self, name) for name in self._STATE} | {"a": self.teacher_weight}

    def restore(self, state: Mapping[str, float]) -> None:
        for name in self._STATE:
            setattr(self, name, state[name])
        self.teacher_weight = state["a"]
