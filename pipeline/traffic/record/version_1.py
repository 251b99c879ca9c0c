"""Reading of records that Baton 0.1 wrote: those of a home that is being converted, and of a Redis that has them still.

Little endian; a fixed head, two short names, then arrays each starting at a multiple of 8 bytes, context stored once.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from pipeline.arrays import Array
from pipeline.features import Bag, Features, IdPart, NumberPart
from pipeline.traffic.record.layout import aligned
from pipeline.traffic.record.record import ARMS, PredictionRecord, RecordHead
from pipeline.traffic.record.shapes import check_shapes

__all__ = ["MAGIC", "read_head", "unpack"]

MAGIC = b"BPR1"

# magic, time_ms, arm, flags, n, version, routing hash, counts of id, number and bag parts, length of the names
_HEAD = struct.Struct("<4sxxxxqBBxxIQQHHHH")
_PART = struct.Struct("<II")
_OFFSET = struct.Struct("<i")
_OVERRIDDEN_FLAG = 1
_CANDIDATE_IDS_FLAG = 2


def read_head(blob: bytes) -> RecordHead:
    """Keys of a record, which is checked to be complete.

    Raises:
        ValueError, IndexError, OverflowError, struct.error: the blob is not a complete record.
    """
    head = _HEAD.unpack_from(blob)
    _, time_ms, arm, flags, n, _, routing_hash, id_parts, number_parts, bag_parts, length = head
    endpoint, _, prediction_id = blob[_HEAD.size : _HEAD.size + length].decode().split("\0")
    at = aligned(_HEAD.size + length) + aligned(4 * n) + (8 * n if flags & _CANDIDATE_IDS_FLAG else 0)
    for part in range(id_parts + number_parts):
        r, k = _PART.unpack_from(blob, at)
        at += 8 + aligned(4 * k) + (8 * r * k if part < id_parts else aligned(4 * r * k))
    for _ in range(bag_parts):
        r, _ = _PART.unpack_from(blob, at)
        (count,) = _OFFSET.unpack_from(blob, at + 8 + 4 * r)
        if count < 0:
            raise ValueError(f"a bag ends at {count}")
        at += 8 + aligned(4 * (r + 1)) + 8 * count
    _check_end(len(blob), at)
    return RecordHead(prediction_id, time_ms, endpoint, n, routing_hash, ARMS[arm])


def unpack(blob: memoryview) -> PredictionRecord:
    """Read a record; its arrays are read-only views of `blob`.

    Raises:
        ValueError, IndexError, OverflowError, struct.error: the blob is not a complete record.
    """
    head = _HEAD.unpack_from(blob)
    _, time_ms, arm, flags, n, version, routing_hash, id_parts, number_parts, bag_parts, length = head
    endpoint, bundle, prediction_id = str(blob[_HEAD.size : _HEAD.size + length], "utf-8").split("\0")
    at = _Reader(blob, aligned(_HEAD.size + length))
    scores = at.array(np.float32, n)
    candidate_ids = at.array(np.int64, n) if flags & _CANDIDATE_IDS_FLAG else None
    ids = tuple([IdPart(*at.part(np.int64)) for _ in range(id_parts)])
    numbers = tuple([NumberPart(*at.part(np.float32)) for _ in range(number_parts)])
    bags = []
    for _ in range(bag_parts):
        r, column = at.shape()
        offsets = at.array(np.int32, r + 1)
        bags.append(Bag(column, offsets, at.array(np.int64, int(offsets[-1]))))
    _check_end(len(blob), at.at)
    check_shapes(n, (*ids, *numbers), bags)
    return PredictionRecord(
        prediction_id=prediction_id,
        time_ms=time_ms,
        endpoint=endpoint,
        arm=ARMS[arm],
        bundle=bundle,
        version=version,
        features=Features(n, ids, numbers, tuple(bags)),
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
        self.at = aligned(self.at + values.nbytes)
        return values


def _check_end(size: int, end: int) -> None:
    if end != size:
        raise ValueError(f"it has {size} bytes where its arrays end at {end}")
