"""Arrays of a safetensors file, as views of the mapped file.

The file is eight bytes, the length of a JSON header, the header, and the arrays side by side. The header is bounded before
it is parsed, and every array must lie in the file as the header says: nothing is allocated on the header's word.
"""

from __future__ import annotations

import math
import os
from typing import Any, BinaryIO

import numpy as np

from pipeline.arrays import Arrays
from pipeline.documents import parse_json

__all__ = ["HEADER_BYTES", "mapped"]

HEADER_BYTES = 4 << 20
"""Longest header: about 40,000 arrays."""
_LENGTH_BYTES = 8
_DTYPES = {name: np.dtype(f"<{kind}") for name, kind in (
    ("I64", "i8"), ("I32", "i4"), ("I16", "i2"), ("I8", "i1"), ("U64", "u8"), ("U32", "u4"), ("U16", "u2"), ("U8", "u1"),
    ("F64", "f8"), ("F32", "f4"), ("F16", "f2"), ("BOOL", "?"),
)}  # fmt: skip


def mapped(file: BinaryIO) -> Arrays:
    """The arrays of an open file, by name; read-only.

    Raises:
        ValueError: the file breaks the format; the text has the numbers.
    """
    size = os.fstat(file.fileno()).st_size
    if size < _LENGTH_BYTES:
        raise ValueError(f"it has {size} bytes, fewer than the length of a header")
    raw = np.asarray(np.memmap(file, np.uint8, "r"))
    length = int(raw[:_LENGTH_BYTES].view("<u8")[0])
    if length > HEADER_BYTES or length > size - _LENGTH_BYTES:
        raise ValueError(f"its header has {length:,} bytes of {size:,}; at most {HEADER_BYTES:,} are read")
    header = parse_json(raw[_LENGTH_BYTES : _LENGTH_BYTES + length].tobytes())
    if not isinstance(header, dict):
        raise ValueError("its header is no mapping of arrays")
    header.pop("__metadata__", None)
    data = raw[_LENGTH_BYTES + length :]
    places = {name: _place(name, about) for name, about in header.items()}
    arrays, end = {}, 0
    for name, (dtype, shape, first, last) in sorted(places.items(), key=lambda item: item[1][2:]):
        if first != end:
            raise ValueError(f"array {name[:200]!r} begins at byte {first:,} where the one before it ends at {end:,}")
        if last - first != math.prod(shape) * dtype.itemsize or last > len(data):
            raise ValueError(
                f"array {name[:200]!r} is {dtype} {list(shape)} in bytes {first:,} to {last:,} of {len(data):,}"
            )
        arrays[name] = data[first:last].view(dtype).reshape(shape)
        end = last
    if end != len(data):
        raise ValueError(f"its arrays end at byte {end:,} of {len(data):,}")
    return {name: arrays[name] for name in header}


def _place(name: str, about: Any) -> tuple[np.dtype[Any], tuple[int, ...], int, int]:
    """Type, shape, first byte and byte after the last one of an array, from its entry in the header."""
    try:
        dtype, shape, (first, last) = _DTYPES[about["dtype"]], tuple(about["shape"]), about["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"array {name[:200]!r} has no dtype of numpy, shape or data_offsets") from None
    if not all(type(number) is int and 0 <= number < 1 << 63 for number in (*shape, first, last)) or len(shape) > 32:
        raise ValueError(f"array {name[:200]!r} has a shape or place that is none")
    return dtype, shape, first, last
