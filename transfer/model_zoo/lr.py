"""Logistic regression: a weight per id, a weight per number, a bias."""

from __future__ import annotations

from torch import Tensor

from transfer.model_zoo.architecture import Architecture
from transfer.model_zoo.layers import FirstOrder

__all__ = ["LR"]


class LR(Architecture):
    """Logistic regression over ids (McMahan et al., Ad Click Prediction: a View from the Trenches, KDD 2013).

    A bag counts with the mean weight of its elements. Vectors are not used, so its tables are one number wide. Not split:
    a sum of weights costs as much for all fields as for some (measured 0.97 to 1.02).
    """

    uses_linear = True
    uses_embeddings = False

    def __init__(self, fields: int, width: int, numbers: int) -> None:
        super().__init__(fields, width, numbers)
        self.first = FirstOrder(numbers)

    def forward(self, embeddings: Tensor, linear: Tensor | None, numbers: Tensor) -> Tensor:
        assert linear is not None
        logit: Tensor = self.first(linear, numbers)
        return logit
