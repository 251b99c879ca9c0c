"""The labelled stream as training sees it: mature rows in prediction order, cut into batches that never depend on timing.

A batch is made of whole entries of the labelled log, in order, until it holds enough rows. So the same log gives the
same batches whenever they are read, which is what makes a killed worker resume exactly. The share of requests that is
held out is decided by a salted hash of the prediction id and is the same in every process and run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.features import Bag, Rows, concat_rows
from pipeline.hashing import bucket
from pipeline.schema import Schema
from pipeline.traffic.log import Labelled, TrafficLog
from pipeline.traffic.record import unpack

__all__ = ["HOLDOUT_SALT", "StreamBatch", "StreamRows", "held_out", "read_batches"]

HOLDOUT_SALT = "holdout"
_PAGE = 256

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class StreamRows:
    """Labelled rows with what serving thought of them: scores float32 `[m]`, NaN where an arm did not score."""

    rows: Rows
    labels: F32
    stable: F32
    candidate: F32

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True)
class StreamBatch:
    """Entries `first..last` of the labelled log: rows to train on, and rows that no version is ever trained on."""

    last: int
    entries: int
    time_ms: int
    train: StreamRows
    held: StreamRows


def held_out(prediction_id: str, share: float) -> bool:
    """Whether a request's rows are kept from training: `share` of all requests, by hash."""
    return bucket(HOLDOUT_SALT, prediction_id) < round(10_000 * share)


def read_batches(log: TrafficLog, schema: Schema, after: int, *, rows: int, holdout: float) -> Iterator[StreamBatch]:
    """Full batches after position `after`, until the log has no further full one.

    Args:
        rows: a batch ends with the entry that brings its training rows to this number.
        holdout: share of requests held out.
    """
    pending: list[Labelled] = []
    count = 0
    while page := log.labelled(after, _PAGE):
        for entry in page:
            after = entry.seq
            pending.append(entry)
            if not held_out(entry.prediction_id, holdout):
                count += len(entry.indices)
            if count >= rows:
                yield make_batch(pending, schema, holdout)
                pending, count = [], 0


def make_batch(entries: Sequence[Labelled], schema: Schema, holdout: float) -> StreamBatch:
    """One batch of some consecutive entries."""
    train: list[Labelled] = []
    held: list[Labelled] = []
    for entry in entries:
        (held if held_out(entry.prediction_id, holdout) else train).append(entry)
    last = entries[-1]
    return StreamBatch(last.seq, len(entries), last.time_ms, _rows(train, schema), _rows(held, schema))


def _rows(entries: Sequence[Labelled], schema: Schema) -> StreamRows:
    if not entries:
        nothing = np.empty(0, np.float32)
        return StreamRows(empty_rows(schema), nothing, nothing, nothing)
    chunks = []
    scores: dict[str, list[F32]] = {"stable": [], "candidate": []}
    for entry in entries:
        record = unpack(entry.record)
        chunks.append(record.features.rows(schema, entry.indices))
        known = {record.arm: record.scores} | {other.arm: other.scores for other in entry.other}
        for arm, parts in scores.items():
            values = known.get(arm)
            parts.append(
                values[entry.indices] if values is not None else np.full(len(entry.indices), np.nan, np.float32)
            )
    return StreamRows(
        concat_rows(chunks),
        np.concatenate([entry.labels for entry in entries]),
        np.concatenate(scores["stable"]),
        np.concatenate(scores["candidate"]),
    )


def empty_rows(schema: Schema) -> Rows:
    """No rows, of the right widths."""
    return Rows(
        np.empty((0, len(schema.ids)), np.int64),
        np.empty((0, len(schema.numbers)), np.float32),
        tuple(Bag(i, np.zeros(1, np.int32), np.empty(0, np.int64)) for i in range(len(schema.bags))),
    )
