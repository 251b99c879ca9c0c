"""A factorization machine and a perceptron on the same embeddings, added."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from transfer.model_zoo.architecture import Architecture
from transfer.model_zoo.layers import FirstOrder, SplitOutput, mlp, pairwise

__all__ = ["DeepFM"]


class DeepFM(Architecture):
    """Guo et al., DeepFM: A Factorization-Machine based Neural Network for CTR Prediction, arXiv 1703.04247."""

    uses_linear = True

    def __init__(
        self, fields: int, width: int, numbers: int, *, hidden: Sequence[int] = (64, 32), dropout: float = 0.0
    ) -> None:
        super().__init__(fields, width, numbers)
        self.first = FirstOrder(numbers)
        self.deep = mlp(self.dense_width, list(hidden), dropout)

    def forward(self, embeddings: Tensor, linear: Tensor | None, numbers: Tensor) -> Tensor:
        assert linear is not None
        wide = self.first(linear, numbers) + pairwise(embeddings)
        logit: Tensor = wide + self.deep(self.dense_input(embeddings, numbers)).squeeze(1)
        return logit

    def forward_split(self, rows: SplitOutput) -> Tensor:
        return rows.first_order(self.first) + rows.pairwise() + rows.mlp(self.deep).squeeze(1)
