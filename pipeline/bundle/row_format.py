"""Storage formats of embedding rows: float32, float16, or int8 with a float32 scale per row.

float16 keeps 11 bits: a relative error of at most 2^-11 (below 2^-14 an absolute one of at most 2^-25). int8 keeps a
row as `round(row / scale)` with `scale = max|row| / 127`: an absolute error of at most `scale / 2 = max|row| / 254`.
Trainers work on float32; the format is chosen when a version is published, and used up to the lookup.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from pipeline.arrays import F32, Array
from pipeline.errors import InvalidInput

__all__ = ["RowFormat", "check_rows", "decode_rows", "encode_rows"]

RowFormat = Literal["float32", "float16", "int8"]


def encode_rows(rows: F32, stored: RowFormat) -> tuple[Array, F32 | None]:
    """Stored form of rows float32 `[V, d]`, and scales float32 `[V]` for int8.

    Raises:
        InvalidInput: a row is not finite, or too large for float16.
    """
    if stored == "float32":
        return rows, None
    largest = check_rows(rows, stored)
    if stored == "float16":
        return rows.astype(np.float16), None
    # The smallest normal number avoids a division by zero for a tiny row.
    scales = np.maximum(largest / np.float32(127), np.finfo(np.float32).tiny).astype(np.float32)
    return np.clip(np.rint(rows / scales[:, None]), -127, 127).astype(np.int8), scales


def check_rows(rows: F32, stored: RowFormat) -> F32:
    """The largest |number| of each row, float32 `[V]`, of rows float32 `[V, d]` that can be stored in a format.

    Raises:
        InvalidInput: as `encode_rows`; float32 accepts all numbers, also those that are not finite.
    """
    largest: F32 = np.abs(rows).max(axis=1, initial=0.0).astype(np.float32)
    if stored != "float32" and not np.isfinite(largest).all():
        raise InvalidInput("rows that are not finite cannot be stored; the training has diverged", "rows")
    if stored == "float16" and largest.max(initial=0.0) > np.finfo(np.float16).max:
        raise InvalidInput("a row holds numbers beyond 65504, more than float16 takes; use rows: float32", "rows")
    return largest


def decode_rows(rows: Array, scales: F32 | None) -> F32:
    """Rows float32 `[V, d]` from the results of `encode_rows`; float32 rows are returned unchanged."""
    plain: F32 = rows.astype(np.float32, copy=False)
    return plain if scales is None else plain * scales[:, None]
