"""`dataset.yaml`: which files hold a click log and what their columns mean.

`Descriptor.read` checks the keys alone. `Dataset.load` in `source.py` also checks files, columns and their types. What
only the rows can show (times, labels, keys of joins) is checked when they are prepared, in `prepare.py`.
"""

from __future__ import annotations

import glob
import math
import re
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
    model_validator,
)

from pipeline.documents import parse_yaml
from pipeline.errors import DataError
from pipeline.hashing import EXACT_BELOW, canonical
from pipeline.schema import MISSING_TEXTS, FieldSpec, MissingTexts, Name, Schema

__all__ = ["DataField", "Descriptor", "Join", "LabelColumn", "TimeColumn", "label_text"]

SUFFIXES = (".parquet", ".csv", ".csv.gz")


Value = StrictBool | StrictInt | StrictFloat | StrictStr


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ignored_types=(cached_property,))


class TimeColumn(_Part):
    """Column with the time at which a row was shown."""

    column: str = Field(min_length=1)
    unit: Literal["s", "ms", "us", "ns"] = Field(
        description="of a column of numbers, since 1970; a column of type timestamp knows its own"
    )


class LabelColumn(_Part):
    """Column with the label of a row: 1 where the value is among `positive`, else 0."""

    column: str = Field(min_length=1)
    positive: tuple[Value, ...] = Field(min_length=1)
    negative: tuple[Value, ...] | None = Field(
        None, description="all other values that a row may have; a value in neither is then refused. Default: any value"
    )

    @model_validator(mode="after")
    def _apart(self) -> Self:
        both = {label_text(value) for value in self.positive} & {label_text(value) for value in self.negative or ()}
        if both:
            raise ValueError(f"{min(both)!r} is positive and negative; leave it in one of the two")
        return self


class Join(_Part):
    """File with further columns for each value of `on`; they are missing for a value that it lacks."""

    file: str = Field(min_length=1)
    on: str = Field(min_length=1)


class DataField(_Part):
    """One feature; the column has the field's name."""

    name: Name
    role: Literal["context", "candidate"]
    kind: Literal["id", "bag", "number"] = "id"
    separator: str | None = None
    transform: Literal["log1p"] | None = None
    missing: MissingTexts | None = Field(
        None,
        description="texts that mean that there is no value, beside the empty one; default: those of pandas and SQL",
    )

    @model_validator(mode="after")
    def _numbers_are_missing_as_nan(self) -> Self:
        numbers = [text for text in self.missing or () if self.kind == "number" and _is_finite(text)]
        if numbers:
            raise ValueError(
                f"field {self.name!r}: {numbers[0]!r} cannot mean that a number is missing, since callers send numbers as they "
                "are; leave it empty in the log and send NaN"
            )
        return self

    @property
    def missing_texts(self) -> tuple[str, ...]:
        """`missing`, or the default."""
        return MISSING_TEXTS if self.missing is None else self.missing

    @property
    def spec(self) -> FieldSpec:
        """The field in a schema."""
        missing = () if self.kind == "number" else self.missing_texts
        return FieldSpec(**self.model_dump(exclude={"missing"}), missing=missing)


class Descriptor(_Part):
    """The content of a `dataset.yaml`; its files may be absent or hold other columns."""

    name: Name
    files: tuple[str, ...] = Field(min_length=1, description="globs of parquet, csv or csv.gz")
    time: TimeColumn
    label: LabelColumn
    routing_key: str | None = Field(None, description="the column that decides the arm, usually the user")
    request: str | None = Field(None, description="rows with one value are one ranking request")
    drop_duplicates: tuple[str, ...] = Field((), description="of rows equal in these columns the first one stays")
    joins: tuple[Join, ...] = ()
    fields: tuple[DataField, ...] = Field(min_length=1)

    _path: Path = PrivateAttr(default=Path("dataset.yaml"))

    @model_validator(mode="after")
    def _label_is_no_feature(self) -> Self:
        names = [f.name for f in self.fields]
        if self.label.column in names:
            raise ValueError(f"field {self.label.column!r} is the label; a model must not see it")
        return self

    @cached_property
    def feature_schema(self) -> Schema:
        """The fields as a schema."""
        return Schema(fields=tuple(f.spec for f in self.fields))

    def like(self, schema: Schema) -> Self:
        """The same with the texts for missing values of `schema`, in fields that say none of their own."""
        known = {spec.name: spec.missing for spec in schema.fields}
        fields = tuple(
            f if f.missing is not None or f.kind == "number" or f.name not in known
            else f.model_copy(update={"missing": known[f.name]})
            for f in self.fields
        )  # fmt: skip
        made = self.model_copy(update={"fields": fields})
        made.__dict__.pop("feature_schema", None)
        return made

    @property
    def path(self) -> Path:
        """The descriptor's own path."""
        return self._path

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a descriptor.

        Raises:
            DataError: it is absent or cannot be read, a key is unknown, missing or wrong, or a field is named twice.
        """
        path = Path(path)
        try:
            content = parse_yaml(path.read_text("utf-8"), _Loader)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: is not YAML: {error}") from None
        if not isinstance(content, dict):
            raise DataError(f"{path}: a mapping with the keys name, files, time, label and fields was expected")
        try:
            dataset = cls.model_validate(content)
            _ = dataset.feature_schema
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            message = first["msg"].removeprefix("Value error, ")
            raise DataError(f"{path}: {where + ': ' if where else ''}{message}", where) from None
        dataset._path = path
        return dataset

    @property
    def paths(self) -> list[Path]:
        """The log's files in the order of the globs, sorted by name within a glob, no file twice.

        Raises:
            DataError: a glob matches nothing, or a file that is neither parquet nor csv.
        """
        paths: dict[Path, None] = {}
        for pattern in self.files:
            matches = sorted(glob.glob(str(self._path.parent / pattern), recursive=True))
            if not matches:
                raise DataError(f"{self._path}: files: no file matches {pattern!r}", "files")
            paths.update((_known(self._path, Path(match)), None) for match in matches)
        return list(paths)

    @property
    def join_paths(self) -> list[Path]:
        """One file per join, in order.

        Raises:
            DataError: a file is absent, or neither parquet nor csv.
        """
        for join in self.joins:
            if not (self._path.parent / join.file).is_file():
                raise DataError(f"{self._path}: joins: there is no file {join.file!r}", "joins")
        return [_known(self._path, self._path.parent / join.file) for join in self.joins]


def label_text(value: Any) -> str:
    """A label as text to compare: 1.0 of a file equals 1 of a descriptor."""
    text = str(value) if isinstance(value, float) else canonical(value)
    try:
        number = float(text)
    except ValueError:
        return text
    return canonical(number) if abs(number) < EXACT_BELOW[64] else text


def _is_finite(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _known(descriptor: Path, path: Path) -> Path:
    if not path.name.endswith(SUFFIXES):
        raise DataError(f"{descriptor}: {path.name}: one of {', '.join(SUFFIXES)} was expected", "files")
    return path


class _Loader(yaml.SafeLoader):
    """YAML loader whose only booleans are true and false (`on` is a key here) and which refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"key {key.value!r} is given twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


BOOLEAN = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != BOOLEAN]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(BOOLEAN, re.compile(r"^(?:true|false)$", re.IGNORECASE), list("tTfF"))
