"""Factorization machine: first order plus the inner products of all pairs of fields."""

from __future__ import annotations

from torch import Tensor

from transfer.model_zoo.architecture import Architecture
from transfer.model_zoo.layers import FirstOrder, SplitOutput, pairwise

__all__ = ["FM"]


class FM(Architecture):
    """Rendle, Factorization Machines, ICDM 2010 (equation 1; the pairs computed by lemma 3.1)."""

    uses_linear = True

    def __init__(self, fields: int, width: int, numbers: int) -> None:
        super().__init__(fields, width, numbers)
        self.first = FirstOrder(numbers)

    def forward(self, embeddings: Tensor, linear: Tensor | None, numbers: Tensor) -> Tensor:
        assert linear is not None
        logit: Tensor = self.first(linear, numbers) + pairwise(embeddings)
        return logit

    def forward_split(self, rows: SplitOutput) -> Tensor:
        return rows.first_order(self.first) + rows.pairwise()
