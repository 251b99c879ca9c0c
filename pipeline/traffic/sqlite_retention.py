"""What leaves the SQLite traffic log: old predictions, and those of a user who is to be forgotten.

A prediction leaves with everything that hangs on it, a few per transaction. Old ones stay while they are not joined or
while a reader has not come past their labelled rows, and the caller is told.
"""

from __future__ import annotations

import base64
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.prediction import ID_BYTES
from pipeline.traffic.sqlite_file import TrafficFile
from pipeline.traffic.sqlite_stats import count

__all__ = ["Retained", "forget", "retain"]

_CHUNK = 256


@dataclass(frozen=True, slots=True)
class Retained:
    """Rows deleted, and how many old predictions had to stay: `unread` for a reader, `unjoined` for the join."""

    predictions: int = 0
    feedback: int = 0
    labelled: int = 0
    parked: int = 0
    unread: int = 0
    unjoined: int = 0

    @property
    def held_back(self) -> bool:
        """Something is older than it should be: a reader or the join is behind, or dead."""
        return bool(self.unread or self.unjoined)


def retain(file: TrafficFile, before_ms: int, protect_seq: int | None) -> Retained:
    """Delete closed predictions made before `before_ms` whose labelled entries all have seq <= `protect_seq`."""
    predictions = feedback = labelled = 0
    # Ids sort by time: the index on them finds what is old without a walk through what is not.
    after, cut = "", _id_at(before_ms)
    while True:
        with file.write(durable=False) as db:
            protect = _slowest(db) if protect_seq is None else protect_seq
            old = db.execute(
                "SELECT seq, prediction_id FROM predictions WHERE prediction_id > ? AND prediction_id < ?"
                " AND seq <= (SELECT seq FROM watermark)"
                " AND NOT EXISTS (SELECT 1 FROM labelled l WHERE l.prediction = predictions.seq AND l.seq > ?)"
                " ORDER BY prediction_id LIMIT ?",
                (after, cut, protect, _CHUNK),
            ).fetchall()
            deleted = _delete(db, [seq for seq, _ in old])
        predictions += len(old)
        feedback += deleted[0]
        labelled += deleted[1]
        if len(old) < _CHUNK:
            break
        after = old[-1][1]
    with file.write(durable=False) as db:
        parked = db.execute("DELETE FROM parked WHERE prediction_id < ?", (cut,)).rowcount
        db.execute(
            "DELETE FROM scores WHERE prediction_id < ?"
            " AND NOT EXISTS (SELECT 1 FROM predictions p WHERE p.prediction_id = scores.prediction_id)",
            (cut,),
        )
        count(db, parked_expired=parked)
    with file.read() as db:
        unread, unjoined = db.execute(
            "SELECT count(*) FILTER (WHERE p.seq <= w.seq), count(*) FILTER (WHERE p.seq > w.seq)"
            " FROM predictions p, watermark w WHERE p.prediction_id < ?",
            (cut,),
        ).fetchone()
    return Retained(predictions, feedback, labelled, parked, unread, unjoined)


def forget(file: TrafficFile, routing_hash: int) -> int:
    """Delete all predictions of a routing hash (signed), joined or not, read or not; their bytes are overwritten."""
    deleted = 0
    with file.scrubbing():
        while True:
            with file.write(durable=True) as db:
                query = "SELECT seq FROM predictions WHERE routing_hash = ? LIMIT ?"
                theirs = [seq for (seq,) in db.execute(query, (routing_hash, _CHUNK))]
                _delete(db, theirs)
            deleted += len(theirs)
            if len(theirs) < _CHUNK:
                return deleted


def _delete(db: sqlite3.Connection, seqs: Sequence[int]) -> tuple[int, int]:
    """Delete predictions with everything that hangs on them; the rows deleted from feedback and from labelled."""
    rows = [(seq,) for seq in seqs]
    db.executemany(
        "DELETE FROM scores WHERE prediction_id = (SELECT prediction_id FROM predictions WHERE seq = ?)", rows
    )
    feedback = db.executemany("DELETE FROM feedback WHERE prediction = ?", rows).rowcount
    labelled = db.executemany("DELETE FROM labelled WHERE prediction = ?", rows).rowcount
    for statement in (
        "DELETE FROM late WHERE prediction = ?",
        "DELETE FROM records WHERE seq = ?",
        "DELETE FROM predictions WHERE seq = ?",
    ):
        db.executemany(statement, rows)
    return max(feedback, 0), max(labelled, 0)


def _slowest(db: sqlite3.Connection) -> int:
    """The place of the slowest reader; past everything when no reader ever committed one."""
    place = db.execute("SELECT min(seq) FROM positions").fetchone()[0]
    return (1 << 62) if place is None else int(place)


def _id_at(time_ms: int) -> str:
    """The smallest prediction id of a time."""
    body = max(time_ms, 0).to_bytes(6, "big") + bytes(ID_BYTES - 6)
    return base64.b32hexencode(body).decode().lower()
