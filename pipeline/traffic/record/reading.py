"""Reading of prediction records: whole, or their keys alone. Records of version 1 are read as well. Next: `layout`.

A record may come from a place where others write, and compiled loops follow its columns and offsets unseen. So everything
that is not as it must be is refused here.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pipeline.arrays import Array, Mask
from pipeline.errors import InvalidInput
from pipeline.features import Bag, Features, IdPart, NumberPart
from pipeline.hashing import HELD_BUCKET
from pipeline.traffic.record import layout, version_1
from pipeline.traffic.record.layout import Block, aligned
from pipeline.traffic.record.record import ARMS, HeadScores, PredictionRecord, RecordHead, Texts
from pipeline.traffic.record.shapes import check_shapes

__all__ = ["made_by", "read_head", "unpack"]

_TIME = struct.Struct("<q")
_WRONG = (struct.error, ValueError, IndexError, OverflowError)
_F4, _I4, _I8, _U1 = (np.dtype(name) for name in ("<f4", "<i4", "<i8", "u1"))
_Keys = tuple[Any, ...]
_Blocks = dict[int, memoryview]


def unpack(blob: bytes | memoryview) -> PredictionRecord:
    """Read a record; its arrays are read-only views of `blob`.

    Raises:
        InvalidInput: the blob is not a complete record.
    """
    view = memoryview(blob)
    try:
        return version_1.unpack(view) if view[:4] == version_1.MAGIC else _unpack(view)
    except _WRONG as error:
        raise InvalidInput(f"not a prediction record: {error}") from None


def read_head(blob: bytes) -> RecordHead:
    """Keys of a record: checked by their checksum, and the record by its length. No array is looked at.

    Raises:
        InvalidInput: the blob is not a complete record.
    """
    try:
        if blob.startswith(version_1.MAGIC):
            return version_1.read_head(blob)
        keys, names, end = _keys(blob)
        endpoint, _, prediction_id, _ = blob[names:end].decode().split("\0")
        _, _, time_ms, _, _, _, routing_hash, _, n, _, arm, flags, _, _, _ = keys
        request_key = 0
        if flags & layout.REQUESTED_FLAG:
            kind, size = layout.ENTRY.unpack_from(blob, names - layout.ENTRY.size)
            if kind != Block.REQUEST_KEY or size != layout.REQUEST_KEY.size:
                raise ValueError("its last block is not the key of a request id")
            (request_key,) = layout.REQUEST_KEY.unpack_from(blob, len(blob) - size)
        return RecordHead(prediction_id, time_ms, endpoint, n, routing_hash, ARMS[arm], request_key)
    except _WRONG as error:
        raise InvalidInput(f"not a prediction record: {error}") from None


def made_by(blob: bytes, now_ms: int) -> bytes:
    """The record with a time of at most `now_ms`: a prediction of the future was made by a clock that is ahead.

    Raises:
        InvalidInput: the blob is not a complete record.
    """
    try:
        at = layout.TIME_OFFSET_BYTES
        if _TIME.unpack_from(blob, at)[0] <= now_ms:
            return blob
        if blob.startswith(version_1.MAGIC):
            return blob[:at] + _TIME.pack(now_ms) + blob[at + _TIME.size :]
        _, _, end = _keys(blob)
    except _WRONG as error:
        raise InvalidInput(f"not a prediction record: {error}") from None
    checked = _TIME.pack(now_ms) + blob[at + _TIME.size : end]
    return layout.PREFIX.pack(layout.MAGIC, zlib.crc32(checked)) + checked + blob[end:]


def _keys(blob: bytes | memoryview) -> tuple[_Keys, int, int]:
    """Fields of the head (`layout.HEAD`), and where the names begin and end."""
    keys = layout.HEAD.unpack_from(blob)
    magic, check, _, _, _, _, _, size, _, _, _, _, blocks, names_size, _ = keys
    if magic != layout.MAGIC:
        raise ValueError(f"it starts with {magic!r} instead of {layout.MAGIC!r}")
    names = layout.HEAD.size + layout.ENTRY.size * blocks
    end = names + names_size
    if zlib.crc32(blob[layout.TIME_OFFSET_BYTES : end]) != check:
        raise ValueError("the checksum of its head is another")
    if size != len(blob):
        raise ValueError(f"it has {len(blob)} bytes and should have {size}")
    return keys, names, end


def _unpack(blob: memoryview) -> PredictionRecord:
    keys, names, end = _keys(blob)
    _, _, time_ms, version, stable, candidate, routing_hash, _, n, probability, arm, flags, _, _, bucket = keys
    if not 0 < probability <= 1:
        raise ValueError(f"an inclusion probability of {probability:g}")
    if bucket > HELD_BUCKET + 1:
        raise ValueError(f"a bucket of {bucket - 1}")
    endpoint, bundle, prediction_id, network = str(blob[names:end], "utf-8").split("\0")
    blocks = _split(blob, names, end)
    scores = _array(blocks.get(Block.SCORES), _F4, n)
    if scores is None:
        raise ValueError("it has no scores")
    keep_fraction, load = _shed(blocks.get(Block.SHED))
    key = blocks.get(Block.REQUEST_KEY)
    return PredictionRecord(
        prediction_id=prediction_id,
        time_ms=time_ms,
        endpoint=endpoint,
        arm=ARMS[arm],
        bundle=bundle,
        version=version,
        features=_features(blocks, n),
        scores=scores,
        routing_hash=routing_hash,
        overridden=bool(flags & layout.OVERRIDDEN_FLAG),
        candidate_ids=_array(blocks.get(Block.CANDIDATE_IDS), _I8, n),
        network=network,
        stable_version=stable,
        candidate_version=candidate,
        inclusion_probability=probability,
        request_id=str(blocks.get(Block.REQUEST_ID, b""), "utf-8"),
        candidate_texts=_texts(blocks.get(Block.CANDIDATE_TEXTS), n),
        heads=tuple(_heads(blocks.get(Block.HEADS), n)),
        recall_scores=_array(blocks.get(Block.RECALL_SCORES), _F4, n),
        keep_fraction=keep_fraction,
        load=load,
        cached=_mask(blocks.get(Block.CACHED), n),
        request_key=0 if key is None else layout.REQUEST_KEY.unpack(key)[0],
        fields=str(blocks.get(Block.FIELDS, b""), "utf-8"),
        bucket=bucket - 1,
    )


def _split(blob: memoryview, directory: int, end: int) -> _Blocks:
    """The blocks by type, those of unknown types among them."""
    blocks: _Blocks = {}
    at = aligned(end)
    for kind, size in layout.ENTRY.iter_unpack(blob[layout.HEAD.size : directory]):
        if kind in blocks:
            raise ValueError(f"two blocks of type {kind}")
        blocks[kind] = blob[at : at + size]
        at += aligned(size)
    if at != len(blob):
        raise ValueError(f"it has {len(blob)} bytes where its blocks end at {at}")
    return blocks


def _features(blocks: _Blocks, n: int) -> Features:
    ids = tuple([IdPart(columns, values) for columns, values in _parts(blocks.get(Block.IDS), _I8)])
    numbers = tuple([NumberPart(columns, values) for columns, values in _parts(blocks.get(Block.NUMBERS), _F4)])
    bags = tuple(_bags(blocks.get(Block.BAGS)))
    check_shapes(n, (*ids, *numbers), bags)
    return Features(n, ids, numbers, bags)


def _parts(block: memoryview | None, dtype: np.dtype[Any]) -> Iterator[tuple[Array, Array]]:
    at = 0
    while block is not None and at < len(block):
        rows, columns = layout.PART.unpack_from(block, at)
        at += layout.PART.size
        named = np.frombuffer(block, _I4, columns, at)
        at += aligned(4 * columns)
        values = np.frombuffer(block, dtype, rows * columns, at)
        at += aligned(dtype.itemsize * rows * columns)
        yield named, values.reshape(rows, columns)
    _check_end(block, at)


def _bags(block: memoryview | None) -> Iterator[Bag]:
    at = 0
    while block is not None and at < len(block):
        rows, column = layout.PART.unpack_from(block, at)
        at += layout.PART.size
        offsets = np.frombuffer(block, _I4, rows + 1, at)
        at += aligned(4 * (rows + 1))
        count = int(offsets[-1])
        if count < 0:
            raise ValueError(f"a bag ends at {count}")
        yield Bag(column, offsets, np.frombuffer(block, _I8, count, at))
        at += 8 * count
    _check_end(block, at)


def _heads(block: memoryview | None, n: int) -> Iterator[HeadScores]:
    at = 0
    while block is not None and at < len(block):
        arm, size = layout.HEAD_SCORES.unpack_from(block, at)
        at += layout.HEAD_SCORES.size
        name = str(block[at : at + size], "utf-8")
        at += aligned(size)
        yield HeadScores(ARMS[arm], name, np.frombuffer(block, _F4, n, at))
        at += aligned(4 * n)
    _check_end(block, at)


def _check_end(block: memoryview | None, end: int) -> None:
    if block is not None and end != aligned(len(block)):
        raise ValueError(f"a block has {len(block)} bytes where its arrays end at {end}")


def _array(block: memoryview | None, dtype: np.dtype[Any], n: int) -> Array | None:
    if block is None:
        return None
    if len(block) != n * dtype.itemsize:
        raise ValueError(f"{len(block)} bytes of an array of {n} elements of {dtype.itemsize}")
    return np.frombuffer(block, dtype)


def _mask(block: memoryview | None, n: int) -> Mask | None:
    marks = _array(block, _U1, n)
    if marks is None:
        return None
    if n and marks.max() > 1:
        raise ValueError("a mark that is neither 0 nor 1")
    return marks.view(np.bool_)


def _shed(block: memoryview | None) -> tuple[float, float]:
    if block is None:
        return 1.0, 0.0
    keep, load = layout.SHED_STATE.unpack(block)
    if not (0 <= keep <= 1 and load >= 0):
        raise ValueError(f"a fraction of {keep:g} kept under a load of {load:g}")
    return keep, load


def _texts(block: memoryview | None, n: int) -> Sequence[str]:
    if block is None:
        return ()
    ends = np.frombuffer(block, _I4, n)
    whole = str(block[ends.nbytes :], "utf-8")
    rising = n and ends[0] >= 0 and not (ends[1:] < ends[:-1]).any()
    if not rising or ends[-1] != len(whole):
        raise ValueError("texts whose ends do not rise to the last")
    return Texts(whole, ends)
