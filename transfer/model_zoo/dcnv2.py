"""Explicit feature crosses of bounded degree beside a perceptron."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from transfer.model_zoo.architecture import Architecture, mlp

__all__ = ["DCNv2"]


class DCNv2(Architecture):
    """Wang et al., DCN V2, arXiv 2008.13535: `x_{l+1} = x_0 * (W_l x_l + b_l) + x_l` (equation 1), in parallel with an
    MLP (section 3.4).

    Args:
        cross: number of cross layers.
        rank: W_l as a product of two matrices of this rank (section 3.5, DCN-Mix with one expert); 0: full.
        hidden, dropout: of the MLP.
    """

    def __init__(
        self,
        fields: int,
        width: int,
        numbers: int,
        *,
        cross: int = 2,
        rank: int = 0,
        hidden: Sequence[int] = (64, 32),
        dropout: float = 0.0,
    ) -> None:
        super().__init__(fields, width, numbers)
        size = self.dense_width

        def layer() -> nn.Module:
            if not rank:
                return nn.Linear(size, size)
            return nn.Sequential(nn.Linear(size, rank, bias=False), nn.Linear(rank, size))

        self.cross = nn.ModuleList(layer() for _ in range(cross))
        self.deep = mlp(size, list(hidden), dropout, logit=False)
        self.head = nn.Linear(size + (hidden[-1] if hidden else size), 1)

    def forward(self, embeddings: Tensor, linear: Tensor | None, numbers: Tensor) -> Tensor:
        x0 = self.dense_input(embeddings, numbers)
        x = x0
        for layer in self.cross:
            x = x0 * layer(x) + x
        logit: Tensor = self.head(torch.cat([x, self.deep(x0)], 1)).squeeze(1)
        return logit
