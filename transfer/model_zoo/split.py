"""Rows in two halves: the context of a request, kept once, and its candidates.

What is linear in its inputs (a perceptron's first layer, sums over fields) is computed for the context once per request
and handed to its candidates as a vector; `SplitOutput` has those operations, so that an architecture's `forward_split` reads
like its `forward`. Next stop: `transfer.click_model.network.SplitNetwork`, which makes the halves of a network's inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from transfer.model_zoo.architecture import FirstOrder

__all__ = ["SplitHalf", "SplitOutput"]


@dataclass(frozen=True, slots=True)
class SplitHalf:
    """Some of the fields, on rows of their own.

    Attributes:
        embeddings: `[rows, fields of this half, d]`.
        linear: `[rows, fields of this half]`; None unless the architecture uses it.
        numbers: `[rows, numbers of this half]`, standardised, missing flags included.
        fields: int64, positions of the fields among all of them.
        columns: int64, positions of `flat` in `Architecture.dense_input`.
        weights: int64, positions of `numbers` among all of them.
    """

    embeddings: Tensor
    linear: Tensor | None
    numbers: Tensor
    fields: Tensor
    columns: Tensor
    weights: Tensor

    @property
    def flat(self) -> Tensor:
        """Vectors and numbers side by side, `[rows, len(columns)]`."""
        return (
            torch.cat([self.embeddings.flatten(1), self.numbers], 1)
            if len(self.weights)
            else self.embeddings.flatten(1)
        )

    def first_order(self, first: FirstOrder) -> Tensor:
        """This half's part of `FirstOrder` without the bias, `[rows]`."""
        assert self.linear is not None
        sums = self.linear.sum(1)
        if first.numbers is None:
            return sums
        return sums + functional.linear(self.numbers, first.numbers.weight.index_select(1, self.weights)).squeeze(1)


@dataclass(frozen=True, slots=True)
class SplitOutput:
    """The context of r requests, n candidates, and for each of these its request, int64 `[n]`."""

    context: SplitHalf
    candidates: SplitHalf
    request: Tensor

    def spread(self, once: Tensor) -> Tensor:
        """A row per request `[r, ...]` as a row per candidate `[n, ...]`."""
        return once.index_select(0, self.request)

    @property
    def order(self) -> Tensor:
        """Positions in `Architecture.dense_input` of the context's columns, then the candidates'."""
        return torch.cat([self.context.columns, self.candidates.columns])

    @property
    def flat(self) -> Tensor:
        """The dense input of all rows with its columns in `order`, `[n, F * d + numbers]`."""
        return torch.cat([self.spread(self.context.flat), self.candidates.flat], 1)

    def linear(self, layer: nn.Linear, outputs: Tensor | None = None) -> Tensor:
        """`layer` of the dense input, `[n, outputs]`; `outputs` picks units of the layer."""
        weight, bias = picked(layer, outputs)
        once = functional.linear(self.context.flat, weight.index_select(1, self.context.columns), bias)
        # As one product that adds to what is there, which ONNX Runtime fuses with the activation behind it.
        return torch.addmm(self.spread(once), self.candidates.flat, weight.index_select(1, self.candidates.columns).t())

    def linear_of(self, layer: nn.Linear, x: Tensor, outputs: Tensor | None = None) -> Tensor:
        """`layer` of rows `[n, ...]` whose columns stand in `order`."""
        weight, bias = picked(layer, outputs)
        return functional.linear(x, weight.index_select(1, self.order), bias)

    def mlp(self, layers: nn.Sequential) -> Tensor:
        """A perceptron (`architecture.mlp`, of at least one layer) on the dense input."""
        first, *rest = layers
        assert isinstance(first, nn.Linear)
        out: Tensor = nn.Sequential(*rest)(self.linear(first))
        return out

    def first_order(self, first: FirstOrder) -> Tensor:
        """`first` of all rows, `[n]`."""
        return self.spread(self.context.first_order(first) + first.bias) + self.candidates.first_order(first)

    def pairwise(self) -> Tensor:
        """`architecture.pairwise` of all rows, `[n]`, from the sums and squares of both halves."""
        once, own = self.context.embeddings, self.candidates.embeddings
        total = self.spread(once.sum(1)) + own.sum(1)
        squares = self.spread(once.square().flatten(1).sum(1)) + own.square().flatten(1).sum(1)
        return 0.5 * (total.square().sum(1) - squares)


def picked(layer: nn.Linear, outputs: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of some units of a layer."""
    bias: Tensor | None = layer.bias
    if outputs is None:
        return layer.weight, bias
    return layer.weight.index_select(0, outputs), None if bias is None else bias.index_select(0, outputs)
