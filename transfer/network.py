"""The dense network of a model: one architecture behind the inputs that every bundle's network has.

Raw numbers come in, so transform, fill and missing flag are part of the exported graph and no caller can get them
wrong. Next stop: `transfer.model` (training it) and `transfer.export` (writing it as ONNX).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline.errors import DataError, InvalidInput
from pipeline.schema import Schema
from transfer.model_zoo import resolve

__all__ = ["Network", "NumberTransform"]


class NumberTransform(nn.Module):
    """Raw numbers `[n, M]` to `[n, 2M]`: standardised values, then missing flags.

    A field with transform `log1p` goes through `sign(x) * log(1 + |x|)` first. Mean and deviation are those of the rows
    given to `fit`; a missing value (NaN) becomes 0, the mean, and raises its flag.
    """

    mean: Tensor
    scale: Tensor
    logged: Tensor

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        count = len(schema.numbers)
        self._names = [f.name for f in schema.numbers]
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("scale", torch.ones(count))
        logged = torch.tensor([float(f.transform == "log1p") for f in schema.numbers])
        self.register_buffer("logged", logged, persistent=False)

    def fit(self, numbers: npt.NDArray[np.float32]) -> None:
        """Take mean and deviation from rows float32 `[n, M]`; a column that is always missing or constant keeps scale 1.

        Raises:
            DataError: a number is infinite.
        """
        x = torch.from_numpy(np.ascontiguousarray(numbers))
        infinite = torch.isinf(x).any(0)
        if bool(infinite.any()):
            name = self._names[int(infinite.nonzero()[0])]
            raise DataError(f"number {name!r} is infinite; leave the value empty where it is missing", name)
        x = self._transform(x).double()
        known = ~torch.isnan(x)
        count = known.sum(0).clamp(min=1)
        filled = torch.where(known, x, torch.zeros_like(x))
        mean = filled.sum(0) / count
        deviation = torch.where(known, x - mean, torch.zeros_like(x)).square().sum(0).div(count).sqrt()
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(deviation > 1e-6, 1.0 / deviation.clamp(min=1e-6), torch.ones_like(deviation)))

    def forward(self, numbers: Tensor) -> Tensor:
        missing = torch.isnan(numbers)
        value = (self._transform(numbers) - self.mean) * self.scale
        return torch.cat([torch.where(missing, torch.zeros_like(value), value), missing.to(value.dtype)], 1)

    def _transform(self, numbers: Tensor) -> Tensor:
        # Mixed by weights instead of a branch: NaN stays NaN either way and the graph stays short.
        logged = torch.sign(numbers) * torch.log(1.0 + torch.abs(numbers))
        return torch.where(self.logged > 0, logged, numbers)


class Network(nn.Module):
    """`embeddings` [n, F * d], `linear` [n, F], `numbers` [n, M] raw -> `logit` [n].

    Args:
        schema: fields; widths are taken from `width`.
        arch: name of the architecture, see `transfer.model_zoo.resolve`.
        width: length of a field's vector.
        hyperparameters: for the architecture.

    Raises:
        InvalidInput: the schema has no field with vectors, or the architecture refuses its hyperparameters.
    """

    def __init__(self, schema: Schema, arch: str, width: int, hyperparameters: dict[str, Any]) -> None:
        super().__init__()
        kind = resolve(arch)
        if not schema.embedded:
            raise InvalidInput("the schema has only numbers; add at least one field of kind id or bag", "fields")
        self.fields, self.width = len(schema.embedded), width
        self.transform = NumberTransform(schema) if schema.numbers else None
        try:
            self.body = kind(self.fields, width, 2 * len(schema.numbers), **hyperparameters)
        except TypeError as error:
            raise InvalidInput(f"architecture {arch!r}: {error}", "hyperparameters") from None
        self.uses_linear = kind.uses_linear

    def forward(self, embeddings: Tensor, linear: Tensor | None = None, numbers: Tensor | None = None) -> Tensor:
        vectors = embeddings.view(-1, self.fields, self.width)
        if self.transform is None or numbers is None:
            return self._logit(vectors, linear, embeddings.new_zeros(embeddings.shape[0], 0))
        return self._logit(vectors, linear, self.transform(numbers))

    def _logit(self, vectors: Tensor, linear: Tensor | None, numbers: Tensor) -> Tensor:
        logit: Tensor = self.body(vectors, linear, numbers)
        return logit
