"""Columns of an export: those of every log, and one per field, named like it.

A record holds its fields by place. Their names come from the endpoint's schema at the time of the export, and are in the
file's metadata; rows of other fields (an older version, an endpoint that nobody named) have `ids`, `numbers` and `bags` instead.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from pipeline.schema import Schema
from pipeline.traffic.record import ARMS

__all__ = ["FIELDS", "PACKED", "SCHEMA", "Kind", "Named", "fault"]

Kind = Literal["ids", "numbers", "bags"]
PACKED: tuple[Kind, Kind, Kind] = ("ids", "numbers", "bags")
FIELDS = b"baton.fields"
"""Key of a file's metadata: by endpoint and kind the names of its fields in order, and the columns that have them, as JSON."""
_ARM = pa.struct([("bundle", pa.string()), ("version", pa.int64()), ("score", pa.float32())])
_TEXTS = ("request_id", "candidate_text")
"""What the caller wrote, kept with `traffic.keep_text`. Exports of 0.1 have no such columns, and are read as well."""
_HOW = (
    "request_key",
    "network",
    "stable_version",
    "candidate_version",
    "inclusion_probability",
    "keep_fraction",
    "load",
)
"""How an answer came about; exports from before there were such columns are read as well."""
SCHEMA = pa.schema(
    [
        pa.field("seq", pa.int64(), False),
        pa.field("prediction_id", pa.string(), False),
        pa.field("revision", pa.int32(), False),
        pa.field("time", pa.timestamp("ms", "UTC"), False),
        pa.field("endpoint", pa.string(), False),
        pa.field("arm", pa.string(), False),
        pa.field("network", pa.string()),
        pa.field("stable_version", pa.int64()),
        pa.field("candidate_version", pa.int64()),
        pa.field("inclusion_probability", pa.float64()),
        pa.field("keep_fraction", pa.float64()),
        pa.field("load", pa.float64()),
        pa.field("overridden", pa.bool_(), False),
        pa.field("routing_hash", pa.uint64(), False),
        pa.field("candidates", pa.int32(), False),
        pa.field("index", pa.int32(), False),
        pa.field("candidate_id", pa.int64()),
        pa.field("request_key", pa.uint64()),
        *(pa.field(name, pa.string()) for name in _TEXTS),
        pa.field("position", pa.int32(), False),
        pa.field("label", pa.float32(), False),
        pa.field("previous", pa.float32()),
        *(pa.field(arm, _ARM) for arm in ARMS),
        pa.field("ids", pa.list_(pa.int64())),
        pa.field("numbers", pa.list_(pa.float32())),
        pa.field("bags", pa.list_(pa.list_(pa.int64()))),
    ],
    metadata={"baton.traffic": "1"},
)
_COLUMNS: dict[Kind, pa.DataType] = {
    "ids": pa.int64(),
    "numbers": pa.float32(),
    "bags": pa.list_(pa.field("element", pa.int64())),
}


@dataclass(frozen=True, slots=True)
class Named:
    """Which columns of a file hold which fields.

    Args:
        endpoints: by endpoint and kind, the columns of its fields in schema order.
        kinds: by column.
        fields: by column, the field's name.
    """

    endpoints: Mapping[str, Mapping[Kind, list[str]]] = field(default_factory=dict)
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, schemas: Mapping[str, Schema], drop: Collection[str] = ()) -> Named:
        """The columns of the fields of some endpoints, without those of `drop`.

        An endpoint that means something else by a name than one before it has no columns of its own.
        """
        kinds: dict[str, Kind] = {}
        fields: dict[str, str] = {}
        endpoints: dict[str, Mapping[Kind, list[str]]] = {}
        for endpoint, schema in schemas.items():
            mine: dict[Kind, list[str]] = {
                "ids": [_column(f.name) for f in schema.ids if f.name not in drop],
                "numbers": [_column(f.name) for f in schema.numbers if f.name not in drop],
                "bags": [_column(f.name) for f in schema.bags if f.name not in drop],
            }
            said = {column: kind for kind, columns in mine.items() for column in columns}
            if any(kinds.get(column, kind) != kind for column, kind in said.items()):
                continue
            endpoints[endpoint] = mine
            kinds |= said
            fields |= {_column(f.name): f.name for f in schema.fields if f.name not in drop}
        return cls(endpoints, kinds, fields)

    @classmethod
    def read(cls, metadata: Mapping[bytes, bytes], columns: Mapping[str, pa.DataType]) -> Named:
        """What a file says of itself; nothing where it says nothing.

        Raises:
            ValueError: it is not true of the file's columns.
        """
        if FIELDS not in metadata:
            return cls()
        said = json.loads(metadata[FIELDS])
        endpoints: dict[str, Mapping[Kind, list[str]]] = {}
        kinds: dict[str, Kind] = {}
        for endpoint, mine in said["endpoints"].items():
            endpoints[str(endpoint)] = {kind: [str(column) for column in mine[kind]] for kind in PACKED}
            kinds |= {column: kind for kind in PACKED for column in endpoints[endpoint][kind]}
        for column, kind in kinds.items():
            if column in SCHEMA.names or not _alike(columns[column], _COLUMNS[kind]):
                raise ValueError(f"column {column!r} does not hold {kind}")
        return cls(endpoints, kinds, {str(column): str(name) for column, name in said["fields"].items()})

    def columns(self) -> list[pa.Field]:
        """The columns, in order of the endpoints' fields."""
        return [pa.field(column, _COLUMNS[kind]) for column, kind in self.kinds.items()]

    def metadata(self) -> dict[bytes, bytes]:
        """What the file says of itself."""
        if not self.endpoints:
            return {}
        said: dict[str, Any] = {"endpoints": self.endpoints, "fields": self.fields}
        return {FIELDS: json.dumps(said).encode()}


def fault(columns: Mapping[str, pa.DataType], named: Named) -> str:
    """Why a file with these columns is no export; "": it is one, of this version or an older one."""
    for column in SCHEMA:
        if column.name not in columns:
            if column.name not in (*_TEXTS, *_HOW):
                return f"it has no column {column.name!r}"
        elif columns[column.name] != column.type:
            return f"its columns are of other types: {column.name!r} is {columns[column.name]}"
    odd = [name for name in columns if name not in SCHEMA.names and name not in named.kinds]
    return f"nothing says what its column {odd[0]!r} is" if odd else ""


def _column(name: str) -> str:
    """The column of a field: its name, where the log has no column of that name."""
    while name in SCHEMA.names:
        name = f"field_{name}"
    return name


def _alike(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a column has a type, whatever the elements of a list are called."""
    if pa.types.is_list(found) and pa.types.is_list(wanted):
        return bool(found.value_type == wanted.value_type)
    return bool(found == wanted)
