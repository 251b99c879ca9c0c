"""Explicit feature crosses of bounded degree beside a perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import InvalidInput
from transfer.model_zoo.architecture import Architecture
from transfer.model_zoo.layers import MOST_LAYERS, SplitOutput, mlp, picked

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
        if not 0 <= cross <= MOST_LAYERS:
            raise InvalidInput(f"cross is {cross}; give 0 to {MOST_LAYERS} layers", "cross")
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

    def forward_split(self, rows: SplitOutput) -> Tensor:
        """The first cross layer is split by its inputs, the last one by its units: those of the context's columns enter
        the logit with weights `a = head * x_0`, which are the request's own, and `a . (W x + b) = (a W) . x + a . b` takes
        one vector `a W` per request instead of these units for every candidate."""
        context, own = rows.context, rows.candidates
        wide, deep = self.head.weight[:, : self.dense_width], self.head.weight[:, self.dense_width :]
        x = x0 = rows.flat
        crossed = x.new_zeros(())
        for index, layer in enumerate(self.cross):
            last = index == len(self.cross) - 1
            outputs = own.columns if last else rows.order
            if isinstance(layer, nn.Sequential):
                inner, outer = (cast(nn.Linear, part) for part in layer)
                below = rows.linear(inner) if index == 0 else rows.linear_of(inner, x)
                weight, units = outer.weight, functional.linear(below, *picked(outer, outputs))
            else:
                outer = cast(nn.Linear, layer)
                below, weight = x, outer.weight.index_select(1, rows.order)
                units = rows.linear(outer, outputs) if index == 0 else rows.linear_of(outer, x, outputs)
            if not last:
                x = x0 * units + x
                continue
            request = context.flat * wide.index_select(1, context.columns)
            folded = request @ weight.index_select(0, context.columns)
            offset = request @ outer.bias.index_select(0, context.columns)
            crossed = functional.linear(units * own.flat, wide.index_select(1, own.columns)).squeeze(1)
            crossed = crossed + (below * rows.spread(folded)).sum(1) + rows.spread(offset)
        tower = rows.mlp(self.deep) if len(self.deep) else x0
        deep = deep if len(self.deep) else deep.index_select(1, rows.order)
        head = functional.linear(x, wide.index_select(1, rows.order), self.head.bias) + functional.linear(tower, deep)
        return head.squeeze(1) + crossed
