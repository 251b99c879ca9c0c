"""The training objective: the check of a batch, and the loss of progressive distillation.

    L = a * T^2 * BCE(s / T, sigmoid(t / T)) + (1 - a) * BCE(s + log k, y)

`s` student logit, `t` teacher logit, `y` label, `a` teacher weight (0: plain training), `log k` the log of the sampling
odds ratio (0 where rows come at their natural rate). The T^2 keeps the gradient's size as T grows (Hinton, Vinyals,
Dean, arXiv 1503.02531, section 2).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from pipeline.arrays import F32, Array
from pipeline.errors import DataError
from pipeline.features import Rows
from pipeline.schema import Schema

__all__ = ["checked_labels", "distillation_loss"]


def checked_labels(schema: Schema, rows: Rows, labels: Array, teacher_logits: F32 | None) -> F32:
    """The labels of n rows as float32 `[n]`, a copy. A batch that cannot be learned from is refused whole.

    Raises:
        DataError: labels outside 0..1 or not one per row, columns that the schema does not have, numbers or teacher's
            logits that are not finite.
    """
    n = len(rows)
    y = np.array(labels, np.float32)  # a copy: a log's own arrays are read-only
    if n == 0 or y.shape != (n,) or not ((y >= 0.0) & (y <= 1.0)).all():
        raise DataError(
            f"a batch needs rows and one label from 0 to 1 for each; got {n} rows, labels {y.shape}", "label"
        )
    for kind, columns, fields in (
        ("id", rows.ids.shape[1], schema.ids),
        ("number", rows.numbers.shape[1], schema.numbers),
        ("bag", len(rows.bags), schema.bags),
    ):
        if columns != len(fields):
            names = ", ".join(field.name for field in fields) or "none"
            raise DataError(
                f"the rows have {columns} columns of kind {kind}; the schema wants {len(fields)}: {names}", kind
            )
    infinite = np.isinf(rows.numbers).any(0)
    if infinite.any():
        name = schema.numbers[int(np.argmax(infinite))].name
        raise DataError(f"number {name!r} is infinite; leave the value empty where it is missing", name)
    if teacher_logits is not None and not np.isfinite(teacher_logits).all():
        raise DataError(
            "the teacher's logits hold NaN or infinity; check the teacher before distilling", "teacher_logits"
        )
    return y


def distillation_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    teacher_logits: Tensor | None = None,
    teacher_weight: Tensor | float = 0.0,
    temperature: float = 1.0,
    label_offset: Tensor | float = 0.0,
) -> Tensor:
    """Loss per row, `[n]`.

    Args:
        logits: the student's, float32 `[n]`.
        labels: from 0 to 1, float32 `[n]`.
        teacher_logits: float32 `[n]`; None trains on labels alone, whatever `teacher_weight` is.
        teacher_weight: a, for all rows or per row.
        temperature: T.
        label_offset: log k, for all rows or per row.
    """
    label_loss: Tensor = bce(logits + label_offset, labels, reduction="none")
    if teacher_logits is None:
        return label_loss
    softened = torch.sigmoid(teacher_logits / temperature)
    teacher_loss: Tensor = temperature**2 * bce(logits / temperature, softened, reduction="none")
    return teacher_weight * teacher_loss + (1.0 - teacher_weight) * label_loss
