"""Schema file of an import: which fields clients send, and how a model from elsewhere reads them."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, StrictBool, StrictInt, StrictStr, ValidationError

from pipeline.documents import parse_yaml
from pipeline.errors import DataError
from pipeline.faults import faults_of, fields_of, told
from pipeline.schema import MISSING_TEXTS, FieldSpec, Name, Schema
from transfer.bundles.importing.graph import Kind
from transfer.bundles.importing.tables.index import TableIndex, index_of

__all__ = ["Codes", "ImportSpec"]

Codes = dict[str, float] | str


class ImportSpec(BaseModel):
    """Fields, and how the network reads them."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    fields: tuple[FieldSpec, ...] = Field(min_length=1, description="as in dataset.yaml, all that clients send")
    columns: tuple[Name, ...] | None = Field(
        None,
        description="fields that the network reads, in its order; ids with codes and numbers, in order, by default",
    )
    inputs: dict[str, Name | tuple[Name, ...]] = Field(
        {}, description="fields of each input of the network, where the input does not have a field's name"
    )
    codes: dict[Name, Codes] = Field(
        {}, description="of each id field that is read: a mapping of value to number, or a CSV file of value,code"
    )
    unknown: Annotated[float, Field(description="code of a value without one, missing ones too")] = -1.0
    fill: dict[Name, float] = Field({}, description="what the network reads where a number is missing; NaN unless said")
    output: str | None = Field(None, description="the network's output that answers; needed where several could")
    kind: Kind | None = Field(None, description="what it holds; needed unless it is the probabilities of two classes")
    positive: StrictBool | StrictInt | StrictStr | None = Field(
        None, description="the class that is the click; needed unless the classes are 0 and 1, or false and true"
    )
    _index: dict[str, TableIndex] = PrivateAttr(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> ImportSpec:
        """Read a schema file; codes in CSV files are read too, their paths relative to it.

        Raises:
            DataError: the file or a part of it is absent or wrong; the message names file and key.
        """
        try:
            return cls.of(parse_yaml(path.read_text("utf-8")), path.parent)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: is not YAML: {error}") from None
        except ValidationError as error:
            raise DataError(told(str(path), faults_of(error)), fields_of(error)) from None

    @classmethod
    def of(cls, content: Any, folder: Path = Path()) -> ImportSpec:
        """The specification in a mapping. A field may have an `index` in any form that an import knows.

        Raises:
            ValidationError, DataError: a part of it is wrong.
        """
        indices: dict[str, TableIndex] = {}
        if isinstance(content, Mapping) and isinstance(content.get("fields"), list | tuple):
            fields = []
            for field in content["fields"]:
                if isinstance(field, Mapping) and field.get("index") is not None:
                    index = indices[str(field.get("name"))] = index_of(field["index"], folder)
                    field = {**field, "index": index.of_field}
                fields.append(field)
            content = {**content, "fields": fields}
        spec = cls.model_validate(content)
        codes = {
            name: _read_codes(folder / codes) if isinstance(codes, str) else codes for name, codes in spec.codes.items()
        }
        return spec.with_index(indices).model_copy(update={"codes": codes})

    @property
    def index(self) -> Mapping[str, TableIndex]:
        """The index of each field that has one."""
        return self._index

    def with_index(self, indices: Mapping[str, TableIndex]) -> ImportSpec:
        """The same with these indices of fields, beside those that it has."""
        found = self.model_copy()
        found._index = {**self._index, **indices}
        return found

    @property
    def schema_of_bundle(self) -> Schema:
        """The fields with vectors of width 1; texts for missing values are those of a log unless a field says its own.

        Raises:
            DataError: two fields have one name.
        """
        fields = tuple(
            f
            if f.kind == "number" or "missing" in f.model_fields_set
            else f.model_copy(update={"missing": MISSING_TEXTS})
            for f in self.fields
        )
        try:
            return Schema(fields=fields).with_width(1)
        except ValidationError as error:
            raise DataError(told("fields", faults_of(error)), "fields") from None

    def check(self) -> None:
        """Check that what is said of fields is said of fields of the right kind.

        Raises:
            DataError: it is not.
        """
        kinds, faults, fields = {f.name: f.kind for f in self.fields}, list[str](), list[str]()
        for key, named, kind in (("codes", self.codes, ("id",)), ("fill", self.fill, ("number",)), ("index", self._index, ("id", "bag"))):  # fmt: skip
            stray = [name for name in named if kinds.get(name) not in kind]
            faults += [f"{key}: {name!r} is not a field of kind {' or '.join(kind)}" for name in stray]
            fields += stray
        for name in dict.fromkeys(
            (*(self.columns or ()), *(n for names in self.inputs.values() for n in _several(names)))
        ):
            if name not in kinds:
                faults.append(f"columns: {name!r} is not among the fields")
                fields.append(name)
        if faults:
            raise DataError(told("schema", faults) if len(faults) > 1 else faults[0], fields[0])

    def columns_of(self, name: str, single: bool) -> tuple[str, ...]:
        """Fields of an input of the network: as `inputs` says, of one name, or of the only input all columns.

        Args:
            single: whether it is the network's only input.
        """
        if name in self.inputs:
            return _several(self.inputs[name])
        return self.read if single else (name,)

    @property
    def read(self) -> tuple[str, ...]:
        """Names of the fields that the network reads, in its order: `columns`, or numbers and ids with a code."""
        said = {n for names in self.inputs.values() for n in _several(names)}
        with_code = {*self.codes, *self._index, *said}
        return self.columns or tuple(f.name for f in self.fields if f.kind == "number" or f.name in with_code)


def _several(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _read_codes(path: Path) -> dict[str, float]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = csv.DictReader(file)
            if lines.fieldnames is None or not {"value", "code"} <= set(lines.fieldnames):
                raise DataError(f"{path}: a header with the columns value and code was expected", "codes")
            return {line["value"]: float(line["code"]) for line in lines}
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}", "codes") from None
    except ValueError as error:
        raise DataError(f"{path}: a code is not a number: {error}", "codes") from None
