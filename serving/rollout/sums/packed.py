"""Packed sums: how the sums of a rollout are stored, whole, as one value of the control store.

A head for JSON and named arrays, compressed. What another version of Baton wrote in another form is None, which means that
the labelled log has to be read again; it is never read as something else.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.arrays import Array, Arrays

__all__ = ["pack_sums", "unpack_sums"]

_MAGIC = b"BES2"
_HEAD = struct.Struct("<4sI")
_MOST_BYTES = 1 << 30


def pack_sums(head: Mapping[str, Any], arrays: Mapping[str, Array]) -> bytes:
    """Pack a head that JSON knows and int64 arrays.

    >>> head, arrays = unpack_sums(pack_sums({"seq": 3}, {"rows": np.arange(3)}))
    >>> head["seq"], arrays["rows"].tolist()
    (3, [0, 1, 2])
    """
    shapes = {name: array.shape for name, array in arrays.items()}
    text = json.dumps({"head": head, "arrays": shapes}).encode()
    bodies = [np.ascontiguousarray(array, "<i8").tobytes() for array in arrays.values()]
    return zlib.compress(b"".join([_HEAD.pack(_MAGIC, len(text)), text, *bodies]), 1)


def unpack_sums(packed: bytes) -> tuple[dict[str, Any], Arrays] | None:
    """The head and the arrays; None: `pack_sums` of this version did not write it."""
    try:
        reader = zlib.decompressobj()
        raw = reader.decompress(packed, _MOST_BYTES)
        magic, length = _HEAD.unpack_from(raw)
        if magic != _MAGIC or not reader.eof or reader.unused_data:
            return None
        found = json.loads(raw[_HEAD.size : _HEAD.size + length])
        at, arrays = _HEAD.size + length, {}
        for name, shape in found["arrays"].items():
            count = int(np.prod(shape, dtype=np.int64))
            arrays[name] = np.frombuffer(raw, "<i8", count, at).reshape(shape).astype(np.int64)
            at += 8 * count
        return found["head"], arrays
    except (zlib.error, struct.error, ValueError, KeyError, TypeError, AttributeError):
        return None
