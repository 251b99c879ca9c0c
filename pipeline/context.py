"""Context that a caller repeated for every candidate, kept once.

Tensors of the Open Inference Protocol have a row per candidate, so what belongs to the request comes n times. A record
of it need not keep it n times: at 60 % context fields that is more than half of what is written, stored and read again.
Next stop: `pipeline.traffic.record`.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from numba import boolean, int32, int64, types

from pipeline.compiled import njit
from pipeline.features import Features, IdPart, NumberPart
from pipeline.schema import Schema

__all__ = ["context_once"]

I32 = npt.NDArray[np.int32]
Part = TypeVar("Part", IdPart, NumberPart)


def context_once(features: Features, schema: Schema) -> Features:
    """The same features, with context columns whose rows are all equal as parts of one row.

    `features` itself where nothing is repeated. A context that differs between candidates stays as it came.
    """
    context_ids, context_numbers = schema.context_columns
    ids = [piece for part in features.ids for piece in _pieces(part, context_ids)]
    numbers = [piece for part in features.numbers for piece in _pieces(part, context_numbers)]
    if len(ids) == len(features.ids) and len(numbers) == len(features.numbers):
        return features
    return Features(features.n, tuple(ids), tuple(numbers), features.bags)


def _pieces(part: Part, context: npt.NDArray[np.bool_]) -> list[Part]:
    """A part as it is, or its context and the rest."""
    values = part.values
    if len(values) < 2:
        return [part]
    once = context[part.columns]
    count = int(np.count_nonzero(once))
    # Bits are compared, so that a missing number equals a missing number.
    bits = np.ascontiguousarray(values).view(np.int64 if values.itemsize == 8 else np.int32)
    shared, rest = np.empty((1, count), bits.dtype), np.empty((len(bits), len(once) - count), bits.dtype)
    if not count or not _separate(bits, once, shared, rest):
        return [part]
    kind = type(part)
    pieces = [kind(part.columns[once], shared.view(values.dtype))]
    if rest.shape[1]:
        pieces.append(kind(part.columns[~once], rest.view(values.dtype)))
    return pieces


def _signature(dtype: Any) -> Any:
    values, out = types.Array(dtype, 2, "C", readonly=True), types.Array(dtype, 2, "C")
    return boolean(values, types.Array(boolean, 1, "C", readonly=True), out, out)


@njit([_signature(int64), _signature(int32)], nogil=True, cache=True)
def _separate(values: Any, once: Any, shared: Any, rest: Any) -> bool:
    """Columns of `values` `[r, k]` that are `once` into `shared` `[1, s]`, the others into `rest` `[r, k - s]`.

    False, with both left half-written, as soon as a row differs from the first in a column that is `once`.
    """
    for i in range(values.shape[0]):
        to_shared, to_rest = 0, 0
        for j in range(values.shape[1]):
            if not once[j]:
                rest[i, to_rest] = values[i, j]
                to_rest += 1
            elif i == 0:
                shared[0, to_shared] = values[0, j]
                to_shared += 1
            elif values[i, j] != values[0, j]:
                return False
    return True
