"""Base class of architectures: pooled embeddings, weights per id and numbers in, one logit per row out.

It knows nothing of ids, tables, logs or files; those are `transfer.click_model.tables` and `transfer.click_model.model`.
Layers to build an architecture from are in `transfer.model_zoo.layers`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from transfer.model_zoo.layers import SplitOutput, mlp

__all__ = ["Architecture", "mlp"]


class Architecture(nn.Module):
    """Base of all architectures.

    Args:
        fields: number F of embedded fields (ids and bags).
        width: length d of one field's vector.
        numbers: columns of the standardised numbers, missing flags included; may be 0.
        hyperparameters: of the architecture, small and explicit, JSON values only (they are stored in the manifest).
    """

    uses_linear: ClassVar[bool] = False
    """Whether there is one weight per id beside its vector (then `forward` gets `linear`)."""

    uses_embeddings: ClassVar[bool] = True
    """False when only the weights per id matter; the tables are then made as narrow as a table can be."""

    def __init__(self, fields: int, width: int, numbers: int, **hyperparameters: Any) -> None:
        super().__init__()
        self.fields, self.width, self.numbers = fields, width, numbers

    def forward(self, embeddings: Tensor, linear: Tensor | None, numbers: Tensor) -> Tensor:
        """Logits float32 `[n]` of embeddings `[n, F, d]`, linear `[n, F]` (None unless `uses_linear`) and numbers
        `[n, numbers]`, standardised and free of NaN."""
        raise NotImplementedError

    def forward_split(self, rows: SplitOutput) -> Tensor:
        """The same logits `[n]` of rows whose context is kept once per request.

        Optional: an architecture that has it is also exported as context.onnx, which serves requests whose candidates
        share their context. It is used only where the class that defines `forward` defines it too (`can_split`).
        """
        raise NotImplementedError

    @classmethod
    def can_split(cls) -> bool:
        """Whether the class that defines `forward` defines `forward_split` too."""
        owners = [next(k for k in cls.__mro__ if name in vars(k)) for name in ("forward", "forward_split")]
        return owners[0] is owners[1] and owners[0] is not Architecture

    def dense_input(self, embeddings: Tensor, numbers: Tensor) -> Tensor:
        """Vectors and numbers of a row side by side, `[n, F * d + numbers]`."""
        flat = embeddings.flatten(1)
        return torch.cat([flat, numbers], 1) if self.numbers else flat

    @property
    def dense_width(self) -> int:
        """Columns of `dense_input`."""
        return self.fields * self.width + self.numbers
