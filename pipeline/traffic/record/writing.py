"""Writing of prediction records, in a lane on the way of each answer. Next: `layout`."""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Any
from zlib import crc32

import numpy as np
from numpy import ascontiguousarray

from pipeline.arrays import Array
from pipeline.features import Bag, IdPart, NumberPart
from pipeline.traffic.record.layout import (
    ENTRY,
    ENTRY_FORMAT,
    HEAD,
    HEAD_SCORES,
    KEYS_FORMAT,
    MAGIC,
    OVERRIDDEN_FLAG,
    PART,
    PREFIX,
    REQUEST_KEY,
    REQUESTED_FLAG,
    SHED_STATE,
    Block,
)
from pipeline.traffic.record.record import ARMS, HeadScores, PredictionRecord

__all__ = ["pack"]

_F4, _I4, _I8, _U1 = (np.dtype(name) for name in ("<f4", "<i4", "<i8", "u1"))
_PADDING = [bytes(size) for size in range(8)]
_MOST_BLOCKS = 16
_KEYS = [Struct("<" + KEYS_FORMAT + ENTRY_FORMAT * blocks) for blocks in range(_MOST_BLOCKS)]
"""Keys and directory of so many blocks."""
_Pieces = list[Any]
"""Bytes and arrays, which `bytes.join` takes alike."""


def pack(record: PredictionRecord) -> bytes:
    """Write a record as bytes."""
    f = record.features
    pieces: _Pieces = [b""]  # the head comes last, for it has the directory
    directory = [Block.SCORES, _add(pieces, ascontiguousarray(record.scores, _F4))]
    if record.candidate_ids is not None:
        directory += (Block.CANDIDATE_IDS, _add(pieces, ascontiguousarray(record.candidate_ids, _I8)))
    if f.ids:
        directory += (Block.IDS, _add_parts(pieces, f.ids, _I8))
    if f.numbers:
        directory += (Block.NUMBERS, _add_parts(pieces, f.numbers, _F4))
    if f.bags:
        directory += (Block.BAGS, _add_bags(pieces, f.bags))
    if record.fields:
        directory += (Block.FIELDS, _add_bytes(pieces, record.fields.encode()))
    if record.heads:
        directory += (Block.HEADS, _add_heads(pieces, record.heads))
    if record.recall_scores is not None:
        directory += (Block.RECALL_SCORES, _add(pieces, ascontiguousarray(record.recall_scores, _F4)))
    if record.request_id:
        directory += (Block.REQUEST_ID, _add_bytes(pieces, record.request_id.encode()))
    if record.candidate_texts:
        directory += (Block.CANDIDATE_TEXTS, _add_bytes(pieces, _texts(record.candidate_texts)))
    if record.load or record.keep_fraction != 1.0:
        directory += (Block.SHED, _add_bytes(pieces, SHED_STATE.pack(record.keep_fraction, record.load)))
    if record.cached is not None:
        directory += (Block.CACHED, _add(pieces, ascontiguousarray(record.cached, _U1)))
    flags = OVERRIDDEN_FLAG if record.overridden else 0
    if record.request_key:  # the last block
        flags |= REQUESTED_FLAG
        directory += (Block.REQUEST_KEY, _add_bytes(pieces, REQUEST_KEY.pack(record.request_key)))
    names = f"{record.endpoint}\0{record.bundle}\0{record.prediction_id}\0{record.network}".encode()
    blocks = len(directory) >> 1
    end = HEAD.size + ENTRY.size * blocks + len(names)
    size = end + 7 & -8
    for block in directory[1::2]:
        size += block + 7 & -8
    keys = _KEYS[blocks].pack(
        record.time_ms,
        record.version,
        record.stable_version,
        record.candidate_version,
        record.routing_hash,
        size,
        f.n,
        record.inclusion_probability,
        ARMS.index(record.arm),
        flags,
        blocks,
        len(names),
        record.bucket + 1,
        *directory,
    )
    checked = keys + names
    pieces[0] = PREFIX.pack(MAGIC, crc32(checked)) + checked + _PADDING[-end & 7]
    return b"".join(pieces)


# Each adds pieces that end at a multiple of 8, and returns the bytes up to the last padding. Arrays are copied once, into
# the record, and sizes are made even without a call: on the way of an answer both show.


def _add(pieces: _Pieces, values: Array) -> int:
    size = values.nbytes
    pieces += (values, _PADDING[-size & 7])
    return size


def _add_bytes(pieces: _Pieces, content: bytes) -> int:
    pieces += (content, _PADDING[-len(content) & 7])
    return len(content)


def _add_parts(pieces: _Pieces, parts: Sequence[IdPart | NumberPart], dtype: np.dtype[Any]) -> int:
    size = 0
    for part in parts:
        columns, values = ascontiguousarray(part.columns, _I4), ascontiguousarray(part.values, dtype)
        named, valued = columns.nbytes, values.nbytes
        pieces += (PART.pack(*values.shape), columns, _PADDING[-named & 7], values, _PADDING[-valued & 7])
        size += PART.size + (named + 7 & -8) + (valued + 7 & -8)
    return size


def _add_bags(pieces: _Pieces, bags: Sequence[Bag]) -> int:
    size = 0
    for bag in bags:
        pieces.append(PART.pack(bag.rows, bag.column))
        offsets = _add(pieces, ascontiguousarray(bag.offsets, _I4))
        size += PART.size + (offsets + 7 & -8) + _add(pieces, ascontiguousarray(bag.values, _I8))
    return size


def _add_heads(pieces: _Pieces, heads: Sequence[HeadScores]) -> int:
    size = 0
    for head in heads:
        name = head.head.encode()
        pieces.append(HEAD_SCORES.pack(ARMS.index(head.arm), len(name)))
        size += HEAD_SCORES.size + (_add_bytes(pieces, name) + 7 & -8)
        size += _add(pieces, ascontiguousarray(head.scores, _F4)) + 7 & -8
    return size


def _texts(texts: Sequence[str]) -> bytes:
    ends = np.fromiter(map(len, texts), _I4, len(texts)).cumsum(dtype=_I4)
    return ends.tobytes() + "".join(texts).encode()
