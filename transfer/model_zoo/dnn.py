"""Embeddings and a multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from transfer.model_zoo.architecture import Architecture
from transfer.model_zoo.layers import SplitOutput, mlp

__all__ = ["DNN"]


class DNN(Architecture):
    """Concatenated embeddings into a tower of ReLU layers (Covington, Adams, Sargin, RecSys 2016, section 4)."""

    def __init__(
        self, fields: int, width: int, numbers: int, *, hidden: Sequence[int] = (64, 32), dropout: float = 0.0
    ) -> None:
        super().__init__(fields, width, numbers)
        self.deep = mlp(self.dense_width, list(hidden), dropout)

    def forward(self, embeddings: Tensor, linear: Tensor | None, numbers: Tensor) -> Tensor:
        logit: Tensor = self.deep(self.dense_input(embeddings, numbers)).squeeze(1)
        return logit

    def forward_split(self, rows: SplitOutput) -> Tensor:
        return rows.mlp(self.deep).squeeze(1)
