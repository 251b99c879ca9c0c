"""Schema of a row: fields in order, their role and kind, and the tables of their vectors.

The schema is the contract between a log, a trainer, a bundle and a caller. Columns of every tensor with features are in
schema order within their kind. It knows nothing of files, tensors or servers.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

__all__ = ["MISSING_TEXTS", "FieldSpec", "MissingTexts", "Schema"]

MISSING_TEXTS = ("<NA>", "NULL", "NaN", "NaT", "None", "\\N", "nan", "null")
"""Texts that libraries and databases write where a value is missing: pandas, Python, SQL, JSON, Hive."""

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_.\-]*$", max_length=128)]


def _canonical_texts(values: Any) -> Any:
    if not isinstance(values, list | tuple) or not values:
        return values
    from pipeline.hashing import canonical  # loads pyarrow, which clients do without

    if any(value is None for value in values):
        raise ValueError("write null in quotes, as the text that stands for a missing value")
    return tuple(sorted({canonical(value) for value in values} - {""}))


MissingTexts = Annotated[tuple[str, ...], BeforeValidator(_canonical_texts)]
"""Texts that mean that there is no value, beside the empty one: canonical, sorted."""


class FieldSpec(BaseModel):
    """One field of a row."""

    model_config = ConfigDict(frozen=True, extra="forbid", ignored_types=(cached_property,))

    name: Name
    role: Literal["context", "candidate"] = Field(
        description="context: one value for the whole request; candidate: one value per candidate"
    )
    kind: Literal["id", "bag", "number"] = Field(
        "id", description="id: one categorical value; bag: a set of them, pooled; number: a float, raw"
    )
    separator: str | None = Field(None, description="what splits the text of a bag")
    missing: MissingTexts = Field(
        (), description="texts of an id or of a bag's element that mean that there is none, beside the empty one"
    )
    transform: Literal["log1p"] | None = Field(None, description="applied to a number inside the network")
    table: Name | None = Field(None, description="embedding table; the field's own name unless said")
    width: int | None = Field(None, ge=1, le=4096, description="length of the field's vector; set by a bundle")
    pooling: Literal["mean"] | None = Field(None, description="how the vectors of a bag become one")

    @model_validator(mode="after")
    def _consistent(self) -> FieldSpec:
        if self.kind == "bag" and not self.separator:
            raise ValueError(f"field {self.name!r}: a bag needs a separator, for example separator: ','")
        if self.kind != "bag" and (self.separator is not None or self.pooling is not None):
            raise ValueError(f"field {self.name!r}: separator and pooling belong to bags; kind is {self.kind!r}")
        if self.kind != "number" and self.transform is not None:
            raise ValueError(f"field {self.name!r}: transform belongs to numbers; kind is {self.kind!r}")
        if self.kind == "number" and self.missing:
            raise ValueError(f"field {self.name!r}: missing belongs to ids and bags; a number is missing as NaN")
        if self.kind == "number" and (self.table is not None or self.width is not None):
            raise ValueError(f"field {self.name!r}: a number has no embedding table")
        return self

    @cached_property
    def missing_texts(self) -> frozenset[str]:
        """`missing`, to look a text up in."""
        return frozenset(self.missing)

    @property
    def table_name(self) -> str:
        return self.table or self.name


class Schema(BaseModel):
    """Fields in order. `ids`, `bags`, `numbers` and `embedded` give the fields of a kind, in schema order."""

    model_config = ConfigDict(frozen=True, extra="forbid", ignored_types=(cached_property,))

    fields: tuple[FieldSpec, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _unique(self) -> Schema:
        seen: set[str] = set()
        for field in self.fields:
            if field.name in seen:
                raise ValueError(f"field {field.name!r} is named twice")
            seen.add(field.name)
        return self

    @cached_property
    def ids(self) -> tuple[FieldSpec, ...]:
        return tuple(f for f in self.fields if f.kind == "id")

    @cached_property
    def bags(self) -> tuple[FieldSpec, ...]:
        return tuple(f for f in self.fields if f.kind == "bag")

    @cached_property
    def numbers(self) -> tuple[FieldSpec, ...]:
        return tuple(f for f in self.fields if f.kind == "number")

    @cached_property
    def embedded(self) -> tuple[FieldSpec, ...]:
        """Fields with vectors, ids and bags mixed, in the order of the network's `embeddings` input."""
        return tuple(f for f in self.fields if f.kind != "number")

    @cached_property
    def embedding_width(self) -> int:
        """Columns of the network's `embeddings` input: the sum of the widths of ids and bags."""
        return sum(f.width or 0 for f in self.embedded)

    @cached_property
    def arrangements(self) -> dict[Any, Any]:
        """Memory of `pipeline.features` and `pipeline.context`: known ways to order this schema's columns, at most
        `KEPT_ARRANGEMENTS` each."""
        return {}

    def inputs_match(self, other: Schema) -> str | None:
        """None if a caller of one schema may use the other unchanged, else the first difference as text.

        Arms of one endpoint share order, role, kind, separator, missing and transform; tables and widths are their own.
        """
        if len(self.fields) != len(other.fields):
            return f"{len(self.fields)} fields against {len(other.fields)}"
        for field, other_field in zip(self.fields, other.fields, strict=True):
            for key in ("name", "role", "kind", "separator", "missing", "transform"):
                a, b = getattr(field, key), getattr(other_field, key)
                if a != b:
                    return f"field {field.name!r}: {key} is {a!r} here and {b!r} there"
        return None

    def with_width(self, width: int) -> Schema:
        """The same fields with vectors of one width and mean pooling, as a model of that width trains them."""
        return Schema(
            fields=tuple(
                f
                if f.kind == "number"
                else f.model_copy(
                    update={
                        "width": width,
                        "table": f.table_name,
                        "pooling": "mean" if f.kind == "bag" else None,
                    }
                )
                for f in self.fields
            )
        )
