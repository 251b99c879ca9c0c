"""Prediction in the traffic log in Redis: a hash, whose long fields are sequences of frames.

The scripts write this layout (`scripts`); this file reads it and makes the frames.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.redis.foreign import parsing, whole_number
from pipeline.traffic.feedback import Change, LabelState, dump_entry, load_entry
from pipeline.traffic.log import FeedbackEntry, Scores
from pipeline.traffic.redis.scripts import PREFIX

__all__ = ["FIELDS", "Stored", "frames", "key_of", "other_scores", "parked_frame", "seq_of"]

FIELDS = ("version", "seq", "n", "ms", "closes", "revision", "changes", "parked", "mature", "endpoint")
MAX_ROWS = 1 << 20
"""Candidates of one prediction, more than a request may have."""
_LENGTH = struct.Struct("<I")
_RECEIVED = struct.Struct("<q")


@dataclass(frozen=True, slots=True)
class Stored:
    """Prediction as read; `seq` is None before it is written."""

    prediction_id: str
    version: int
    seq: int | None
    n: int
    ms: int
    closes: int
    revision: int | None
    changes: tuple[bytes, ...]
    parked: tuple[bytes, ...]
    mature: tuple[bytes, ...]
    endpoint: str = ""

    def state(self) -> LabelState:
        return LabelState.fold(self.n, map(Change.unpack, self.changes))

    def waiting(self) -> Iterator[tuple[int, FeedbackEntry]]:
        """Parked feedback with the time of its arrival."""
        for frame in self.parked:
            yield _RECEIVED.unpack_from(frame)[0], load_entry(self.prediction_id, frame[_RECEIVED.size :].decode())

    @classmethod
    def of(cls, prediction_id: str, values: Sequence[bytes | None]) -> Stored:
        """From the values of `FIELDS`."""
        with parsing(key_of(prediction_id)):
            version, seq, n, ms, closes, revision, changes, parked, mature, endpoint = values
            rows = whole_number(n)
            if not 0 <= rows <= MAX_ROWS:
                raise ValueError(f"a prediction of {rows} rows")
            return cls(
                prediction_id,
                whole_number(version),
                None if seq is None else whole_number(seq),
                rows,
                whole_number(ms),
                whole_number(closes),
                None if revision is None else whole_number(revision),
                _unframed(changes),
                _unframed(parked),
                _unframed(mature),
                "" if endpoint is None else endpoint.decode(),
            )


def key_of(prediction_id: str) -> str:
    """Key of a prediction."""
    return f"{PREFIX}p:{prediction_id}"


def seq_of(place: bytes) -> int:
    """The number in the id of a stream's entry."""
    return int(place.partition(b"-")[0])


def frames(parts: Iterable[bytes]) -> bytes:
    """Parts with their lengths, concatenated."""
    return b"".join(_LENGTH.pack(len(part)) + part for part in parts)


def _unframed(blob: bytes | None) -> tuple[bytes, ...]:
    parts, at = [], 0
    while blob and at < len(blob):
        (size,) = _LENGTH.unpack_from(blob, at)
        at += _LENGTH.size
        parts.append(blob[at : at + size])
        at += size
        if at > len(blob):
            raise ValueError("a part goes on beyond its end")
    return tuple(parts)


def other_scores(stored: Mapping[bytes, bytes]) -> tuple[Scores, ...]:
    """Scores of other arms from a whole hash, in the order of storage, which precedes each value as 8 digits."""
    found = sorted((value[:8], name, value[8:]) for name, value in stored.items() if name.startswith(b"s:"))
    return tuple(
        Scores(arm, bundle, int(version), np.frombuffer(value, np.float32))
        for _, name, value in found
        for arm, bundle, version in [name[2:].decode().split("\0")]
    )


def parked_frame(received_ms: int, entry: FeedbackEntry) -> bytes:
    """Feedback that waits for its prediction, with the time of its arrival."""
    return _RECEIVED.pack(received_ms) + dump_entry(entry).encode()
