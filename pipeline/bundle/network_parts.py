"""Number of parts of an ONNX file, counted before a parser makes an object of each.

Two bytes are enough for an empty node, of which a parser makes 200 bytes: a file of 8 MB can take 800 MB of memory. The
count follows protobuf's wire format and allocates nothing.
"""

from __future__ import annotations

import numpy as np
from numba import int64, types, uint8

from pipeline.arrays import I64
from pipeline.compiled import njit

__all__ = ["parts_of"]

_OTHER, _MODEL, _GRAPH, _NODE, _ATTRIBUTE, _TENSOR, _SPARSE, _FUNCTION, _TRAINING, _LEAF = range(10)
_NESTS = {
    _MODEL: {7: _GRAPH, 8: _LEAF, 14: _LEAF, 20: _TRAINING, 25: _FUNCTION, 26: _LEAF},
    _GRAPH: {1: _NODE, 5: _TENSOR, 11: _LEAF, 12: _LEAF, 13: _LEAF, 14: _LEAF, 15: _SPARSE, 16: _LEAF},
    _NODE: {5: _ATTRIBUTE, 9: _LEAF, 10: _LEAF},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 14: _LEAF, 15: _LEAF, 22: _SPARSE, 23: _SPARSE},
    _TENSOR: {3: _LEAF, 13: _LEAF, 16: _LEAF},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
    _FUNCTION: {7: _NODE, 9: _LEAF, 11: _ATTRIBUTE, 12: _LEAF, 14: _LEAF},
    _TRAINING: {1: _GRAPH, 2: _GRAPH, 3: _LEAF, 4: _LEAF},
}
"""By message of onnx.proto: which of its fields are messages. A leaf's own fields all count, one level deep."""
_FIELD_COUNT = 32
_TABLE = np.zeros((10, _FIELD_COUNT), np.int64)
for _message, _fields in _NESTS.items():
    for _field, _inner in _fields.items():
        _TABLE[_message, _field] = _inner
_NESTED_COUNT = 100


@njit(int64[::1](types.Array(uint8, 1, "C", readonly=True), int64[:, ::1]), cache=True, nogil=True)
def _count(raw, table):  # type: ignore[no-untyped-def]
    """Messages, and texts and arrays of them; -1 where the bytes are no protobuf, -2 where they nest too deeply."""
    found = np.zeros(2, np.int64)
    ends, kinds = np.zeros(_NESTED_COUNT, np.int64), np.zeros(_NESTED_COUNT, np.int64)
    ends[0], kinds[0], depth, at = len(raw), _MODEL, 0, 0
    while True:
        while at >= ends[depth]:
            if depth == 0:
                return found
            depth -= 1
        values = np.zeros(2, np.int64)  # tag, then length or number
        kind = 0
        for part in range(2):
            shift = 0
            while True:
                if at >= ends[depth] or shift > 63:
                    found[0] = -1
                    return found
                byte = np.int64(raw[at])
                at += 1
                values[part] |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    break
            kind = values[0] & 7
            if kind not in (0, 2):
                break
        if kind == 0:
            continue
        if kind in (1, 5):
            at += 8 if kind == 1 else 4
        elif kind == 2:
            field, length = values[0] >> 3, values[1]
            if length < 0 or length > ends[depth] - at:
                found[0] = -1
                return found
            inner = table[kinds[depth], field] if 0 <= field < _FIELD_COUNT else 0
            if kinds[depth] == _LEAF:  # its own texts, dimensions and the like
                found[0] += 1
                at += length
            elif inner == 0:
                found[1] += 1
                at += length
            else:
                found[0] += 1
                if depth + 1 == _NESTED_COUNT:
                    found[0] = -2
                    return found
                depth += 1
                ends[depth], kinds[depth] = at + length, inner
        else:
            found[0] = -1
            return found
        if at > ends[depth]:
            found[0] = -1
            return found


def parts_of(raw: bytes) -> tuple[int, int]:
    """Messages (nodes, attributes, tensors, ...) of an ONNX file, and texts and arrays in them.

    Raises:
        ValueError: the bytes are no such file, or nest more than 100 levels deep.
    """
    messages, texts = (int(number) for number in _counted(raw))
    if messages < 0:
        raise ValueError(
            "it nests more than 100 levels deep" if messages == -2 else "its messages do not end where they say"
        )
    return messages, texts


def _counted(raw: bytes) -> I64:
    found: I64 = _count(np.frombuffer(raw, np.uint8), _TABLE)  # type: ignore[no-untyped-call]
    return found
