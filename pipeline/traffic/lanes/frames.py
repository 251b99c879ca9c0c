"""Frames of the record files: a length and a checksum before each payload, so that damage of one is damage of one.

Little endian: magic, length of the payload, XXH3-64 of the payload; then the payload. A deleted frame keeps its place and
length, under another magic and with zeros for its payload.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import xxhash

__all__ = ["HEAD_BYTES", "Framed", "framed", "payload_of", "tombstone"]

_HEAD = struct.Struct("<4sIQ")
HEAD_BYTES = _HEAD.size
_FRAME = b"BLF1"
_GONE = b"BLG1"


class Framed(NamedTuple):
    """Frames that follow each other: bytes to write in order, where each frame begins, and where the last one ends."""

    parts: list[bytes]
    offsets: list[int]
    end: int


def framed(payloads: Iterable[bytes], at: int) -> Framed:
    """Frames of payloads from the offset `at` on. Payloads are not copied."""
    parts: list[bytes] = []
    offsets: list[int] = []
    for payload in payloads:
        parts += (_HEAD.pack(_FRAME, len(payload), xxhash.xxh3_64_intdigest(payload)), payload)
        offsets.append(at)
        at += HEAD_BYTES + len(payload)
    return Framed(parts, offsets, at)


def payload_of(frame: bytes, length: int) -> bytes | None:
    """Payload of a frame; None of a deleted one.

    Raises:
        ValueError: the bytes are no whole frame of that length.
    """
    if len(frame) != HEAD_BYTES + length:
        raise ValueError(f"{len(frame)} bytes are there of {HEAD_BYTES + length}")
    magic, stored, checksum = _HEAD.unpack_from(frame)
    if magic not in (_FRAME, _GONE) or stored != length:
        raise ValueError("no frame of that length begins there")
    if magic == _GONE:
        return None
    payload = frame[HEAD_BYTES:]
    if xxhash.xxh3_64_intdigest(payload) != checksum:
        raise ValueError("the checksum does not fit")
    return payload


def tombstone(length: int) -> Sequence[bytes]:
    """Parts of a deleted frame, to be written over one whose payload has this length."""
    return (_HEAD.pack(_GONE, length, 0), bytes(length))
