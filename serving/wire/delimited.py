"""Bytes fields of a protobuf message, extracted and written without a parse or a copy of the rest.

A parser copies a request's tensors into its arena and once more into a Python object. Fields cut out of the received
bytes are copied once, and only the small remainder is parsed.
"""

from __future__ import annotations

__all__ = ["detach", "field"]

_DELIMITED_TYPE = 2
_FIXED = {1: 8, 5: 4}


def detach(data: bytes, number: int) -> tuple[bytes, list[bytes]]:
    """A message without its bytes field `number` of the top level, and that field's values in order.

    A message that is cut off or uses groups is returned whole; its parser reports the error.
    """
    tag = number << 3 | _DELIMITED_TYPE
    rest: list[bytes] = []
    values: list[bytes] = []
    at = kept = 0
    end = len(data)
    try:
        while at < end:
            start = at
            key, at = _varint(data, at)
            wire = key & 7
            if wire == _DELIMITED_TYPE:
                size, at = _varint(data, at)
                at += size
                if key == tag and at <= end:
                    rest.append(data[kept:start])
                    values.append(data[at - size : at])
                    kept = at
            elif wire == 0:
                _, at = _varint(data, at)
            else:
                at += _FIXED[wire]
    except (IndexError, KeyError):
        return data, []
    if at != end:
        return data, []
    rest.append(data[kept:])
    return b"".join(rest), values


def field(number: int, value: bytes) -> bytes:
    """Encoding of a bytes, string, message or packed field. Fields of a message may be concatenated."""
    size = len(value)
    head = bytearray((number << 3 | _DELIMITED_TYPE,))
    while size > 127:
        head.append(size & 127 | 128)
        size >>= 7
    head.append(size)
    return bytes(head) + value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = data[at]
    at += 1
    if value < 128:
        return value, at
    value &= 127
    shift = 7
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise IndexError("a varint of more than ten bytes")
