"""Schema of a row: fields in order, their role and kind, and the tables of their vectors.

The schema is the contract between a log, a trainer, a bundle and a caller. Columns of every tensor with features are in
schema order within their kind. It knows nothing of files, tensors or servers.
"""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from pipeline.faults import refuse
from pipeline.index import Index

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
    index: Index | None = Field(
        None, description="how the values of an id or of a bag's elements become row numbers, which are hashed instead"
    )
    transform: Literal["log1p"] | None = Field(None, description="applied to a number inside the network")
    table: Name | None = Field(None, description="embedding table; the field's own name unless said")
    width: int | None = Field(None, ge=1, le=4096, description="length of the field's vector; set by a bundle")
    pooling: Literal["mean"] | None = Field(None, description="how the vectors of a bag become one")

    @model_validator(mode="after")
    def _consistent(self) -> FieldSpec:
        name, number = f"field {self.name!r}", self.kind == "number"
        faults: list[str] = []
        if self.kind == "bag" and not self.separator:
            faults.append(f"{name}: a bag needs a separator, for example separator: ','")
        if self.kind != "bag" and (self.separator is not None or self.pooling is not None):
            faults.append(f"{name}: separator and pooling belong to bags; kind is {self.kind!r}")
        if not number and self.transform is not None:
            faults.append(f"{name}: transform belongs to numbers; kind is {self.kind!r}")
        if number and self.index is not None:
            faults.append(f"{name}: index belongs to ids and bags; kind is 'number'")
        if number and self.missing:
            faults.append(f"{name}: missing belongs to ids and bags; a number is missing as NaN")
        if number and (self.table is not None or self.width is not None):
            faults.append(f"{name}: a number has no embedding table")
        refuse(faults)
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
        times = Counter(field.name for field in self.fields)
        refuse([f"field {name!r} is named {'twice' if n == 2 else f'{n} times'}" for name, n in times.items() if n > 1])
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

    @cached_property
    def columns(self) -> str:
        """Names of the fields in the order of their columns, as a record keeps them: ids, numbers and bags, apart by `;`.
        Features of one schema are features of another one with the same columns.

        >>> Schema(fields=({"name": "item", "role": "candidate"}, {"name": "age", "role": "context", "kind": "number"})).columns
        'item;age;'
        """
        return ";".join(",".join(f.name for f in group) for group in (self.ids, self.numbers, self.bags))

    def inputs_match(self, other: Schema) -> str | None:
        """None if one request may serve both schemas, else the first contradiction as text.

        Arms of one endpoint may have fields that the other has not. A field of both must agree in role, kind, separator,
        missing, index and transform; tables and widths are their own.
        """
        known = {field.name: field for field in other.fields}
        shared = [field for field in self.fields if field.name in known]
        for field in shared:
            for key in ("role", "kind", "separator", "missing", "index", "transform"):
                a, b = getattr(field, key), getattr(known[field.name], key)
                if a != b:
                    return f"field {field.name!r}: {key} is {a!r} here and {b!r} there"
        return None if shared else "they have no field in common"

    def fields_beside(self, other: Schema) -> list[str]:
        """Names of the fields that this schema has and `other` has not."""
        known = {field.name for field in other.fields}
        return [field.name for field in self.fields if field.name not in known]

    def joined(self, other: Schema) -> Schema:
        """The fields of requests that both read: this schema's in its order, then the other's own.

        This schema's columns of ids, numbers and bags come first, so that requests without the other's own fields are
        the beginning of a whole one.
        """
        own = set(self.fields_beside(other)) | {f.name for f in self.fields}
        return Schema(fields=(*self.fields, *(f for f in other.fields if f.name not in own)))

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
