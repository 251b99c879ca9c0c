"""Header encoding of HTTP/2 (RFC 7541), for a gRPC client without a dynamic table.

We announce a table of size 0, so that every block can be read by itself and equal blocks mean the same.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["HeaderError", "decode", "encode"]

_STATUS = {8: b"200", 9: b"204", 10: b"206", 11: b"304", 12: b"400", 13: b"404", 14: b"500"}
"""The static table's entries of `:status`."""
_STATIC = 61


class HeaderError(ValueError):
    """Header block that this reader cannot decode."""


def encode(headers: Iterable[tuple[str, str]]) -> bytes:
    """Encode a header block of literals without indexing: the same bytes for every request."""
    out = bytearray()
    for name, value in headers:
        out += b"\x00" + _string(name) + _string(value)
    return bytes(out)


def decode(block: bytes) -> dict[bytes, bytes]:
    """Decode names and values. Huffman-coded strings and names of the static table other than `:status` are left out.

    Raises:
        HeaderError: the block is cut off or refers to a dynamic table.
    """
    found: dict[bytes, bytes] = {}
    at = 0
    try:
        while at < len(block):
            first = block[at]
            if first & 0x80:
                index, at = _integer(block, at, 7)
                _check(index)
                if index in _STATUS:
                    found[b":status"] = _STATUS[index]
                continue
            if first & 0xE0 == 0x20:  # an update of the table's size
                _, at = _integer(block, at, 5)
                continue
            index, at = _integer(block, at, 6 if first & 0x40 else 4)
            _check(index)
            name: bytes | None = b":status" if index in _STATUS else None
            if index == 0:
                name, at = _text(block, at)
            value, at = _text(block, at)
            if name is not None and value is not None:
                found[name] = value
    except IndexError:
        raise HeaderError("a header block ends in the middle") from None
    return found


def _check(index: int) -> None:
    if index > _STATIC:
        raise HeaderError(f"a header refers to entry {index} of a dynamic table that we did not allow")


def _string(text: str) -> bytes:
    data = text.encode()
    size = len(data)
    if size < 0x7F:
        return bytes((size,)) + data
    prefix, size = bytearray((0x7F,)), size - 0x7F
    while size >= 0x80:
        prefix.append(size & 0x7F | 0x80)
        size >>= 7
    prefix.append(size)
    return bytes(prefix) + data


def _integer(block: bytes, at: int, bits: int) -> tuple[int, int]:
    """An integer with a prefix of `bits` bits (RFC 7541, section 5.1) and the place after it."""
    mask = (1 << bits) - 1
    value = block[at] & mask
    at += 1
    if value < mask:
        return value, at
    shift = 0
    while True:
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return value, at


def _text(block: bytes, at: int) -> tuple[bytes | None, int]:
    huffman = block[at] & 0x80
    size, at = _integer(block, at, 7)
    end = at + size
    if end > len(block):
        raise IndexError
    return (None if huffman else block[at:end]), end
