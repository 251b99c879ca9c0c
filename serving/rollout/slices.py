"""Slices of the traffic by the value of one field: which slice a row belongs to, from the hashed record alone.

An id's part is its hash; a number's is its sign and power of two, so that a number with millions of values has a few
dozen parts. Bags have no parts: a row of a bag would belong to several. Knows records, not figures; `analysis` sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import InvalidInput
from pipeline.features import Features, IdPart, NumberPart
from pipeline.hashing import canonical, hash_value
from pipeline.schema import Schema
from serving.rollout.blocks import Slice

__all__ = ["OTHER_INDEX", "Slices"]

I64 = npt.NDArray[np.int64]

MAX_VALUES = 32
"""Parts per field that are followed by themselves, the first ones seen; rows of all further values are one part."""
OTHER_INDEX = 0
"""The part of all further values: no id is 0."""
_ZERO_CODE, _MISSING_CODE = 1, 2
_MIDDLE_VALUES = 2000


class Slices:
    """Which fields are looked at in parts.

    Args:
        schema: of the endpoint's arms.
        fields: names of its id and number fields.
        named: (field, raw value) that are followed whatever else there is.

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

    @property
    def named(self) -> tuple[Slice, ...]:
        """Parts that were named."""
        return tuple(self._names)

    def of(self, features: Features, rows: npt.NDArray[np.int32]) -> Mapping[str, I64]:
        """Part of each of some rows `[m]` of a request by field: int64 `[m]`, or `[1]` where all rows share it."""
        return {name: self._codes(features, rows, *place) for name, place in self._places.items()}

    def bounded(self, field: str, codes: I64) -> I64:
        """The same parts `[n]` with those beyond the most that are followed replaced by OTHER."""
        seen = self._seen[field]
        for code in np.unique(codes).tolist():
            if code not in seen and len(seen) < MAX_VALUES:
                seen.add(code)
        known: I64 = np.where(np.isin(codes, list(seen)), codes, OTHER_INDEX)
        return known

    def name(self, part: Slice) -> str:
        """A part in words: `tab=1` where the value was named, `tab=#1f..` by its hash, `price in [4, 8)` of a number."""
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

    def _codes(
        self, features: Features, rows: npt.NDArray[np.int32], kind: type[IdPart] | type[NumberPart], column: int
    ) -> I64:
        parts: Sequence[IdPart | NumberPart] = features.ids if kind is IdPart else features.numbers
        for part in parts:
            at = np.flatnonzero(part.columns == column)
            if len(at):
                values = part.values[:, at[0]]
                chosen = values if len(values) == 1 else values[rows]
                return chosen.astype(np.int64) if kind is IdPart else _powers(chosen)
        return np.array([OTHER_INDEX], np.int64)


def _powers(numbers: npt.NDArray[Any]) -> I64:
    """Sign and power of two of numbers `[n]` as int64 codes; 0 and NaN have codes of their own."""
    values = numbers.astype(np.float64)
    missing = ~np.isfinite(values)
    _, power = np.frexp(np.where(missing, 0.0, values))
    codes = np.where(values < 0, -1, 1) * (power.astype(np.int64) + _MIDDLE_VALUES)
    codes = np.where(values == 0, _ZERO_CODE, codes)
    found: I64 = np.where(missing, _MISSING_CODE, codes).astype(np.int64)
    return found
