"""Reading of features by a model whose fields are not those of the request.

The arms of an endpoint may have different fields. A request has the fields of both; each arm reads its own from it, and a
field that was not sent is missing: the id of no value, NaN, an empty bag. How the columns go over is worked out once per
order of columns that callers use.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from pipeline.arrays import I32, I64
from pipeline.errors import InvalidInput
from pipeline.features import KEPT_ARRANGEMENTS, Bag, Features, IdPart, NumberPart
from pipeline.hashing import hash_value
from pipeline.schema import FieldSpec, Schema

if TYPE_CHECKING:
    from pipeline.traffic.record import PredictionRecord

__all__ = ["Missing", "Reading", "read", "read_record"]

Part = TypeVar("Part", IdPart, NumberPart)
_Places = tuple[I64 | None, I32]
_NO_ELEMENTS = np.empty(0, np.int64)


class Missing:
    """Parts of features for fields that a request has not, one row for all candidates and one part per role.

    Args:
        schema: whose columns they are.
        names: of the fields.
    """

    def __init__(self, schema: Schema, names: Collection[str]) -> None:
        self.ids = tuple(
            IdPart(columns, np.array([[hash_value(schema.ids[c].name, None) for c in columns]], np.int64))
            for columns in _by_role(schema.ids, names)
        )
        self.numbers = tuple(
            NumberPart(columns, np.full((1, len(columns)), np.nan, np.float32))
            for columns in _by_role(schema.numbers, names)
        )
        self.bags = tuple(
            Bag(column, np.zeros(2, np.int32), _NO_ELEMENTS)
            for column, field in enumerate(schema.bags)
            if field.name in names
        )


class Reading:
    """What a model reads of features that are in the columns of another schema. Serves many threads at once.

    Args:
        columns: names of the fields of the features, as of `Schema.columns`.
        schema: of the model.

    Raises:
        InvalidInput: a name is of one kind there and of another one here.
    """

    def __init__(self, columns: str, schema: Schema) -> None:
        ids, numbers, bags = names_of(columns)
        self._schema = schema
        self._ids = _places(ids, schema.ids, schema)
        self._numbers = _places(numbers, schema.numbers, schema)
        self._bags = _places(bags, schema.bags, schema).tolist()
        there = {*ids, *numbers, *bags}
        self._missing = Missing(schema, {f.name for f in schema.fields} - there)
        self._known: dict[tuple[type, bytes], _Places] = {}

    @classmethod
    def of(cls, columns: str, schema: Schema) -> Reading | None:
        """The reading of features with these columns; None where they are the schema's own. Made once per schema.

        Raises:
            InvalidInput: as of `Reading`.
        """
        if columns == schema.columns:
            return None
        key = Reading, columns
        known: Reading | None = schema.arrangements.get(key)
        if known is None:
            known = cls(columns, schema)
            if len(schema.arrangements) < KEPT_ARRANGEMENTS:
                schema.arrangements[key] = known
        return known

    def __call__(self, features: Features) -> Features:
        """The features in the columns of the schema. Their parts share memory where a part is read whole.

        Raises:
            InvalidInput: a column is none of those that were named.
        """
        missing = self._missing
        return Features(
            features.n,
            (*self._parts(features.ids, self._ids), *missing.ids),
            (*self._parts(features.numbers, self._numbers), *missing.numbers),
            (*[b for bag in features.bags if (b := self._bag(bag)) is not None], *missing.bags),
        )

    def _parts(self, parts: Sequence[Part], places: I32) -> list[Part]:
        return [found for part in parts if (found := self._part(part, places)) is not None]

    def _part(self, part: Part, places: I32) -> Part | None:
        kind = type(part)
        key = kind, part.columns.tobytes()
        known = self._known.get(key)
        if known is None:
            if len(part.columns) and not 0 <= part.columns.min() <= part.columns.max() < len(places):
                raise InvalidInput(f"a column outside of the {len(places)} that were named")
            columns = places[part.columns]
            mine = np.flatnonzero(columns >= 0)
            known = (None if len(mine) == len(columns) else mine), columns[mine]
            if len(self._known) < KEPT_ARRANGEMENTS:
                self._known[key] = known
        taken, columns = known
        if not len(columns):
            return None
        return kind(columns, part.values if taken is None else np.ascontiguousarray(part.values[:, taken]))

    def _bag(self, bag: Bag) -> Bag | None:
        if bag.column >= len(self._bags):
            raise InvalidInput(f"a bag outside of the {len(self._bags)} that were named")
        column = self._bags[bag.column]
        return None if column < 0 else bag if column == bag.column else Bag(column, bag.offsets, bag.values)


def read(features: Features, columns: str, schema: Schema) -> Features:
    """Features in the columns `columns` as a model of `schema` reads them, checked.

    Raises:
        InvalidInput: they do not fit (`Reading`, `Features.check`).
    """
    reading = Reading.of(columns, schema)
    found = features if reading is None else reading(features)
    found.check(schema)
    return found


def read_record(record: PredictionRecord, schema: Schema, known: Mapping[str, Schema]) -> Features:
    """The features of a record as a model of `schema` reads them, checked.

    Args:
        known: fields of bundles by name. A record that does not name its columns has those of the bundle that answered;
            of a bundle that is not known they are taken for those of `schema`.

    Raises:
        InvalidInput: they do not fit.
    """
    answered = known.get(record.bundle, schema)
    return read(record.features, record.fields or answered.columns, schema)


def names_of(columns: str) -> tuple[list[str], list[str], list[str]]:
    """Names of ids, numbers and bags of `Schema.columns`.

    Raises:
        InvalidInput: it is no such text.
    """
    groups = columns.split(";")
    if len(groups) != 3:
        raise InvalidInput(f"{columns[:100]!r} does not name ids, numbers and bags")
    ids, numbers, bags = ([name for name in group.split(",") if name] for group in groups)
    return ids, numbers, bags


def _places(names: Sequence[str], fields: Sequence[FieldSpec], schema: Schema) -> I32:
    """The column of each name among `fields`, int32 `[len(names)]`; -1 for one that the schema has not."""
    own = {field.name: column for column, field in enumerate(fields)}
    kinds = {field.name: field.kind for field in schema.fields}
    for name in names:
        if name not in own and name in kinds:
            raise InvalidInput(f"field {name!r} is of kind {kinds[name]} in the model and of another kind here", name)
    return np.array([own.get(name, -1) for name in names], np.int32)


def _by_role(fields: Sequence[FieldSpec], names: Collection[str]) -> list[I32]:
    """Columns of the named fields, those of one role together."""
    roles = [
        [column for column, field in enumerate(fields) if field.role == role and field.name in names]
        for role in ("context", "candidate")
    ]
    return [np.array(columns, np.int32) for columns in roles if columns]
