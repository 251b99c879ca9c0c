"""Slices of the traffic by the value of one field. The slice of a row follows from the hashed record alone.

The slice of an id is its hash; that of a number is its sign and power of two, so that a number with millions of values has
a few dozen slices. Bags have none: a row of a bag would belong to several. This file knows records; `analysis` sums them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.arrays import I32, I64, Array
from pipeline.errors import InvalidInput
from pipeline.features import Features, IdPart, NumberPart
from pipeline.hashing import canonical, hash_value
from pipeline.schema import Schema
from serving.rollout.sums.blocks import Slice

__all__ = ["OTHER_INDEX", "Slices"]


MAX_VALUES = 32
"""Slices per field, the first values seen; rows of all further values form one slice."""
OTHER_INDEX = 0
"""Code of the slice of all further values: no id is 0."""
_ZERO_CODE, _MISSING_CODE = 1, 2
_MIDDLE_VALUES = 2000


class Slices:
    """The slices of an endpoint's traffic.

    Args:
        schema: of the endpoint's arms.
        fields: names of the id and number fields to slice by.
        named: (field, raw value) of slices that are always followed.

    Raises:
        InvalidInput: a field is not in the schema, or is a bag; a value is named of a number.
    """

    def __init__(self, schema: Schema, fields: Sequence[str], named: Sequence[tuple[str, Any]] = ()) -> None:
        self.fields = tuple(dict.fromkeys([*fields, *(field for field, _ in named)]))
        self._places: dict[str, tuple[type[IdPart] | type[NumberPart], int]] = {}
        ids = [field.name for field in schema.ids]
        numbers = [field.name for field in schema.numbers]
        for name in self.fields:
            if name in ids:
                self._places[name] = (IdPart, ids.index(name))
            elif name in numbers:
                self._places[name] = (NumberPart, numbers.index(name))
            else:
                known = ", ".join([*ids, *numbers])
                raise InvalidInput(f"{name!r} is no id and no number of the arms' inputs; there are {known}", name)
        self._names: dict[Slice, str] = {}
        for field, value in named:
            if self._places[field][0] is NumberPart:
                raise InvalidInput(f"{field!r} is a number, whose parts cannot be named; name values of an id", field)
            self._names[field, hash_value(field, value)] = f"{field}={canonical(value)}"
        self._seen: dict[str, set[int]] = {
            name: {code for at, code in self._names if at == name} for name in self.fields
        }

    def of(self, features: Features, rows: I32) -> Mapping[str, I64]:
        """Slice codes of rows `[m]` of a request by field: int64 `[m]`, or `[1]` where all rows share one."""
        return {name: self._codes(features, rows, *place) for name, place in self._places.items()}

    def bounded(self, field: str, codes: I64) -> I64:
        """The codes `[n]`, with those beyond MAX_VALUES replaced by OTHER_INDEX. Those that come first are followed."""
        seen = self._seen[field]
        different, first = np.unique(codes, return_index=True)
        for code in different[np.argsort(first)].tolist():
            if code not in seen and len(seen) < MAX_VALUES:
                seen.add(code)
        known: I64 = np.where(np.isin(codes, list(seen)), codes, OTHER_INDEX)
        return known

    @property
    def named(self) -> frozenset[Slice]:
        """Slices that are always followed."""
        return frozenset(self._names)

    def save(self) -> dict[str, list[int]]:
        """Values that are followed, by field, for `restore`."""
        return {field: sorted(seen) for field, seen in self._seen.items()}

    def restore(self, followed: Mapping[str, Sequence[int]]) -> None:
        """Follow the values of `save`."""
        for field, seen in followed.items():
            self._seen[field] |= set(seen)

    def name(self, part: Slice) -> str:
        """Display name of a slice: `tab=1` for a named value, `tab=#1f..` by its hash, `price in [4, 8)` of a number."""
        field, code = part
        if part in self._names:
            return self._names[part]
        if code == OTHER_INDEX:
            return f"{field} of other values"
        if self._places[field][0] is IdPart:
            return f"{field}=#{code & (1 << 64) - 1:016x}"
        if code == _MISSING_CODE:
            return f"{field} missing"
        if code == _ZERO_CODE:
            return f"{field} is 0"
        power = abs(code) - _MIDDLE_VALUES
        low, high = 2.0 ** (power - 1), 2.0**power
        return f"{field} in [{low:g}, {high:g})" if code > 0 else f"{field} in (-{high:g}, -{low:g}]"

    def _codes(self, features: Features, rows: I32, kind: type[IdPart] | type[NumberPart], column: int) -> I64:
        parts: Sequence[IdPart | NumberPart] = features.ids if kind is IdPart else features.numbers
        for part in parts:
            at = np.flatnonzero(part.columns == column)
            if len(at):
                values = part.values[:, at[0]]
                chosen = values if len(values) == 1 else values[rows]
                return chosen.astype(np.int64) if kind is IdPart else _powers(chosen)
        return np.array([OTHER_INDEX], np.int64)


def _powers(numbers: Array) -> I64:
    """Sign and power of two of numbers `[n]` as int64 codes; 0 and NaN have codes of their own."""
    values = numbers.astype(np.float64)
    missing = ~np.isfinite(values)
    _, power = np.frexp(np.where(missing, 0.0, values))
    codes = np.where(values < 0, -1, 1) * (power.astype(np.int64) + _MIDDLE_VALUES)
    codes = np.where(values == 0, _ZERO_CODE, codes)
    found: I64 = np.where(missing, _MISSING_CODE, codes).astype(np.int64)
    return found
