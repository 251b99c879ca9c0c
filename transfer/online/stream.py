"""The labelled stream in training batches: mature rows in prediction order, cut independently of timing.

A batch is made of whole entries of the labelled log, in order, until it holds enough rows. The same log gives the same
batches whenever they are read, so a killed worker resumes exactly. A salted hash of the prediction id decides which
requests are held out, the same ones in every process and run.

Entries of other endpoints, of models called by their own name and of another schema are skipped: they advance the position
only and do not move the cuts. Rows whose arm the caller chose are used like any other.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import numpy as np
import xxhash

from pipeline.arrays import F32, I64
from pipeline.errors import InvalidInput
from pipeline.features import Bag, Rows, concat_rows
from pipeline.hashing import bucket
from pipeline.schema import Schema
from pipeline.traffic.log import Labelled, TrafficLog
from pipeline.traffic.record import PredictionRecord, unpack

__all__ = ["HOLDOUT_SALT", "StreamBatch", "StreamRows", "held_out", "read_batches"]

HOLDOUT_SALT = "holdout"
_PAGE_ENTRIES = 256

_Entry = tuple[Labelled, PredictionRecord]


@dataclass(frozen=True, slots=True)
class StreamRows:
    """Labelled rows with the scores of serving, float32 `[m]`, NaN where an arm did not score. `previous`
    is the label that a late one replaces, float32 `[m]`, NaN for rows that come for the first time. `keys` identify
    rows, int64 `[m]`, the same for a row and its later labels; needed where rows are held."""

    rows: Rows
    labels: F32
    previous: F32
    stable: F32
    candidate: F32
    keys: I64 = field(default_factory=lambda: np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True)
class StreamBatch:
    """Rows to train on and rows that no version is ever trained on, of entries of the labelled log up to seq `last`."""

    last: int
    train: StreamRows
    held: StreamRows


def held_out(prediction_id: str, fraction: float) -> bool:
    """Whether a request's rows are kept from training: a fraction of all requests, by hash."""
    return bucket(HOLDOUT_SALT, prediction_id) < round(10_000 * fraction)


def read_batches(
    log: TrafficLog, endpoint: str, schema: Schema, after: int, *, rows: int, holdout: float
) -> Generator[StreamBatch, None, int]:
    """Full batches after position `after`, until the log has no further full one. Returns the rows of that.

    Args:
        endpoint: of the rows.
        schema: that they must fit.
        rows: a batch ends with the entry that brings its training rows to this number.
        holdout: fraction of requests held out.
    """
    pending: list[_Entry] = []
    count = 0
    while page := log.labelled(after, _PAGE_ENTRIES):
        for entry in page:
            after = entry.seq
            record = _usable(entry, endpoint, schema)
            if record is None:
                continue
            pending.append((entry, record))
            if not held_out(entry.prediction_id, holdout):
                count += len(entry.indices)
            if count >= rows:
                yield _batch(pending, schema, holdout)
                pending, count = [], 0
    return count


def _usable(entry: Labelled, endpoint: str, schema: Schema) -> PredictionRecord | None:
    """The entry's record, None where its rows are not for this worker."""
    try:
        record = unpack(entry.record)
        if record.endpoint != endpoint or record.arm == "direct" or not len(entry.indices):
            return None
        record.features.check(schema)
        record.features.refuse_vast(len(entry.indices))
    except InvalidInput:
        return None  # made under another schema, damaged or too large: it would be so at every reading
    return record


def _batch(entries: Sequence[_Entry], schema: Schema, holdout: float) -> StreamBatch:
    train: list[_Entry] = []
    held: list[_Entry] = []
    for entry, record in entries:
        (held if held_out(entry.prediction_id, holdout) else train).append((entry, record))
    return StreamBatch(entries[-1][0].seq, _rows(train, schema), _rows(held, schema))


def _rows(entries: Sequence[_Entry], schema: Schema) -> StreamRows:
    if not entries:
        nothing = np.empty(0, np.float32)
        return StreamRows(empty_rows(schema), nothing, nothing, nothing, nothing)
    chunks = []
    scores: dict[str, list[F32]] = {"stable": [], "candidate": []}
    for entry, record in entries:
        chunks.append(record.features.rows(schema, entry.indices))
        known = {record.arm: record.scores} | {other.arm: other.scores for other in entry.other}
        for arm, parts in scores.items():
            values = known.get(arm)
            parts.append(
                values[entry.indices] if values is not None else np.full(len(entry.indices), np.nan, np.float32)
            )
    return StreamRows(
        concat_rows(chunks),
        np.concatenate([entry.labels for entry, _ in entries]),
        np.concatenate([entry.previous for entry, _ in entries]),
        np.concatenate(scores["stable"]),
        np.concatenate(scores["candidate"]),
        np.concatenate([_keys(entry) for entry, _ in entries]),
    )


def _keys(entry: Labelled) -> I64:
    request = xxhash.xxh3_64_intdigest(entry.prediction_id.encode())
    return (np.uint64(request) + entry.indices.astype(np.uint64)).view(np.int64)


def empty_rows(schema: Schema) -> Rows:
    """No rows, of the right widths."""
    return Rows(
        np.empty((0, len(schema.ids)), np.int64),
        np.empty((0, len(schema.numbers)), np.float32),
        tuple(Bag(i, np.zeros(1, np.int32), np.empty(0, np.int64)) for i in range(len(schema.bags))),
    )
