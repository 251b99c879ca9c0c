"""Fields weighted by a squeeze-and-excitation gate, then bilinear interactions, then a perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.errors import InvalidInput
from transfer.model_zoo.architecture import Architecture
from transfer.model_zoo.layers import FirstOrder, mlp

__all__ = ["FiBiNET"]


class FiBiNET(Architecture):
    """Huang, Zhang, Zhang, FiBiNET, arXiv 1905.09433: SENET layer (section 3.3) and bilinear interaction (section 3.4) of
    both the original and the gated embeddings, a perceptron on the pairs, and a linear part (equation 11).

    Not split: the gate of every field looks at all of them, so only the products of two context fields, ungated, are the
    request's own. Computing these once gained nothing (0.94 to 1.06 of the whole network's speed, 23 of 39 fields context).

    Args:
        bilinear: `all`: one matrix for every pair; `each`: one per left field (section 3.4, types a and b).
        reduction: the gate's inner layer has `F / reduction` units.
        hidden, dropout: of the MLP.
    """

    uses_linear = True

    def __init__(
        self,
        fields: int,
        width: int,
        numbers: int,
        *,
        bilinear: Literal["all", "each"] = "all",
        reduction: int = 3,
        hidden: Sequence[int] = (64, 32),
        dropout: float = 0.0,
    ) -> None:
        super().__init__(fields, width, numbers)
        if fields < 2:
            raise InvalidInput("FiBiNET crosses pairs of fields; the schema must have at least two of kind id or bag")
        if not reduction > 0:
            raise InvalidInput(f"reduction is {reduction}; give a number above 0", "reduction")
        if bilinear not in ("all", "each"):
            raise InvalidInput(f"bilinear is {bilinear!r}; choose 'all' or 'each'", "bilinear")
        self.first = FirstOrder(numbers)
        inner = max(1, fields // reduction)
        squeeze, excite = nn.Linear(fields, inner, bias=False), nn.Linear(inner, fields, bias=False)
        self.gate = nn.Sequential(squeeze, nn.ReLU(), excite, nn.ReLU())
        with torch.no_grad():  # positive at the start: a ReLU that is shut for every row would never open again
            squeeze.weight.abs_()
            excite.weight.abs_()
        left, right = torch.triu_indices(fields, fields, 1)
        self.register_buffer("left", left, persistent=False)
        self.register_buffer("right", right, persistent=False)
        count = 1 if bilinear == "all" else fields
        self.original = nn.Parameter(_near_identity(count, width))
        self.gated = nn.Parameter(_near_identity(count, width))
        self.deep = mlp(2 * len(left) * width + numbers, list(hidden), dropout)

    def forward(self, embeddings: Tensor, linear: Tensor | None, numbers: Tensor) -> Tensor:
        assert linear is not None
        gate = self.gate(embeddings.mean(2))
        pairs = [
            self._interact(embeddings, self.original),
            self._interact(embeddings * gate.unsqueeze(2), self.gated),
        ]
        if self.numbers:
            pairs.append(numbers)
        logit: Tensor = self.first(linear, numbers) + self.deep(torch.cat(pairs, 1)).squeeze(1)
        return logit

    def _interact(self, embeddings: Tensor, weights: Tensor) -> Tensor:
        """`(v_i W) * v_j` of all pairs i < j, `[n, pairs * d]`."""
        if weights.shape[0] == 1:
            turned = torch.matmul(embeddings, weights[0])
        else:  # field by field, so that each is one dense product
            turned = torch.bmm(embeddings.transpose(0, 1), weights).transpose(0, 1)
        left = turned.index_select(1, self.get_buffer("left"))
        right = embeddings.index_select(1, self.get_buffer("right"))
        return (left * right).flatten(1)


def _near_identity(count: int, width: int) -> Tensor:
    """Matrices `[count, d, d]` close to the identity: training starts from plain element-wise products."""
    return torch.eye(width).repeat(count, 1, 1) + 0.01 * torch.randn(count, width, width)
