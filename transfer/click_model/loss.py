"""The loss of progressive distillation, and of plain training as its special case.

    L = a * T^2 * BCE(s / T, sigmoid(t / T)) + (1 - a) * BCE(s + log k, y)

`s` student logit, `t` teacher logit, `y` label, `log k` the log of the sampling odds ratio (0 where rows come at their
natural rate). The T^2 keeps the gradient's size as T grows (Hinton, Vinyals, Dean, arXiv 1503.02531, section 2).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as bce

__all__ = ["distillation_loss"]


def distillation_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    teacher_logits: Tensor | None = None,
    a: Tensor | float = 0.0,
    temperature: float = 1.0,
    label_offset: Tensor | float = 0.0,
) -> Tensor:
    """Loss per row, `[n]`.

    Args:
        logits: the student's, float32 `[n]`.
        labels: from 0 to 1, float32 `[n]`.
        teacher_logits: float32 `[n]`; None trains on labels alone, whatever `a` is.
        a: share of the teacher's term, for all rows or per row.
        temperature: T.
        label_offset: log k, for all rows or per row.
    """
    label_loss: Tensor = bce(logits + label_offset, labels, reduction="none")
    if teacher_logits is None:
        return label_loss
    softened = torch.sigmoid(teacher_logits / temperature)
    teacher_loss: Tensor = temperature**2 * bce(logits / temperature, softened, reduction="none")
    return a * teacher_loss + (1.0 - a) * label_loss
