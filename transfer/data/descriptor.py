"""`dataset.yaml`: which files hold a click log and what their columns mean.

`Descriptor.read` checks the keys alone. `Dataset.load` in `source.py` also checks files, columns and their types. What
only the rows can show (times, labels, keys of joins) is checked when they are prepared, in `prepare.py`.
"""

from __future__ import annotations

import glob
import math
import re
from collections.abc import Sequence
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
from pipeline.faults import faults_of, fields_of, refuse, told
from pipeline.hashing import EXACT_BELOW, canonical
from pipeline.index import Index
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


class Column(_Part):
    """A column of the log; its name alone says the same."""

    column: str = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"column": value} if isinstance(value, str) else value


class Sampling(_Part):
    """Which share of the traffic's rows the log kept: one share for the rows of one label, or a column that says it row by row."""

    keep: float | None = Field(
        None, gt=0, le=1, description="share of the rows of `where` that the log kept; of others all"
    )
    where: dict[str, Value | tuple[Value, ...]] | None = Field(
        None,
        description="the label's column, and its value or values in the rows that were thinned; without it all rows",
    )
    probability: Column | None = Field(None, description="the column of the share, above 0 and at most 1")
    inverse: Column | None = Field(None, description="the column of 1 / share, at least 1")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        columns = [(key, c.column) for key, c in (("probability", self.probability), ("inverse", self.inverse)) if c]
        said = [
            *([f"keep {self.keep:g}"] if self.keep is not None else []),
            *(f"{k} of column {c!r}" for k, c in columns),
        ]
        if len(said) != 1:
            found = f"{' and '.join(said)} say the same thing; remove one" if said else "nothing is said"
            raise ValueError(f"{found}: give keep, or a column as probability or inverse")
        if self.where is not None and (self.keep is None or len(self.where) != 1):
            raise ValueError("where goes with keep, and names one label: {COLUMN: VALUE}")
        return self

    @property
    def thinned_texts(self) -> frozenset[str]:
        """Values of the label, as texts to compare, in the rows that `keep` is about; empty: of all rows."""
        values = next(iter((self.where or {}).values()), ())
        return frozenset(map(label_text, values if isinstance(values, tuple) else (values,)))


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
    index: Index | None = None
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
        return FieldSpec(**self.model_dump(exclude={"missing", "index"}), index=self.index, missing=missing)


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
    sampling: Sampling | None = Field(None, description="which share of the traffic's rows the log kept; default: all")
    sample_weight: Column | None = Field(
        None, description="the column of a factor of each row's loss, and of nothing else"
    )
    fields: tuple[DataField, ...] = Field(min_length=1)

    _path: Path = PrivateAttr(default=Path("dataset.yaml"))

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [f.name for f in self.fields]
        faults = []
        if self.label.column in names:
            faults.append(f"field {self.label.column!r} is the label; a model must not see it")
        for key, column in (("sampling", self.probability_column), ("sample_weight", self.weight_column)):
            if column in names:
                faults.append(
                    f"field {column!r} is the column of {key}, which follows the label; a model must not see it"
                )
        faults += self._faults_of_where()
        try:
            _ = self.feature_schema
        except ValidationError as error:
            faults += faults_of(error)
        refuse(faults)
        return self

    def _faults_of_where(self) -> list[str]:
        """Whether `sampling.where` names the label and a value of it."""
        where = None if self.sampling is None else self.sampling.where
        if self.sampling is None or not where:
            return []
        if self.label.column not in where:
            return [f"sampling.where names {min(where)!r}, but the label is column {self.label.column!r}; name that"]
        known = {label_text(value) for value in (*self.label.positive, *(self.label.negative or ()))}
        stray = self.sampling.thinned_texts - known
        if self.label.negative is None or not stray:
            return []
        return [
            f"sampling.where: {min(stray)!r} is neither in label.positive nor in label.negative; name a value of the label"
        ]

    @property
    def probability_column(self) -> str | None:
        """The column that says the share row by row, or 1 / share."""
        named = None if self.sampling is None else self.sampling.probability or self.sampling.inverse
        return None if named is None else named.column

    @property
    def weight_column(self) -> str | None:
        """The column of `sample_weight`."""
        return None if self.sample_weight is None else self.sample_weight.column

    @cached_property
    def feature_schema(self) -> Schema:
        """The fields as a schema."""
        return Schema(fields=tuple(f.spec for f in self.fields))

    def like(self, schema: Schema) -> Self:
        """The same with the texts for missing values and the index of `schema`, in fields that say none of their own."""
        known = {spec.name: spec for spec in schema.fields if spec.kind != "number"}
        fields = tuple(
            f if f.name not in known or f.kind == "number"
            else f.model_copy(
                update={
                    "missing": known[f.name].missing if f.missing is None else f.missing,
                    "index": known[f.name].index if f.index is None else f.index,
                }
            )
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
            DataError: it is absent or cannot be read, a key is unknown, missing or wrong, or a field is named twice. All
                that is wrong is named.
        """
        dataset, faults, field = cls._read(Path(path))
        if faults or dataset is None:
            raise DataError(told(str(path), faults), field)
        return dataset

    @classmethod
    def _read(cls, path: Path) -> tuple[Self | None, list[str], str]:
        """A descriptor, what is wrong with it, and the first field at fault. With faults it is what is left without the parts
        at fault, so that its files can be looked at, too; None: nothing that makes sense.

        Raises:
            DataError: it is absent, cannot be read or is no mapping.
        """
        try:
            content = parse_yaml(path.read_text("utf-8"), _Loader)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: is not YAML: {error}") from None
        if not isinstance(content, dict):
            raise DataError(f"{path}: a mapping with the keys name, files, time, label and fields was expected")
        try:
            dataset, faults, field = cls.model_validate(content), [], ""
        except ValidationError as error:
            faults, field = faults_of(error), fields_of(error)
            try:
                dataset = cls.model_validate(_without(content, [problem["loc"] for problem in error.errors()]))
            except ValidationError:
                return None, faults, field
        dataset._path = path
        return dataset, faults, field

    @property
    def paths(self) -> list[Path]:
        """The log's files in the order of the globs, sorted by name within a glob, no file twice.

        Raises:
            DataError: a glob matches nothing, or a file that is neither parquet nor csv.
        """
        paths: dict[Path, None] = {}
        faults = []
        for pattern in self.files:
            matches = sorted(glob.glob(str(self._path.parent / pattern), recursive=True))
            if not matches:
                faults.append(f"files: no file matches {pattern!r}")
            paths.update((_known(self._path, Path(match)), None) for match in matches)
        if faults:
            raise DataError(told(str(self._path), faults), "files")
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


def _without(content: dict[Any, Any], places: Sequence[Sequence[int | str]]) -> dict[Any, Any]:
    """A descriptor without its parts at fault: a field or join alone, any other key as a whole."""
    left = dict(content)
    for key in {place[0] for place in places if place}:
        wrong = {
            place[1] for place in places if place and place[0] == key and len(place) > 1 and isinstance(place[1], int)
        }
        value = left.pop(key, None)
        if wrong and key in ("fields", "joins") and isinstance(value, list):
            left[key] = [part for at, part in enumerate(value) if at not in wrong]
    return left


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
