"""Traffic log of one machine, in SQLite: written by lanes and control, read by worker and analysis.

This file is only about storage and transactions; the rules of feedback are in `feedback`, those of labelled rows in `join`,
those of deletion in `retention`.

Feedback is checked against its prediction in the transaction that stores it; feedback on a prediction not written yet is
parked, and checked in the transaction that writes the prediction. So the join takes predictions in order of their seq from
its watermark, and revisits only closed ones marked `late`; it never scans.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.traffic.feedback import Change, LabelState, accept, accept_parked, dump_entry, load_entry, refusal
from pipeline.traffic.join import MatureRows, closes_at, mature_rows, set_right, stands_wrong, written_labels
from pipeline.traffic.log import (
    INVALID,
    FeedbackEntry,
    FeedbackReply,
    Labelled,
    Retained,
    Scores,
    TrafficStats,
)
from pipeline.traffic.prediction import PredictionIds
from pipeline.traffic.record import RecordHead, finder, lazy_finder, made_by, read_head, unpack
from pipeline.traffic.sqlite.file import TrafficFile
from pipeline.traffic.sqlite.retention import forget, retain
from pipeline.traffic.sqlite.stats import count, read_stats

__all__ = ["SqliteTrafficLog"]

# The join holds the write lock for this many predictions at a time, so that lanes never wait long for it.
_CHUNK_PREDICTIONS = 64
# Predictions written by one statement.
_AT_ONCE_PREDICTIONS = 64


class SqliteTrafficLog:
    """`pipeline.traffic.log.TrafficLog` in one file; any number of processes may have it open.

    Args:
        path: the database file, created if absent.
        ids: verifies prediction ids.
        attribution_window_ms: how long after its exposure a row waits for a label before it counts as 0.
        late_limit_ms: feedback on predictions older than this is answered EXPIRED.

    Raises:
        InvalidInput: the file is not a traffic log, or of a newer Baton.
        NotReady: the file cannot be opened; all methods raise it if the store is locked, full or failing.
    """

    def __init__(
        self,
        path: Path,
        ids: PredictionIds,
        attribution_window_ms: int = 30 * 60_000,
        late_limit_ms: int = 24 * 3_600_000,
    ) -> None:
        self._ids = ids
        self._window = attribution_window_ms
        self._late_limit = late_limit_ms
        self._file = TrafficFile(path)

    @property
    def window_ms(self) -> int:
        """Attribution window."""
        return self._window

    def now_ms(self) -> int:
        """The machine's time, as SQLite reads it."""
        return self._file.now_ms()

    def append_predictions(self, records: Sequence[bytes]) -> None:
        """Commit packed prediction records, in order; one written before is left as it is, one of the future is made now.

        Raises:
            InvalidInput: one of them is not a record; none is written.
        """
        now_ms = self.now_ms()
        read = [(read_head(blob), blob) for blob in (made_by(blob, now_ms) for blob in records)]
        with self._file.write(durable=False) as db:
            written = 0
            for start in range(0, len(read), _AT_ONCE_PREDICTIONS):
                written += self._insert(db, read[start : start + _AT_ONCE_PREDICTIONS])
            count(db, predictions=written)

    def append_scores(self, scores: Sequence[tuple[str, Scores]]) -> None:
        """Commit another arm's scores; a repetition for the same version changes nothing."""
        rows = [
            (prediction_id, s.arm, s.bundle, s.version, np.ascontiguousarray(s.scores, np.float32).tobytes())
            for prediction_id, s in scores
        ]
        with self._file.write(durable=False) as db:
            db.executemany("INSERT OR IGNORE INTO scores VALUES (?, ?, ?, ?, ?)", rows)
            db.executemany(
                "UPDATE predictions SET scored = 1 WHERE prediction_id = ? AND scored = 0", [r[:1] for r in rows]
            )

    def append_feedback(self, entries: Sequence[FeedbackEntry], now_ms: int) -> list[FeedbackReply]:
        """Commit exposures and labels; on return what is ACCEPTED is on disk."""
        replies: list[FeedbackReply] = []
        with self._file.write(durable=True) as db:
            watermark = _watermark(db)
            stored = 0
            for entry in entries:
                if (refused := refusal(entry, self._ids, now_ms, self._late_limit)) is not None:
                    replies.append(refused)
                    continue
                # An id is genuine in capitals too; the log knows it in small letters.
                reply, new = self._take(db, entry, entry.prediction_id.lower(), watermark, now_ms)
                replies.append(reply)
                stored += new
            count(db, feedback=stored)
        return replies

    def join(self, now_ms: int, limit: int = 1000) -> int:
        """Close predictions that are due and write revisions; the number of labelled entries written.

        A few predictions per transaction, each whole or not at all: a crash between two loses and repeats nothing.
        """
        entries = 0
        while entries < limit:
            with self._file.write(durable=True) as db:
                room = min(_CHUNK_PREDICTIONS, limit - entries)
                revised_visits, revised = self._revise(db, now_ms, room)
                closed_visits, closed = self._close_due(db, now_ms, room - revised)
                count(db, labelled_entries=revised + closed)
            entries += revised + closed
            if not revised_visits and not closed_visits:
                break
        return entries

    def labelled(self, after: int, limit: int = 256) -> list[Labelled]:
        """Entries of the labelled log with seq > after, in order, with all scores stored by now."""
        with self._file.read() as db:
            rows = db.execute(
                "SELECT l.seq, p.prediction_id, l.revision, l.time_ms, l.mature, r.record FROM labelled l"
                " JOIN predictions p ON p.seq = l.prediction JOIN records r ON r.seq = l.prediction"
                " WHERE l.seq > ? ORDER BY l.seq LIMIT ?",
                (after, limit),
            ).fetchall()
            return [
                Labelled(seq, i, revision, time_ms, *MatureRows.unpack(blob), record, _other_scores(db, i))
                for seq, i, revision, time_ms, blob, record in rows
            ]

    def unscored(self, after: str, before_ms: int, limit: int = 256) -> list[tuple[str, bytes]]:
        """Predictions after a place, made before `before_ms`, without another arm's scores: (place, record)."""
        with self._file.read() as db:
            found = db.execute(
                "SELECT p.seq, r.record FROM predictions p JOIN records r ON r.seq = p.seq"
                " WHERE p.scored = 0 AND p.seq > ? AND p.time_ms < ? ORDER BY p.seq LIMIT ?",
                (int(after or 0), before_ms, limit),
            ).fetchall()
        return [(str(seq), record) for seq, record in found]

    def predictions(self, after: str, limit: int = 256) -> list[tuple[str, bytes]]:
        """Predictions after a place, in the order in which they were written: (place, record)."""
        with self._file.read() as db:
            query = "SELECT seq, record FROM records WHERE seq > ? ORDER BY seq LIMIT ?"
            found = db.execute(query, (int(after or 0), limit)).fetchall()
        return [(str(seq), record) for seq, record in found]

    def near_end(self, count: int) -> str:
        """A place after which the newest `count` predictions stand."""
        with self._file.read() as db:
            query = "SELECT seq FROM predictions ORDER BY seq DESC LIMIT 1 OFFSET ?"
            found = db.execute(query, (count,)).fetchone()
        return str(found[0]) if found else ""

    def latest(self, endpoint: str, limit: int) -> list[bytes]:
        """Up to `limit` records of an endpoint, the newest first, among the newest few of all."""
        with self._file.read() as db:
            found = db.execute(
                "SELECT r.record FROM (SELECT seq, endpoint FROM predictions ORDER BY seq DESC LIMIT ?) p"
                " JOIN records r ON r.seq = p.seq WHERE p.endpoint = ? ORDER BY p.seq DESC LIMIT ?",
                (64 * limit, endpoint, limit),
            ).fetchall()
        return [record for (record,) in found]

    def records(self, prediction_ids: Sequence[str]) -> dict[str, bytes]:
        """The records of those predictions that are written, in the order asked."""
        with self._file.read() as db:
            query = "SELECT r.record FROM predictions p JOIN records r ON r.seq = p.seq WHERE p.prediction_id = ?"
            found = {i: db.execute(query, (i,)).fetchone() for i in prediction_ids}
        return {i: row[0] for i, row in found.items() if row is not None}

    def commit_position(self, reader: str, seq: int) -> None:
        """Store the position of `reader`; see `TrafficLog`."""
        with self._file.write(durable=False) as db:
            db.execute(
                "INSERT INTO positions VALUES (?, ?) ON CONFLICT (reader) DO UPDATE SET seq = max(seq, excluded.seq)",
                (reader, seq),
            )

    def position(self, reader: str) -> int:
        """Position of a reader, 0 if it never committed one."""
        with self._file.read() as db:
            row = db.execute("SELECT seq FROM positions WHERE reader = ?", (reader,)).fetchone()
        return int(row[0]) if row else 0

    def stats(self, now_ms: int) -> TrafficStats:
        """Totals, and the state of the join."""
        with self._file.read() as db:
            return read_stats(db, now_ms)

    def retain(self, before_ms: int, protect_seq: int | None = None, max_bytes: int | None = None) -> Retained:
        """Delete predictions made before `before_ms`, and the oldest while the file holds more than `max_bytes`.

        Args:
            protect_seq: labelled entries after this seq are kept with their predictions; without it, those after the
                position of the slowest reader that committed one.
        """
        return retain(self._file, before_ms, protect_seq, max_bytes)

    def forget(self, routing_hash: int, now_ms: int) -> int:
        """Delete every record of one user, and refuse those made by `now_ms` that are written later; the number deleted."""
        return forget(self._file, _signed(routing_hash), now_ms)

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def _insert(self, db: sqlite3.Connection, records: Sequence[tuple[RecordHead, bytes]]) -> int:
        """Write a few records by one statement for each table, since each statement releases the GIL; how many were new."""
        ids = list(dict.fromkeys(record.prediction_id for record, _ in records))
        known = _among(db, "predictions", ids)
        forgotten = dict(db.execute("SELECT routing_hash, until_ms FROM forgotten"))
        new: dict[str, tuple[RecordHead, bytes]] = {}
        for record, blob in records:
            if forgotten and record.time_ms <= forgotten.get(_signed(record.routing_hash), -1):
                db.execute("DELETE FROM parked WHERE prediction_id = ?", (record.prediction_id,))
                db.execute("DELETE FROM scores WHERE prediction_id = ?", (record.prediction_id,))
            elif record.prediction_id not in known:
                new.setdefault(record.prediction_id, (record, blob))
        if not new:
            return 0
        scored = _among(db, "scores", ids)
        last = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'predictions'").fetchone()
        first = (int(last[0]) if last else 0) + 1
        predictions: list[object] = []
        blobs: list[object] = []
        for seq, (prediction_id, (record, blob)) in enumerate(new.items(), first):
            predictions += (seq, prediction_id, record.time_ms, record.endpoint, record.n)
            predictions += (_signed(record.routing_hash), record.time_ms + self._window, prediction_id in scored)
            blobs += (seq, blob)
        db.execute(
            "INSERT INTO predictions (seq, prediction_id, time_ms, endpoint, n, routing_hash, closes_ms, scored) VALUES "
            + ", ".join(["(?, ?, ?, ?, ?, ?, ?, ?)"] * len(new)),
            predictions,
        )
        db.execute("INSERT INTO records VALUES " + ", ".join(["(?, ?)"] * len(new)), blobs)
        parked = _among(db, "parked", ids)
        for seq, (prediction_id, (_, blob)) in enumerate(new.items(), first):
            if prediction_id in parked:
                self._unpark(db, seq, blob)
        return len(new)

    def _unpark(self, db: sqlite3.Connection, seq: int, blob: bytes) -> None:
        """Feedback that came before its prediction: check and store it as if it came now, at the times when it came."""
        record = unpack(blob)
        rows = db.execute(
            "SELECT received_ms, entry FROM parked WHERE prediction_id = ? ORDER BY seq", (record.prediction_id,)
        ).fetchall()
        state = LabelState.fold(record.features.n)
        refused = 0
        for received_ms, text in rows:
            entry = load_entry(record.prediction_id, text)
            change, reply = accept(state, entry, record.time_ms, received_ms, finder(record))
            refused += (reply.exposed + reply.outcomes).count(INVALID)
            if change is not None:
                _store(db, seq, received_ms, change)
        db.execute(
            "UPDATE predictions SET closes_ms = ? WHERE seq = ?", (closes_at(state, record.time_ms, self._window), seq)
        )
        db.execute("DELETE FROM parked WHERE prediction_id = ?", (record.prediction_id,))
        count(db, parked_refused=refused)

    def _take(
        self, db: sqlite3.Connection, entry: FeedbackEntry, prediction_id: str, watermark: int, now_ms: int
    ) -> tuple[FeedbackReply, bool]:
        """Store one genuine entry: its reply, and whether any part is new."""
        row = db.execute("SELECT seq, n, time_ms FROM predictions WHERE prediction_id = ?", (prediction_id,)).fetchone()
        if row is None:
            texts = db.execute("SELECT entry FROM parked WHERE prediction_id = ? ORDER BY seq", (prediction_id,))
            keep, reply = accept_parked([load_entry(prediction_id, t) for (t,) in texts.fetchall()], entry)
            if keep is not None:
                db.execute(
                    "INSERT INTO parked (prediction_id, received_ms, entry) VALUES (?, ?, ?)",
                    (prediction_id, now_ms, dump_entry(keep)),
                )
            return reply, keep is not None
        seq, n, time_ms = row
        state = _state(db, seq, n)
        record = "SELECT record FROM records WHERE seq = ?"
        find = lazy_finder(lambda: db.execute(record, (seq,)).fetchone()[0])
        change, reply = accept(state, entry, time_ms, now_ms, find)
        if change is None:
            return reply, False
        _store(db, seq, now_ms, change)
        if seq <= watermark:
            db.execute("INSERT INTO late VALUES (?, 0) ON CONFLICT (prediction) DO UPDATE SET due_ms = 0", (seq,))
        else:
            closes = closes_at(state, time_ms, self._window)
            db.execute("UPDATE predictions SET closes_ms = ? WHERE seq = ?", (closes, seq))
        return reply, True

    def _revise(self, db: sqlite3.Connection, now_ms: int, room: int) -> tuple[int, int]:
        """Revise closed predictions that are due; how many, and entries written."""
        due = db.execute(
            "SELECT p.seq, p.n, p.time_ms FROM late l JOIN predictions p ON p.seq = l.prediction"
            " WHERE l.due_ms <= ? ORDER BY l.due_ms, l.prediction LIMIT ?",
            (now_ms, room),
        ).fetchall()
        return len(due), sum(self._write(db, seq, n, time_ms, now_ms) for seq, n, time_ms in due)

    def _close_due(self, db: sqlite3.Connection, now_ms: int, room: int) -> tuple[int, int]:
        """Close predictions in order as long as they are due; how many, and entries written."""
        watermark = _watermark(db)
        query = "SELECT seq, n, time_ms, closes_ms FROM predictions WHERE seq > ? ORDER BY seq LIMIT ?"
        head = db.execute(query, (watermark, room)).fetchall()
        if any(stands_wrong(time_ms, closes_ms, now_ms, self._window) for _, _, time_ms, closes_ms in head):
            self._set_right(db, watermark, now_ms)
            head = db.execute(query, (watermark, room)).fetchall()
        closed = written = 0
        for seq, n, time_ms, closes_ms in head:
            if closes_ms > now_ms:
                break
            written += self._write(db, seq, n, time_ms, now_ms)
            closed += 1
            db.execute("UPDATE watermark SET seq = ?, time_ms = ?", (seq, time_ms))
        return closed, written

    def _set_right(self, db: sqlite3.Connection, watermark: int, now_ms: int) -> None:
        """Set the times of all open predictions right."""
        changed = [
            (*set_right(time_ms, closes_ms, now_ms, self._window), seq)
            for seq, time_ms, closes_ms in db.execute(
                "SELECT seq, time_ms, closes_ms FROM predictions WHERE seq > ?", (watermark,)
            )
            if stands_wrong(time_ms, closes_ms, now_ms, self._window)
        ]
        db.executemany("UPDATE predictions SET time_ms = ?, closes_ms = ? WHERE seq = ?", changed)

    def _write(self, db: sqlite3.Connection, seq: int, n: int, time_ms: int, now_ms: int) -> bool:
        """Write new rows of one prediction to the labelled log, if any, and when it is due again."""
        earlier = db.execute(
            "SELECT revision, mature FROM labelled WHERE prediction = ? ORDER BY seq", (seq,)
        ).fetchall()
        written = written_labels(n, (MatureRows.unpack(blob) for _, blob in earlier))
        rows, due_ms = mature_rows(_state(db, seq, n), written, now_ms, self._window)
        if due_ms is None:
            db.execute("DELETE FROM late WHERE prediction = ?", (seq,))
        else:
            db.execute(
                "INSERT INTO late VALUES (?, ?) ON CONFLICT (prediction) DO UPDATE SET due_ms = excluded.due_ms",
                (seq, due_ms),
            )
        if rows is None:
            return False
        # Revision 0 is written when the prediction closes, even without rows.
        revision = max((r for r, _ in earlier), default=0) + 1 if seq <= _watermark(db) else 0
        db.execute(
            "INSERT INTO labelled (prediction, revision, time_ms, written_ms, mature) VALUES (?, ?, ?, ?, ?)",
            (seq, revision, time_ms, now_ms, rows.pack()),
        )
        count(db, labelled_rows=len(rows.indices))
        return True


def _among(db: sqlite3.Connection, table: str, prediction_ids: Sequence[str]) -> set[str]:
    """Which of these predictions a table has."""
    marks = ", ".join("?" * len(prediction_ids))
    found = db.execute(f"SELECT prediction_id FROM {table} WHERE prediction_id IN ({marks})", prediction_ids)
    return {prediction_id for (prediction_id,) in found}


def _watermark(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT seq FROM watermark").fetchone()[0])


def _state(db: sqlite3.Connection, seq: int, n: int) -> LabelState:
    changes = db.execute("SELECT change FROM feedback WHERE prediction = ? ORDER BY seq", (seq,))
    return LabelState.fold(n, (Change.unpack(blob) for (blob,) in changes))


def _store(db: sqlite3.Connection, seq: int, received_ms: int, change: Change) -> None:
    db.execute(
        "INSERT INTO feedback (prediction, received_ms, change) VALUES (?, ?, ?)", (seq, received_ms, change.pack())
    )


def _other_scores(db: sqlite3.Connection, prediction_id: str) -> tuple[Scores, ...]:
    rows = db.execute(
        "SELECT arm, bundle, version, scores FROM scores WHERE prediction_id = ? ORDER BY rowid", (prediction_id,)
    )
    return tuple(
        Scores(arm, bundle, version, np.frombuffer(blob, np.float32)) for arm, bundle, version, blob in rows.fetchall()
    )


def _signed(value: int) -> int:
    """An unsigned 64-bit hash as SQLite stores it."""
    return value - (1 << 64) if value >= 1 << 63 else value
