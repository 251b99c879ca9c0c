"""Fields of a model that comes with its own tables: from a schema file or a list, with the index and width of their tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pipeline.documents import parse_yaml
from pipeline.errors import DataError
from pipeline.faults import faults_of, told
from pipeline.schema import MISSING_TEXTS, FieldSpec, Schema
from transfer.bundles.importing.tables.table import Table

__all__ = ["Fields", "fields_of"]


@dataclass(frozen=True, slots=True)
class Fields:
    """Fields in order, without widths."""

    fields: tuple[FieldSpec, ...]

    def with_widths(self, widths: Mapping[str, int]) -> Schema:
        """The schema of a bundle whose tables have these widths.

        Raises:
            DataError: a table is missing, or no field reads it.
        """
        read = {f.table_name for f in self.fields if f.kind != "number"}
        for table in read - set(widths):
            raise DataError(
                f"tables: there is none for {table!r}; tables are {', '.join(sorted(widths)) or 'none'}", table
            )
        for table in set(widths) - read:
            raise DataError(f"tables: no field reads {table!r}; tables that are read: {', '.join(sorted(read))}", table)
        made = []
        for field in self.fields:
            if field.kind != "number":
                pooling = "mean" if field.kind == "bag" else None
                update = {"width": widths[field.table_name], "table": field.table_name, "pooling": pooling}
                field = field.model_copy(update=update)
            made.append(field)
        return Schema(fields=tuple(made))


def fields_of(schema: Any, tables: Mapping[str, Table]) -> Fields:
    """The fields of a schema file, a mapping with `fields`, a list of fields or a `Schema`; indices are those of the tables.

    Raises:
        DataError: they cannot be read; the message names file and field.
    """
    place = "schema"
    if isinstance(schema, str | Path):
        place, path = str(schema), Path(schema)
        try:
            schema = parse_yaml(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise DataError(f"{path}: cannot be read: {error}", "schema") from None
    if isinstance(schema, Schema):
        schema = schema.fields
    given = schema.get("fields") if isinstance(schema, Mapping) else schema
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise DataError(f"{place}: a list of fields was expected", "fields")
    made: list[FieldSpec] = []
    faults, at_fault = list[str](), list[str]()
    for field in given:
        try:
            spec = field if isinstance(field, FieldSpec) else FieldSpec.model_validate(field)
        except ValidationError as error:
            name = field.get("name", "") if isinstance(field, Mapping) else ""
            faults += [f"field {name!r}: {fault}" for fault in faults_of(error)]
            at_fault.append(str(name))
            continue
        if spec.kind != "number" and "missing" not in spec.model_fields_set:
            spec = spec.model_copy(update={"missing": MISSING_TEXTS})
        table = tables.get(spec.table_name) if spec.kind != "number" else None
        if table is not None and table.field_index is not None and table.field_index.of_field is not None:
            spec = spec.model_copy(update={"index": table.field_index.of_field})
        made.append(spec)
    if faults:
        raise DataError(told(place, faults), at_fault[0])
    try:
        return Fields(Schema(fields=tuple(made)).fields)
    except ValidationError as error:
        raise DataError(told(place, faults_of(error)), "fields") from None
