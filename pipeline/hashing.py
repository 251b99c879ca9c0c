"""Hashing of values to ids: the rule that server, trainer and client share.

The id of a value is `xxh3_64` (seed 0) of the UTF-8 bytes of `field=value`, read as a signed 64-bit integer. A hash of
0 becomes 1, since 0 means padding; every other 64-bit value is a legal id. `canonical` writes a value as text.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Collection
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from pipeline.arrays import I32, I64, Array
from pipeline.errors import InvalidInput
from pipeline.index import Index

__all__ = [
    "EXACT_BELOW", "HELD_BUCKET", "NO_BUCKET", "PAD_ID", "bucket", "canonical", "hash_bag_column", "hash_column", "hash_value",
]  # fmt: skip

PAD_ID = 0
EXACT_BELOW = {64: 1 << 53, 32: 1 << 24, 16: 1 << 11}
"""Size from which on neighbouring whole numbers become one float, by the float's bits."""
BUCKETS = 10_000
HELD_BUCKET = BUCKETS
"""In place of the bucket of a key that stays on stable at every weight."""
NO_BUCKET = -1
"""Where no bucket is known."""


def canonical(value: Any) -> str:
    """Write a raw value as the text that is hashed.

    Integers and integral floats in decimal, other floats as Python's `repr`, decimals without trailing zeros, booleans as
    1 and 0, strings untrimmed, missing values (None, NaN, "") as the empty string.

    Raises:
        InvalidInput: the value is of a type that has no canonical text, or a float so large that whole numbers beside it
            are the same float.

    >>> canonical(3.0), canonical(0.1), canonical(True), canonical(None)
    ('3', '0.1', '1', '')
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidInput(f"a value is not UTF-8: {error}") from None
    if isinstance(value, (bool, np.bool_)):
        return "1" if value else "0"
    if isinstance(value, (int, np.integer)):
        return str(int(value))
    if isinstance(value, (float, np.floating)):
        return _float_text(value)
    if isinstance(value, Decimal) and not value.is_infinite():
        return "" if value.is_nan() else _decimal_text(value)
    if isinstance(value, uuid.UUID):
        return str(value)
    raise InvalidInput(f"a value of type {type(value).__name__} cannot be an id; pass int, float, bool or str")


def hash_value(field: str, value: Any, missing: Collection[str] = (), index: Index | None = None) -> int:
    """The id of one raw value of one field, as a signed 64-bit integer.

    Args:
        missing: canonical texts that mean that there is no value (`FieldSpec.missing`), beside the empty one.
        index: of the field (`FieldSpec.index`), whose number is hashed in place of the value.

    >>> hash_value("user_id", 712)
    240845954018805456
    >>> hash_value("user_id", "None", missing=("None",)) == hash_value("user_id", None)
    True
    """
    text = canonical(value)
    if not text or text in missing:
        return _hash_text(field, "")
    return _hash_text(field, text if index is None else str(index.of(text)))


def hash_column(
    field: str, values: pa.Array | Array | list[Any], missing: Collection[str] = (), index: Index | None = None
) -> I64:
    """Ids of a column of raw values `[n]` -> int64 `[n]`; each distinct value is hashed once. `missing` and `index` as in
    `hash_value`.

    Raises:
        InvalidInput: a value has no canonical text; the error names the field.
    """
    array = _as_array(field, values)
    if not len(array):
        return np.empty(0, np.int64)
    encoded = array.dictionary_encode(null_encoding="encode")
    distinct = np.fromiter((hash_value(field, v, missing, index) for v in encoded.dictionary.to_pylist()), np.int64)
    ids: I64 = distinct[encoded.indices.to_numpy(zero_copy_only=False)]
    return ids


def hash_bag_column(
    field: str,
    values: pa.Array | Array | list[Any],
    separator: str,
    missing: Collection[str] = (),
    index: Index | None = None,
) -> tuple[I32, I64]:
    """Ids of a column of bags written as text `[n]` -> offsets int32 `[n + 1]` and ids int64 `[offsets[n]]`.

    A missing value is an empty bag. Each element is hashed by itself, under the field's own name. `missing` and `index` as
    in `hash_value`, `missing` of the whole text and of its elements.
    """
    array = _as_array(field, values)
    if not len(array):
        return np.zeros(1, np.int32), np.empty(0, np.int64)
    encoded = array.dictionary_encode(null_encoding="encode")
    texts = [canonical(v) for v in encoded.dictionary.to_pylist()]
    bags = [
        [hash_value(field, e, missing, index) for e in text.split(separator)] if text and text not in missing else []
        for text in texts
    ]
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    lengths = np.fromiter((len(b) for b in bags), np.int64, len(bags))
    starts = np.concatenate([[0], np.cumsum(lengths)])
    flat = np.fromiter((e for b in bags for e in b), np.int64, int(starts[-1]))
    sizes = lengths[codes]
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    within = np.arange(int(offsets[-1])) - np.repeat(offsets[:-1].astype(np.int64), sizes)
    return offsets, flat[np.repeat(starts[codes], sizes) + within]


def bucket(salt: str, key: str) -> int:
    """The bucket in 0..9999 of a routing key: `xxh3_64("salt:key") % 10000`, unsigned. Never random, never per process."""
    return int(xxhash.xxh3_64_intdigest(f"{salt}:{key}".encode())) % BUCKETS


def _hash_text(field: str, text: str) -> int:
    digest = xxhash.xxh3_64_intdigest(f"{field}={text}".encode()) or 1
    return digest - (1 << 64) if digest >= 1 << 63 else digest


def _float_text(value: float | np.floating[Any]) -> str:
    number = float(value)
    if math.isnan(number):
        return ""
    limit = EXACT_BELOW.get(8 * value.itemsize, EXACT_BELOW[64]) if isinstance(value, np.floating) else EXACT_BELOW[64]
    if abs(number) >= limit:
        raise InvalidInput(_inexact(number, limit))
    return str(int(number)) if number.is_integer() else repr(number)


def _decimal_text(value: Decimal) -> str:
    digits = format(value, "f")
    digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return digits if value else "0"


def _inexact(number: float, limit: int) -> str:
    return (
        f"{number!r} is a float that is exact below {limit} (2^{limit.bit_length() - 1}) only, so it cannot name anything; "
        "send an integer or text"
    )


def _as_array(field: str, values: pa.Array | pa.ChunkedArray | Array | list[Any]) -> pa.Array:
    array = _one_array(field, values)
    if pa.types.is_floating(array.type):
        limit = EXACT_BELOW[array.type.bit_width]
        numbers = array.to_numpy(zero_copy_only=False)
        inexact = np.abs(numbers) >= limit
        if inexact.any():
            raise InvalidInput(f"field {field!r}: {_inexact(float(numbers[np.argmax(inexact)]), limit)}", field)
    return array


def _one_array(field: str, values: pa.Array | pa.ChunkedArray | Array | list[Any]) -> pa.Array:
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        if pa.types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
        # One array before it is encoded: arrow cannot unite dictionaries that hold nulls.
        return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InvalidInput(f"field {field!r}: values of one type were expected: {error}", field) from None
