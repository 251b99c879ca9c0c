"""Features: rows of hashed ids, numbers and bags, from a socket, a record or a log to the network.

`Features` keeps context once: every part holds either one row for all candidates or one row per candidate. The request
path and the prediction record use this form. `Features.rows` expands it to the dense form that training uses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from pipeline.arrays import F32, I32, I64, Array, Index
from pipeline.errors import InvalidInput
from pipeline.schema import FieldSpec, Schema

__all__ = [
    "KEPT_ARRANGEMENTS",
    "MOST_VALUES",
    "Bag",
    "Features",
    "IdPart",
    "NumberPart",
    "Role",
    "Rows",
    "concat_rows",
    "refuse_infinite",
]

Role = Literal["context", "candidate"]
_Arrangement = tuple[tuple[Role | None, ...], tuple[Role | None, ...], tuple[Role, ...]]

MOST_VALUES = 1 << 26
"""Most values of the dense form of one request."""
KEPT_ARRANGEMENTS = 256
"""Orders of a request's columns that are remembered; clients use a few."""


@dataclass(frozen=True, slots=True)
class IdPart:
    """Id columns: `columns` int32 `[k]` index `Schema.ids`; `values` int64 `[r, k]`, r is 1 or n."""

    columns: I32
    values: I64


@dataclass(frozen=True, slots=True)
class NumberPart:
    """Number columns: `columns` int32 `[k]` index `Schema.numbers`; `values` float32 `[r, k]`, r is 1 or n."""

    columns: I32
    values: F32


@dataclass(frozen=True, slots=True)
class Bag:
    """One bag column, ragged: `column` indexes `Schema.bags`; `offsets` int32 `[r + 1]`; `values` int64; r is 1 or n."""

    column: int
    offsets: I32
    values: I64

    @property
    def rows(self) -> int:
        return len(self.offsets) - 1

    def take(self, index: Index) -> Bag:
        """The bags of the rows `index`, in that order."""
        sizes = np.diff(self.offsets)[index]
        offsets = np.zeros(len(index) + 1, np.int32)
        np.cumsum(sizes, out=offsets[1:])
        within = np.arange(int(offsets[-1]), dtype=np.int64) - np.repeat(offsets[:-1].astype(np.int64), sizes)
        return Bag(
            self.column, offsets, self.values[np.repeat(self.offsets[:-1][index].astype(np.int64), sizes) + within]
        )


@dataclass(frozen=True, slots=True)
class Rows:
    """Dense rows: `ids` int64 `[n, F]`, `numbers` float32 `[n, M]` (NaN is missing), one `Bag` of n rows per bag field."""

    ids: I64
    numbers: F32
    bags: tuple[Bag, ...] = ()

    def __len__(self) -> int:
        return len(self.ids) if self.ids.shape[1] or not self.numbers.shape[1] else len(self.numbers)

    def take(self, index: Index) -> Rows:
        """The rows `index`, copied, in that order."""
        return Rows(self.ids[index], self.numbers[index], tuple(b.take(index) for b in self.bags))

    def slice(self, start: int, stop: int) -> Rows:
        """Rows start..stop; ids and numbers are views."""
        bags = tuple(
            Bag(b.column, b.offsets[start : stop + 1] - b.offsets[start], b.values[b.offsets[start] : b.offsets[stop]])
            for b in self.bags
        )
        return Rows(self.ids[start:stop], self.numbers[start:stop], bags)


def concat_rows(chunks: Sequence[Rows]) -> Rows:
    """Rows of several chunks, concatenated."""
    if len(chunks) == 1:
        return chunks[0]
    bags = []
    for b in range(len(chunks[0].bags)):
        parts = [c.bags[b] for c in chunks]
        sizes = np.concatenate([np.diff(p.offsets) for p in parts])
        offsets = np.zeros(len(sizes) + 1, np.int32)
        np.cumsum(sizes, out=offsets[1:])
        bags.append(Bag(parts[0].column, offsets, np.concatenate([p.values for p in parts])))
    return Rows(np.concatenate([c.ids for c in chunks]), np.concatenate([c.numbers for c in chunks]), tuple(bags))


@dataclass(frozen=True, slots=True)
class Features:
    """The candidates of one request: `n` rows in parts, context parts holding one row for all."""

    n: int
    ids: tuple[IdPart, ...] = ()
    numbers: tuple[NumberPart, ...] = ()
    bags: tuple[Bag, ...] = ()

    @property
    def absent(self) -> bool:
        """Whether there are none: a prediction that was answered elsewhere may be known by its scores alone."""
        return not (self.ids or self.numbers or self.bags)

    @classmethod
    def from_rows(cls, rows: Rows) -> Features:
        """Dense rows as features of one part per kind; nothing is copied."""
        n, columns = rows.ids.shape
        return cls(
            n if columns else len(rows.numbers),
            (IdPart(_all_columns(columns), rows.ids),) if columns else (),
            (NumberPart(_all_columns(rows.numbers.shape[1]), rows.numbers),) if rows.numbers.shape[1] else (),
            rows.bags,
        )

    @classmethod
    def from_context(cls, schema: Schema, rows: Rows) -> Features:
        """Dense rows of one request with the context fields kept once, taken from the first row."""
        n = len(rows)
        bags = tuple(
            b.take(np.zeros(1, np.int64)) if n and schema.bags[b.column].role == "context" else b for b in rows.bags
        )
        return cls(
            n,
            tuple(IdPart(columns, values) for columns, values in _by_role(schema.ids, rows.ids)),
            tuple(NumberPart(columns, values) for columns, values in _by_role(schema.numbers, rows.numbers)),
            bags,
        )

    def rows(self, schema: Schema | None, index: Index | None = None) -> Rows:
        """The dense form of all rows, or of the rows of `index` in that order.

        Args:
            schema: gives the number of columns; None: up to the last column of a part, for a log without a schema.

        Raises:
            InvalidInput: see `refuse_vast`.
        """
        self.refuse_vast(self.n if index is None else len(index))
        wanted = np.arange(self.n) if index is None else index
        bags = tuple(
            b.take(np.zeros(len(wanted), np.int64) if b.rows == 1 else wanted)
            for b in sorted(self.bags, key=lambda b: b.column)
        )
        return Rows(
            _dense(self.ids, wanted, np.int64, None if schema is None else len(schema.ids)),
            _dense(self.numbers, wanted, np.float32, None if schema is None else len(schema.numbers)),
            bags,
        )

    def refuse_vast(self, rows: int) -> None:
        """Check the size of the dense form of so many rows, in which each has its own copy of the context.

        Raises:
            InvalidInput: it has more than `MOST_VALUES`.
        """
        bags = sum(len(b.values) for b in self.bags if b.rows == 1)
        values = rows * (_width(self.ids) + _width(self.numbers) + bags)
        if values > MOST_VALUES:
            raise InvalidInput(f"{rows} rows of {values // rows} values each; all of them have {MOST_VALUES} at most")

    def shares_context(self, schema: Schema) -> bool:
        """Whether context is apart: each part holds fields of one role, and parts of the context hold one row.

        `self` has passed `check`.
        """
        ids, numbers, bags = self._arrangement(schema)
        typed: tuple[IdPart | NumberPart, ...] = (*self.ids, *self.numbers)
        for part, role in zip(typed, (*ids, *numbers), strict=True):
            if role is None or (role == "context" and len(part.values) != 1):
                return False
        return all(role != "context" or bag.rows == 1 for bag, role in zip(self.bags, bags, strict=True))

    def check(self, schema: Schema) -> None:
        """Check the parts against a schema.

        Raises:
            InvalidInput: a column is missing or given twice, a part has neither 1 nor n rows, a number is infinite.
        """
        self._arrangement(schema)
        rows = (1, self.n)
        typed: tuple[IdPart | NumberPart, ...] = (*self.ids, *self.numbers)
        for p in typed:
            shape = p.values.shape
            if len(shape) != 2 or shape[1] != len(p.columns):
                raise InvalidInput(f"a part of shape {list(shape)} where {len(p.columns)} columns were named")
            if shape[0] not in rows:
                raise _wrong_rows(shape[0], self.n)
        for b in self.bags:
            if (
                not len(b.offsets)
                or b.offsets[0] != 0
                or b.offsets[-1] != len(b.values)
                or (b.offsets[1:] < b.offsets[:-1]).any()
            ):
                name = schema.bags[b.column].name
                raise InvalidInput(f"offsets of bag {name!r} must rise from 0 to its {len(b.values)} values", name)
            if b.rows not in rows:
                raise _wrong_rows(b.rows, self.n)
        for part in self.numbers:
            refuse_infinite(part.values, schema.numbers, part.columns)

    def _arrangement(self, schema: Schema) -> _Arrangement:
        """The roles of the parts, after a check that they cover the schema; remembered for requests with the same
        columns.

        Raises:
            InvalidInput: a column is missing or given twice.
        """
        key = (
            *(p.columns.tobytes() for p in self.ids), None,
            *(p.columns.tobytes() for p in self.numbers), None,
            *(b.column for b in self.bags),
        )  # fmt: skip
        known: _Arrangement | None = schema.arrangements.get(key)
        if known is None:
            typed: tuple[IdPart | NumberPart, ...] = (*self.ids, *self.numbers)
            for p in typed:
                if p.columns.dtype != np.int32 or p.columns.ndim != 1:
                    raise InvalidInput(
                        f"columns of a part are int32 [k], not {p.columns.dtype} {list(p.columns.shape)}"
                    )
            ids, numbers, bags = (
                [p.columns for p in self.ids],
                [p.columns for p in self.numbers],
                [b.column for b in self.bags],
            )
            _cover("ids", schema.ids, ids)
            _cover("numbers", schema.numbers, numbers)
            _cover("bags", schema.bags, [np.array(bags, np.int32)] if bags else [])
            known = _roles(schema.ids, ids), _roles(schema.numbers, numbers), tuple(schema.bags[b].role for b in bags)
            if len(schema.arrangements) < KEPT_ARRANGEMENTS:
                schema.arrangements[key] = known
        return known


def refuse_infinite(values: F32, fields: Sequence[FieldSpec], columns: Sequence[int] | I32) -> None:
    """Check the numbers of `columns` of a schema's number fields, float32 `[n, k]`.

    Raises:
        InvalidInput: one is infinite.
    """
    infinite = np.isinf(values)
    if infinite.any():
        name = fields[columns[int(np.argmax(infinite.any(axis=0)))]].name
        raise InvalidInput(f"number {name!r} is infinite; send NaN where a value is missing", name)


def _by_role(fields: Sequence[FieldSpec], values: Array) -> Iterator[tuple[I32, Array]]:
    """Columns of the context with their first row, then columns of the candidates with all rows; none without fields."""
    for role, stop in (("context", 1), ("candidate", len(values))):
        columns = np.array([c for c, field in enumerate(fields) if field.role == role], np.int32)
        if len(columns):
            yield columns, np.ascontiguousarray(values[:stop, columns])


def _dense(parts: Sequence[IdPart | NumberPart], index: Index, dtype: Any, width: int | None) -> Array:
    """Values of the rows `index`, `[len(index), width]`; without a width, up to the last column of a part."""
    if width is None:
        width = _width(parts)
    dense = np.zeros((len(index), width), dtype)
    for part in parts:
        dense[:, part.columns] = part.values if len(part.values) == 1 else part.values[index]
    return dense


def _width(parts: Sequence[IdPart | NumberPart]) -> int:
    return max((int(p.columns.max()) + 1 for p in parts if len(p.columns)), default=0)


@lru_cache(maxsize=64)
def _all_columns(count: int) -> I32:
    return np.arange(count, dtype=np.int32)


def _wrong_rows(found: int, n: int) -> InvalidInput:
    return InvalidInput(f"{found} rows where {n} candidates (or one row of context) were expected")


def _roles(fields: Sequence[FieldSpec], parts: Sequence[I32]) -> tuple[Role | None, ...]:
    """The role of each part's fields, None where they are of both."""
    roles = [{fields[c].role for c in part.tolist()} for part in parts]
    return tuple(r.pop() if len(r) == 1 else None for r in roles)


def _cover(what: str, fields: Sequence[FieldSpec], columns: Sequence[I32]) -> None:
    given = np.concatenate(columns) if len(columns) > 1 else columns[0] if columns else np.zeros(0, np.int32)
    if np.array_equal(np.sort(given), np.arange(len(fields))):
        return
    wanted = given.tolist()
    for position, field in enumerate(fields):
        count = wanted.count(position)
        if count != 1:
            problem = "is missing" if not count else "is given twice"
            raise InvalidInput(f"field {field.name!r} {problem} ({what})", field.name)
    raise InvalidInput(f"{len(wanted)} columns of {what} where the schema has {len(fields)}")
