"""Retention in the SQLite traffic log: old predictions, and those of a user to forget.

A prediction is deleted with everything that belongs to it, a few per transaction. Old ones stay while they are not joined
or a reader has not passed their labelled rows; the result counts them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from pipeline.traffic.log import Retained
from pipeline.traffic.prediction import smallest_id
from pipeline.traffic.sqlite.file import TrafficFile
from pipeline.traffic.sqlite.stats import count

__all__ = ["forget", "retain"]

_CHUNK_PREDICTIONS = 256
_LAST = "w"  # after every id: they are written in 0-9a-v


def retain(file: TrafficFile, before_ms: int, protect_seq: int | None, max_bytes: int | None) -> Retained:
    """Delete closed predictions made before `before_ms` whose labelled entries all have seq <= `protect_seq`; then,
    oldest first, such predictions until the file holds at most `max_bytes`, free pages not counted."""
    cut = smallest_id(before_ms)
    done = _sweep(file, cut, protect_seq, None)
    with file.write(durable=False) as db:
        parked = db.execute("DELETE FROM parked WHERE prediction_id < ?", (cut,)).rowcount
        db.execute(
            "DELETE FROM scores WHERE prediction_id < ?"
            " AND NOT EXISTS (SELECT 1 FROM predictions p WHERE p.prediction_id = scores.prediction_id)",
            (cut,),
        )
        db.execute("DELETE FROM forgotten WHERE until_ms < ?", (before_ms,))
        count(db, parked_expired=parked)
    over = 0
    if max_bytes is not None:
        done += _sweep(file, _LAST, protect_seq, max_bytes)
        with file.read() as db:
            over = max(0, _used_bytes(db) - max_bytes)
    with file.read() as db:
        unread, unjoined = db.execute(
            "SELECT count(*) FILTER (WHERE p.seq <= w.seq), count(*) FILTER (WHERE p.seq > w.seq)"
            " FROM predictions p, watermark w WHERE p.prediction_id < ?",
            (cut,),
        ).fetchone()
    return done + Retained(parked=parked, unread=unread, unjoined=unjoined, over_bytes=over)


def _sweep(file: TrafficFile, cut: str, protect_seq: int | None, max_bytes: int | None) -> Retained:
    """Delete the predictions with ids below `cut` that may be deleted, oldest first; with `max_bytes` only down to that."""
    done = Retained()
    # Ids sort by time: their index finds old predictions without a scan.
    after = ""
    while True:
        with file.write(durable=False) as db:
            if max_bytes is not None and _used_bytes(db) <= max_bytes:
                return done
            protect = _slowest(db) if protect_seq is None else protect_seq
            old = db.execute(
                "SELECT seq, prediction_id FROM predictions WHERE prediction_id > ? AND prediction_id < ?"
                " AND seq <= (SELECT seq FROM watermark)"
                " AND NOT EXISTS (SELECT 1 FROM labelled l WHERE l.prediction = predictions.seq AND l.seq > ?)"
                " ORDER BY prediction_id LIMIT ?",
                (after, cut, protect, _CHUNK_PREDICTIONS),
            ).fetchall()
            done += Retained(len(old), *_delete(db, [seq for seq, _ in old]))
        if len(old) < _CHUNK_PREDICTIONS:
            return done
        after = old[-1][1]


def forget(file: TrafficFile, routing_hash: int, now_ms: int) -> int:
    """Delete all predictions of a routing hash (signed), joined or not, read or not; their bytes are overwritten. Those
    made by `now_ms` that are written later are refused."""
    deleted = 0
    with file.scrubbing():
        with file.write(durable=True) as db:
            db.execute("INSERT OR REPLACE INTO forgotten VALUES (?, ?)", (routing_hash, now_ms))
        while True:
            with file.write(durable=True) as db:
                query = "SELECT seq FROM predictions WHERE routing_hash = ? LIMIT ?"
                seqs = [seq for (seq,) in db.execute(query, (routing_hash, _CHUNK_PREDICTIONS))]
                _delete(db, seqs)
            deleted += len(seqs)
            if len(seqs) < _CHUNK_PREDICTIONS:
                return deleted


def _delete(db: sqlite3.Connection, seqs: Sequence[int]) -> tuple[int, int]:
    """Delete predictions with everything that belongs to them; the rows deleted from feedback and from labelled."""
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
    """Position of the slowest reader; beyond all entries if no reader ever committed one."""
    place = db.execute("SELECT min(seq) FROM positions").fetchone()[0]
    return (1 << 62) if place is None else int(place)


def _used_bytes(db: sqlite3.Connection) -> int:
    """Bytes of pages in use; the file itself does not shrink, its free pages are reused."""
    pages, free, size = (
        int(db.execute(f"PRAGMA {what}").fetchone()[0]) for what in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * size
