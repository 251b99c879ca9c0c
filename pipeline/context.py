"""Shared context: context columns with the same value in every row of a request, kept as one row.

The Open Inference Protocol has one row per candidate, so a value of the context arrives once per candidate. Kept once, it
is looked up, sent through the first layer, recorded and stored once.
Next stop: `pipeline.traffic.record`.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numba import boolean, int32, int64, types

from pipeline.arrays import I32
from pipeline.compiled import njit
from pipeline.features import KEPT_ARRANGEMENTS, Bag, Features, IdPart, NumberPart
from pipeline.schema import FieldSpec, Schema

__all__ = ["context_once"]

Part = TypeVar("Part", IdPart, NumberPart)
_FIRST_ROW = np.zeros(1, np.int64)


class _Sides(NamedTuple):
    """Columns of a part, split by role: their places in the part, and their places in the schema; int32 `[k]` each."""

    context: I32
    candidate: I32
    context_columns: I32
    candidate_columns: I32


def context_once(features: Features, schema: Schema, *, whole: bool = False) -> Features:
    """The same features, where context columns and bags whose rows are all equal, bit for bit, hold one row.

    Args:
        whole: separate the context only if all of it is shared, which is what the split network needs. Otherwise each
            part is separated by itself.

    Returns:
        `features` itself where nothing is separated.
    """
    if features.n < 2:
        return features
    ids: list[IdPart] = []
    numbers: list[NumberPart] = []
    bags: list[Bag] = []
    sides = schema.arrangements.setdefault(_Sides, {})
    for part in features.ids:
        if not _separate(part, schema.ids, sides, ids) and whole:
            return features
    for number in features.numbers:
        if not _separate(number, schema.numbers, sides, numbers) and whole:
            return features
    for bag in features.bags:
        if not _separate_bag(bag, schema, bags) and whole:
            return features
    before = (*features.ids, *features.numbers, *features.bags)
    if all(map(operator.is_, before, (*ids, *numbers, *bags))):
        return features
    return Features(features.n, tuple(ids), tuple(numbers), tuple(bags))


def _separate(part: Part, fields: Sequence[FieldSpec], known: dict[Any, _Sides], out: list[Part]) -> bool:
    """Append a part to `out`, its context apart if all rows agree in it; False if they do not."""
    values = part.values
    if len(values) < 2:
        out.append(part)
        return True
    kind = type(part)
    key = kind, part.columns.tobytes()
    sides = known.get(key)
    if sides is None:
        sides = _sides_of(part.columns, fields)
        if len(known) < KEPT_ARRANGEMENTS:
            known[key] = sides
    if not len(sides.context):
        out.append(part)
        return True
    if not (values.flags.c_contiguous and values.flags.aligned):
        values = np.require(values, requirements=["C", "A"])
    # Bits are compared, so that a missing number equals a missing number.
    bits = values.view(np.int64 if kind is IdPart else np.int32)
    once, each = np.empty((1, len(sides.context)), bits.dtype), np.empty((len(bits), len(sides.candidate)), bits.dtype)
    if not _take_apart(bits, sides.context, sides.candidate, once, each):
        out.append(part)
        return False
    out.append(kind(sides.context_columns, once.view(values.dtype)))
    if len(sides.candidate):
        out.append(kind(sides.candidate_columns, each.view(values.dtype)))
    return True


def _separate_bag(bag: Bag, schema: Schema, out: list[Bag]) -> bool:
    """Append a bag to `out`, its first row alone if it is context and all rows agree; False if they do not."""
    if bag.rows < 2 or schema.bags[bag.column].role != "context":
        out.append(bag)
        return True
    sizes = np.diff(bag.offsets)
    agree = bool((sizes == sizes[0]).all())
    if agree:
        values = bag.values.reshape(bag.rows, int(sizes[0]))
        agree = bool((values == values[0]).all())
    out.append(bag.take(_FIRST_ROW) if agree else bag)
    return agree


def _sides_of(columns: I32, fields: Sequence[FieldSpec]) -> _Sides:
    context = np.array([fields[c].role == "context" for c in columns], np.bool_)
    first, rest = (np.flatnonzero(side).astype(np.int32) for side in (context, ~context))
    return _Sides(first, rest, columns[first], columns[rest])


def _signature(dtype: Any) -> Any:
    values, columns = types.Array(dtype, 2, "C", readonly=True), types.Array(int32, 1, "C", readonly=True)
    out = types.Array(dtype, 2, "C")
    return boolean(values, columns, columns, out, out)


@njit([_signature(int64), _signature(int32)], nogil=True, cache=True)
def _take_apart(values: Any, context: Any, candidate: Any, once: Any, each: Any) -> bool:
    """Columns `context` of the first row into `once` `[1, c]`, columns `candidate` of all rows into `each` `[n, d]`.

    False, with `each` left as it is, if a row differs from the first in a column of the context.
    """
    for c in range(len(context)):
        once[0, c] = values[0, context[c]]
    for r in range(1, len(values)):
        for c in range(len(context)):
            if values[r, context[c]] != once[0, c]:
                return False
    for r in range(len(values)):
        for c in range(len(candidate)):
            each[r, c] = values[r, candidate[c]]
    return True
