"""Rows of a frame of raw values: columns named like the fields, as a team has them in pandas, Arrow or plain lists.

The rule is the client's (`pipeline.hashing`): a value is written as text and hashed with its field's name. Next stop:
`pipeline.model.scorer`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.arrays import F32
from pipeline.errors import InvalidInput
from pipeline.features import Bag, Rows, refuse_infinite
from pipeline.hashing import canonical, hash_bag_column, hash_column
from pipeline.schema import MISSING_TEXTS, FieldSpec, Schema

__all__ = ["rows_of"]


def rows_of(frame: Any, schema: Schema) -> Rows:
    """The rows of a frame with a model's fields.

    Args:
        frame: a column for each field of the schema, n values each: a pandas or polars DataFrame, a pyarrow Table or
            RecordBatch, or a mapping of lists or arrays. A bag is text with the field's separator, or a list. None, NaN and
            the field's texts for it are missing. Other columns are not looked at.

    Returns:
        n rows, in the frame's order.

    Raises:
        InvalidInput: columns are missing, differ in length or hold a value that cannot be used; it names them.
    """
    names = frame.column_names if isinstance(frame, (pa.Table, pa.RecordBatch)) else frame
    absent = [field.name for field in schema.fields if field.name not in names]
    if absent:
        raise InvalidInput(f"the frame has no column {', '.join(map(repr, absent))}, which the model reads", absent[0])
    columns = {field.name: _array(frame, field.name) for field in schema.fields}
    sizes = {name: len(column) for name, column in columns.items()}
    if len(set(sizes.values())) > 1:
        raise InvalidInput(f"columns of the frame differ in length: {sizes}", min(sizes, key=lambda name: sizes[name]))
    n = next(iter(sizes.values()), 0)
    ids, numbers = np.empty((n, len(schema.ids)), np.int64), np.empty((n, len(schema.numbers)), np.float32)
    for at, field in enumerate(schema.ids):
        ids[:, at] = hash_column(field.name, columns[field.name], field.missing_texts, field.index)
    for at, field in enumerate(schema.numbers):
        numbers[:, at] = _numbers(field, columns[field.name])
    refuse_infinite(numbers, schema.numbers, range(len(schema.numbers)))
    return Rows(ids, numbers, tuple(_bag(at, field, columns[field.name]) for at, field in enumerate(schema.bags)))


def _array(frame: Any, name: str) -> pa.Array:
    column = frame.column(name) if isinstance(frame, (pa.Table, pa.RecordBatch)) else frame[name]
    if hasattr(column, "to_arrow"):  # of polars
        column = column.to_arrow()
    try:
        array = column if isinstance(column, (pa.Array, pa.ChunkedArray)) else pa.array(column, from_pandas=True)
    except (pa.ArrowException, TypeError) as error:
        raise InvalidInput(f"column {name!r} of the frame: values of one type were expected: {error}", name) from None
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _numbers(field: FieldSpec, column: pa.Array) -> F32:
    if _is_text(column.type):
        column = _parsed(field.name, column, MISSING_TEXTS)
    elif pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    try:
        wide = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    except pa.ArrowException as error:
        raise InvalidInput(f"column {field.name!r} of the frame holds no numbers: {error}", field.name) from None
    with np.errstate(over="ignore"):
        found: F32 = wide.astype(np.float32)
    return found


def _parsed(name: str, column: pa.Array, missing: Collection[str]) -> pa.Array:
    """Texts as numbers."""
    texts = pc.utf8_trim_whitespace(column.cast(pa.string()))
    texts = pc.if_else(pc.is_in(texts, pa.array(["", *missing])), pa.scalar(None, pa.string()), texts)
    try:
        return texts.cast(pa.float64())
    except pa.ArrowException as error:
        raise InvalidInput(f"column {name!r} of the frame: a text is no number: {error}", name) from None


def _bag(at: int, field: FieldSpec, column: pa.Array) -> Bag:
    separator = field.separator or ""
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        column = pa.array([_joined(field.name, value, separator) for value in column.to_pylist()], pa.string())
    return Bag(at, *hash_bag_column(field.name, column, separator, field.missing_texts, field.index))


def _joined(name: str, values: list[Any] | None, separator: str) -> str | None:
    texts = [canonical(value) for value in values or ()]
    odd = next((text for text in texts if separator in text), None)
    if odd is not None:
        raise InvalidInput(f"column {name!r} of the frame: {odd!r} holds the separator {separator!r}", name)
    return separator.join(texts) if texts else None


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
