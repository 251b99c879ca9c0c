"""What a batch must be before a model learns from it: refused whole, with nothing changed, or fit to train on."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import DataError
from pipeline.features import Rows
from pipeline.schema import Schema

__all__ = ["checked_labels"]

F32 = npt.NDArray[np.float32]


def checked_labels(schema: Schema, rows: Rows, labels: npt.NDArray[Any], teacher_logits: F32 | None) -> F32:
    """The labels of n rows as float32 `[n]`, a copy.

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
    for kind, found, fields in (
        ("id", rows.ids.shape[1], schema.ids),
        ("number", rows.numbers.shape[1], schema.numbers),
        ("bag", len(rows.bags), schema.bags),
    ):
        if found != len(fields):
            names = ", ".join(field.name for field in fields) or "none"
            raise DataError(
                f"the rows have {found} columns of kind {kind}; the schema wants {len(fields)}: {names}", kind
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
