"""The labelled stream in training batches: mature rows in prediction order, cut independently of timing.

A batch is made of whole entries of the labelled log, in order, until it holds enough rows. The same log gives the same
batches whenever they are read, so a killed worker resumes exactly. A salted hash of the prediction id decides which
requests are held out, the same ones in every process and run.

Entries of other endpoints, of models called by their own name, of another schema and without features are skipped: they
advance the position only and do not move the cuts. Those without features (predictions that were answered elsewhere) are
counted. Rows whose arm the caller chose are used like any other.

Teacher and student may have different fields: each gets the rows as it reads them.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import xxhash

from pipeline.arrays import F32, I64
from pipeline.errors import InvalidInput
from pipeline.features import Bag, Features, Rows, concat_rows
from pipeline.hashing import bucket
from pipeline.reading import read_record
from pipeline.schema import Schema
from pipeline.traffic.log import Labelled, TrafficLog
from pipeline.traffic.record import PredictionRecord, unpack

__all__ = ["HOLDOUT_SALT", "Fields", "StreamBatch", "StreamRows", "Tail", "held_out", "read_batches"]

HOLDOUT_SALT = "holdout"
_PAGE_ENTRIES = 256

_NOTHING = np.empty(0, np.float32)


@dataclass(frozen=True, slots=True)
class Fields:
    """Fields that the models of a worker read.

    Args:
        student: those of the student.
        teacher: those of a teacher that learns; None: it needs no rows, or reads them as the student does.
        known: fields of bundles by name, for records that do not name theirs.
    """

    student: Schema
    teacher: Schema | None = None
    known: Mapping[str, Schema] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Entry:
    """An entry of the labelled log, its record, and the features of that as student and teacher read them."""

    labelled: Labelled
    record: PredictionRecord
    features: Features
    taught: Features | None


@dataclass(frozen=True, slots=True)
class StreamRows:
    """Labelled rows with the scores of serving, float32 `[m]`, NaN where an arm did not score. `previous`
    is the label that a late one replaces, float32 `[m]`, NaN for rows that come for the first time. `keys` identify
    rows, int64 `[m]`, the same for a row and its later labels; needed where rows are held. `probability` is that with
    which a row was recorded, float32 `[m]`; empty: all were. `taught` are the rows as the teacher reads them; None: as the
    student does."""

    rows: Rows
    labels: F32
    previous: F32
    stable: F32
    candidate: F32
    keys: I64 = field(default_factory=lambda: np.empty(0, np.int64))
    probability: F32 = field(default_factory=lambda: _NOTHING)
    taught: Rows | None = None

    @property
    def stands_for(self) -> F32:
        """Rows of the traffic that each row stands for, float32 `[m]`."""
        return np.float32(1) / self.probability if len(self.probability) else np.ones(len(self), np.float32)

    @property
    def for_teacher(self) -> Rows:
        """The rows as the teacher reads them."""
        return self.rows if self.taught is None else self.taught

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True)
class StreamBatch:
    """Rows to train on and rows that no version is ever trained on, of entries of the labelled log up to seq `last`.
    `featureless`: labelled rows on the way whose features were not recorded."""

    last: int
    train: StreamRows
    held: StreamRows
    featureless: int = 0


@dataclass(frozen=True, slots=True)
class Tail:
    """End of the log: `rows` of the next batch that are there, and the place up to which nothing of it was, with the
    labelled rows on the way to that whose features were not recorded."""

    rows: int
    last: int
    featureless: int


def held_out(prediction_id: str, fraction: float) -> bool:
    """Whether a request's rows are kept from training: a fraction of all requests, by hash."""
    return bucket(HOLDOUT_SALT, prediction_id) < round(10_000 * fraction)


def read_batches(
    log: TrafficLog, endpoint: str, fields: Fields, after: int, *, rows: int, holdout: float
) -> Generator[StreamBatch, None, Tail]:
    """Full batches after position `after`, until the log has no further full one. Returns what is there of that.

    Args:
        endpoint: of the rows.
        fields: that they must fit.
        rows: a batch ends with the entry that brings its training rows to this number.
        holdout: fraction of requests held out.
    """
    pending: list[_Entry] = []
    count, featureless, passed = 0, 0, Tail(0, after, 0)
    while page := log.labelled(after, _PAGE_ENTRIES):
        for labelled in page:
            after = labelled.seq
            entry = _usable(labelled, endpoint, fields)
            if isinstance(entry, int):
                featureless += entry
                passed = passed if pending else Tail(0, after, featureless)
                continue
            pending.append(entry)
            if not held_out(labelled.prediction_id, holdout):
                count += len(labelled.indices)
            if count >= rows:
                yield _batch(pending, fields, holdout, featureless)
                pending, count, featureless, passed = [], 0, 0, Tail(0, after, 0)
    return Tail(count, passed.last, passed.featureless)


def _usable(labelled: Labelled, endpoint: str, fields: Fields) -> _Entry | int:
    """The entry with its record; where its rows are not for this worker, the number of those that lack features alone."""
    if not len(labelled.indices):
        return 0
    try:
        record = unpack(labelled.record)
        if record.endpoint != endpoint or record.arm == "direct":
            return 0
        if record.features.absent:
            return len(labelled.indices)
        features = read_record(record, fields.student, fields.known)
        features.refuse_vast(len(labelled.indices))
        taught = None
        if fields.teacher is not None:
            taught = read_record(record, fields.teacher, fields.known)
            taught.refuse_vast(len(labelled.indices))
        return _Entry(labelled, record, features, taught)
    except InvalidInput:
        return 0  # made under another schema, damaged or too large: it would be so at every reading


def _batch(entries: Sequence[_Entry], fields: Fields, holdout: float, featureless: int) -> StreamBatch:
    train: list[_Entry] = []
    held: list[_Entry] = []
    for entry in entries:
        (held if held_out(entry.labelled.prediction_id, holdout) else train).append(entry)
    return StreamBatch(entries[-1].labelled.seq, _rows(train, fields), _rows(held, fields), featureless)


def _rows(entries: Sequence[_Entry], fields: Fields) -> StreamRows:
    teacher = fields.teacher
    if not entries:
        taught = None if teacher is None else empty_rows(teacher)
        return StreamRows(empty_rows(fields.student), _NOTHING, _NOTHING, _NOTHING, _NOTHING, taught=taught)
    scores: dict[str, list[F32]] = {"stable": [], "candidate": []}
    for entry in entries:
        record, indices = entry.record, entry.labelled.indices
        known = {record.arm: record.scores} | {other.arm: other.scores for other in entry.labelled.other}
        for arm, parts in scores.items():
            values = known.get(arm)
            parts.append(values[indices] if values is not None else np.full(len(indices), np.nan, np.float32))
    labelled = [entry.labelled for entry in entries]
    sizes = [len(entry.indices) for entry in labelled]
    return StreamRows(
        concat_rows([entry.features.rows(fields.student, entry.labelled.indices) for entry in entries]),
        np.concatenate([entry.labels for entry in labelled]),
        np.concatenate([entry.previous for entry in labelled]),
        np.concatenate(scores["stable"]),
        np.concatenate(scores["candidate"]),
        np.concatenate([_keys(entry) for entry in labelled]),
        np.repeat(np.array([entry.record.inclusion_probability for entry in entries], np.float32), sizes),
        None
        if teacher is None
        else concat_rows(
            [entry.taught.rows(teacher, entry.labelled.indices) for entry in entries if entry.taught is not None]
        ),
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
