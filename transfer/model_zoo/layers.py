"""Layers that architectures share, and the halves of a split network's rows.

A split network keeps the context of a request once and its candidates on rows of their own. What is linear in its inputs
(a perceptron's first layer, sums over fields) is computed for the context once per request and added to each candidate.
`SplitOutput` has those operations, so that an architecture's `forward_split` reads like its `forward`. Next stop:
`transfer.click_model.network.SplitNetwork`, which makes the halves of a network's inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import InvalidInput

__all__ = ["MOST_LAYERS", "FirstOrder", "SplitHalf", "SplitOutput", "mlp", "pairwise", "picked"]

MOST_LAYERS, MOST_UNITS = 64, 1 << 16
"""Of a perceptron. Its sizes may come from a bundle's manifest."""


def mlp(inputs: int, hidden: list[int], dropout: float, *, logit: bool = True) -> nn.Sequential:
    """Linear and ReLU layers of the given sizes, and a last layer of one unit, the logit, unless `logit` is False.

    Raises:
        InvalidInput: there are more than `MOST_LAYERS`, or one has no units or more than `MOST_UNITS`.
    """
    if len(hidden) > MOST_LAYERS or not all(type(size) is int and 1 <= size <= MOST_UNITS for size in hidden):
        raise InvalidInput(f"hidden: give at most {MOST_LAYERS} layers of 1 to {MOST_UNITS} units", "hidden")
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(inputs, size), nn.ReLU()]
        if dropout > 0:
            layers.append(nn.Dropout(dropout))
        inputs = size
    if logit:
        layers.append(nn.Linear(inputs, 1))
    return nn.Sequential(*layers)


class FirstOrder(nn.Module):
    """Linear part of a network: a weight per id, a weight per number, a bias."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))
        self.numbers = nn.Linear(numbers, 1, bias=False) if numbers else None
        if self.numbers is not None:
            nn.init.zeros_(self.numbers.weight)

    def forward(self, linear: Tensor, numbers: Tensor) -> Tensor:
        logit: Tensor = linear.sum(1) + self.bias
        return logit if self.numbers is None else logit + self.numbers(numbers).squeeze(1)


def pairwise(embeddings: Tensor) -> Tensor:
    """Sum of the inner products of all pairs of fields, `[n]` (Rendle 2010, lemma 3.1: linear in the fields)."""
    total = embeddings.sum(1)
    return 0.5 * (total * total - (embeddings * embeddings).sum(1)).sum(1)


@dataclass(frozen=True, slots=True)
class SplitHalf:
    """The context fields of the requests, or the candidate fields of the candidates, on rows of their own.

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
    """Rows in two halves: the context of r requests, n candidates, and the request of each candidate, int64 `[n]`."""

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
        """`layer` of rows `[n, ...]` whose columns are in `order`."""
        weight, bias = picked(layer, outputs)
        return functional.linear(x, weight.index_select(1, self.order), bias)

    def mlp(self, layers: nn.Sequential) -> Tensor:
        """A perceptron (`mlp`, of at least one layer) on the dense input."""
        first, *rest = layers
        assert isinstance(first, nn.Linear)
        out: Tensor = nn.Sequential(*rest)(self.linear(first))
        return out

    def first_order(self, first: FirstOrder) -> Tensor:
        """`first` of all rows, `[n]`."""
        return self.spread(self.context.first_order(first) + first.bias) + self.candidates.first_order(first)

    def pairwise(self) -> Tensor:
        """`pairwise` of all rows, `[n]`, from the sums and squares of both halves."""
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
