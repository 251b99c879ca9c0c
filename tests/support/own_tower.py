"""A team's own network, in a module that can be imported."""

from typing import Any

from torch import Tensor

from transfer.model_zoo.architecture import Architecture, mlp


class Tower(Architecture):
    """A perceptron over all vectors and numbers."""

    def __init__(self, fields: int, width: int, numbers: int, **hyperparameters: Any) -> None:
        super().__init__(fields, width, numbers)
        self.layers = mlp(self.dense_width, [hyperparameters.get("units", 8)], 0.0)

    def forward(self, embeddings: Tensor, linear: Tensor | None, numbers: Tensor) -> Tensor:
        return self.layers(self.dense_input(embeddings, numbers)).squeeze(1)
