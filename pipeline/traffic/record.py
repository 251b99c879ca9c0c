"""Prediction record: one packed blob per answered request, with all that training and analysis need.

Little endian; a fixed head, two short names, then arrays each starting at a multiple of 8 bytes, context stored once.
Lanes send it to the shadow lane, too. Labels are not in it; they come later.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from pipeline.arrays import F32, I64, Array
from pipeline.errors import InvalidInput
from pipeline.features import Bag, Features, IdPart, NumberPart

__all__ = [
    "ARMS",
    "PredictionRecord",
    "RecordHead",
    "finder",
    "lazy_finder",
    "made_by",
    "pack",
    "read_head",
    "unpack",
]

MAGIC = b"BPR1"
ARMS = ("stable", "candidate", "direct")


# magic, time_ms, arm, flags, n, version, routing hash, counts of id, number and bag parts, length of the names
_HEAD = struct.Struct("<4sxxxxqBBxxIQQHHHH")
_PART = struct.Struct("<II")
_OFFSET = struct.Struct("<i")
_TIME = struct.Struct("<q")
_TIME_OFFSET_BYTES = 8
_MAX_COLUMNS = 1 << 16
_OVERRIDDEN_FLAG = 1
_CANDIDATE_IDS_FLAG = 2


@dataclass(frozen=True, slots=True)
class PredictionRecord:
    """One answered request.

    Args:
        prediction_id: as given to the client.
        time_ms: Unix time of the answer, milliseconds.
        endpoint: name that the client called.
        arm: that answered: `stable`, `candidate` or `direct` (a model called by name, outside every analysis).
        bundle, version: the model version that answered.
        features: hashed features of the `n` candidates, context once.
        scores: float32 `[n]`, calibrated probabilities in request order.
        routing_hash: keyed 64-bit hash of the routing key, 0 without one.
        overridden: whether the caller chose the arm; such rows are not analysed.
        candidate_ids: int64 `[n]` hashes of the caller's candidate ids, or None.
    """

    prediction_id: str
    time_ms: int
    endpoint: str
    arm: str
    bundle: str
    version: int
    features: Features
    scores: F32
    routing_hash: int = 0
    overridden: bool = False
    candidate_ids: I64 | None = None


class RecordHead(NamedTuple):
    """Keys of a record in a log; attributes as of `PredictionRecord`, and `n`, the number of candidates."""

    prediction_id: str
    time_ms: int
    endpoint: str
    n: int
    routing_hash: int
    arm: str


def pack(record: PredictionRecord) -> bytes:
    """Write a record as bytes."""
    f = record.features
    names = f"{record.endpoint}\0{record.bundle}\0{record.prediction_id}".encode()
    flags = (_OVERRIDDEN_FLAG if record.overridden else 0) | (
        _CANDIDATE_IDS_FLAG if record.candidate_ids is not None else 0
    )
    head = _HEAD.pack(
        MAGIC,
        record.time_ms,
        ARMS.index(record.arm),
        flags,
        f.n,
        record.version,
        record.routing_hash,
        len(f.ids),
        len(f.numbers),
        len(f.bags),
        len(names),
    )
    parts: list[bytes] = [head + names, _bytes(record.scores, np.float32)]
    if record.candidate_ids is not None:
        parts.append(_bytes(record.candidate_ids, np.int64))
    for part in f.ids:
        parts += (_PART.pack(*part.values.shape), _bytes(part.columns, np.int32), _bytes(part.values, np.int64))
    for number in f.numbers:
        parts += (_PART.pack(*number.values.shape), _bytes(number.columns, np.int32), _bytes(number.values, np.float32))
    for bag in f.bags:
        parts += (_PART.pack(bag.rows, bag.column), _bytes(bag.offsets, np.int32), _bytes(bag.values, np.int64))
    return b"".join([part + bytes(-len(part) % 8) if len(part) & 7 else part for part in parts])


def unpack(blob: bytes | memoryview) -> PredictionRecord:
    """Read a record; its arrays are read-only views of `blob`.

    Raises:
        InvalidInput: the blob is not a complete record.
    """
    try:
        return _unpack(memoryview(blob))
    except (struct.error, ValueError, IndexError, OverflowError) as error:
        raise InvalidInput(f"not a prediction record: {error}") from None


def read_head(blob: bytes) -> RecordHead:
    """Keys of a record. The record is checked to be complete, but no array is made: a quarter of the time of `unpack`.

    Raises:
        InvalidInput: the blob is not a complete record.
    """
    try:
        return _head_of(blob)
    except (struct.error, ValueError, IndexError, OverflowError) as error:
        raise InvalidInput(f"not a prediction record: {error}") from None


def made_by(blob: bytes, now_ms: int) -> bytes:
    """The record with a time of at most `now_ms`: a prediction of the future was made by a clock that is ahead."""
    if len(blob) < _HEAD.size or _TIME.unpack_from(blob, _TIME_OFFSET_BYTES)[0] <= now_ms:
        return blob
    return blob[:_TIME_OFFSET_BYTES] + _TIME.pack(now_ms) + blob[_TIME_OFFSET_BYTES + _TIME.size :]


def finder(record: PredictionRecord) -> Callable[[int], int | None]:
    """Function from a hashed candidate id to its row, None if the record has no such candidate."""
    ids = record.candidate_ids
    rows = {} if ids is None else {candidate: row for row, candidate in enumerate(ids.tolist())}
    return rows.get


def lazy_finder(load: Callable[[], bytes | None]) -> Callable[[int], int | None]:
    """`finder` of a stored record, loaded for the first candidate id only: most clients send indices.

    Args:
        load: the record; None if it was deleted since the prediction was read, which finds no row.
    """
    find: Callable[[int], int | None] | None = None

    def lookup(candidate_id: int) -> int | None:
        nonlocal find
        if find is None:
            blob = load()
            find = (lambda _: None) if blob is None else finder(unpack(blob))
        return find(candidate_id)

    return lookup


def _head_of(blob: bytes) -> RecordHead:
    head = _HEAD.unpack_from(blob)
    magic, time_ms, arm, flags, n, _, routing_hash, id_parts, number_parts, bag_parts, length = head
    if magic != MAGIC or arm >= len(ARMS):
        raise ValueError(f"it starts with {magic!r} and arm {arm}")
    endpoint, _, prediction_id = blob[_HEAD.size : _HEAD.size + length].decode().split("\0")
    at = _aligned(_HEAD.size + length) + _aligned(4 * n) + (8 * n if flags & _CANDIDATE_IDS_FLAG else 0)
    for part in range(id_parts + number_parts):
        r, k = _PART.unpack_from(blob, at)
        at += 8 + _aligned(4 * k) + (8 * r * k if part < id_parts else _aligned(4 * r * k))
    for _ in range(bag_parts):
        r, _ = _PART.unpack_from(blob, at)
        (count,) = _OFFSET.unpack_from(blob, at + 8 + 4 * r)
        if count < 0:
            raise ValueError(f"a bag ends at {count}")
        at += 8 + _aligned(4 * (r + 1)) + 8 * count
    _check_end(len(blob), at)
    return RecordHead(prediction_id, time_ms, endpoint, n, routing_hash, ARMS[arm])


def _unpack(blob: memoryview) -> PredictionRecord:
    head = _HEAD.unpack_from(blob)
    magic, time_ms, arm, flags, n, version, routing_hash, id_parts, number_parts, bag_parts, length = head
    if magic != MAGIC:
        raise ValueError(f"it starts with {bytes(magic)!r} instead of {MAGIC!r}")
    endpoint, bundle, prediction_id = bytes(blob[_HEAD.size : _HEAD.size + length]).decode().split("\0")
    at = _Reader(blob, _aligned(_HEAD.size + length))
    scores = at.array(np.float32, n)
    candidate_ids = at.array(np.int64, n) if flags & _CANDIDATE_IDS_FLAG else None
    ids = [IdPart(*at.part(np.int64)) for _ in range(id_parts)]
    numbers = [NumberPart(*at.part(np.float32)) for _ in range(number_parts)]
    bags = []
    for _ in range(bag_parts):
        r, column = at.shape()
        offsets = at.array(np.int32, r + 1)
        bags.append(Bag(column, offsets, at.array(np.int64, int(offsets[-1]))))
    _check_end(len(blob), at.at)
    _check_shapes(n, [*ids, *numbers], bags)
    return PredictionRecord(
        prediction_id=prediction_id,
        time_ms=time_ms,
        endpoint=endpoint,
        arm=ARMS[arm],
        bundle=bundle,
        version=version,
        features=Features(n, tuple(ids), tuple(numbers), tuple(bags)),
        scores=scores,
        routing_hash=routing_hash,
        overridden=bool(flags & _OVERRIDDEN_FLAG),
        candidate_ids=candidate_ids,
    )


class _Reader:
    def __init__(self, blob: memoryview, at: int) -> None:
        self._blob = blob
        self.at = at

    def shape(self) -> tuple[int, int]:
        rows, columns = _PART.unpack_from(self._blob, self.at)
        self.at += _PART.size
        return rows, columns

    def part(self, dtype: Any) -> tuple[Array, Array]:
        rows, columns = self.shape()
        return self.array(np.int32, columns), self.array(dtype, rows * columns).reshape(rows, columns)

    def array(self, dtype: Any, count: int) -> Array:
        if count < 0:
            raise ValueError(f"an array of {count} elements")
        values = np.frombuffer(self._blob, dtype, count, self.at)
        self.at = _aligned(self.at + values.nbytes)
        return values


def _check_end(size: int, end: int) -> None:
    if end != size:
        raise ValueError(f"it has {size} bytes where its arrays end at {end}")


def _check_shapes(n: int, parts: Sequence[IdPart | NumberPart], bags: Sequence[Bag]) -> None:
    """A record may come from a place where others write, and compiled loops follow its columns and offsets unseen."""
    for part in parts:
        if len(part.values) not in (1, n):
            raise ValueError(f"a part of {len(part.values)} rows beside {n} candidates")
        if len(part.columns) and not (part.columns.min() >= 0 and part.columns.max() < _MAX_COLUMNS):
            raise ValueError("a part of columns that no schema has")
    for bag in bags:
        if bag.rows not in (1, n) or bag.column >= _MAX_COLUMNS:
            raise ValueError(f"a bag of {bag.rows} rows and column {bag.column} beside {n} candidates")
        if bag.offsets[0] != 0 or (bag.offsets[1:] < bag.offsets[:-1]).any():
            raise ValueError("offsets of a bag that do not rise from 0")


def _aligned(size: int) -> int:
    return (size + 7) & ~7


def _bytes(values: Array, dtype: Any) -> bytes:
    return np.ascontiguousarray(values, dtype).tobytes()
