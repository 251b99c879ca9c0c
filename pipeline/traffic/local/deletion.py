"""Deletion in the traffic log of one machine: old predictions, and those of a user to forget.

A prediction is deleted with everything that belongs to it, first from the labels and then from its lane, a few per
transaction. Old ones stay while they are not joined or a reader has not passed their labelled rows; the result counts them.
Their rows go at once, their bytes with the record file, once none of its predictions is left.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import replace

from pipeline.traffic.lanes.lanes import Lanes
from pipeline.traffic.lanes.rows import FileRow, Row
from pipeline.traffic.local.ceilings import drop
from pipeline.traffic.local.file import LabelsFile
from pipeline.traffic.local.forgotten import expire, remember
from pipeline.traffic.local.readers import Readers
from pipeline.traffic.local.stats import count, used_bytes
from pipeline.traffic.log import Retained
from pipeline.traffic.prediction import smallest_id

__all__ = ["Deletion"]

_CHUNK_PREDICTIONS = 256
_ALL_ENTRIES = (1 << 63) - 1


class Deletion:
    """Deletes predictions of all lanes."""

    def __init__(self, file: LabelsFile, lanes: Lanes, readers: Readers) -> None:
        self._file = file
        self._readers = readers
        self._lanes = lanes

    def retain(
        self, before_ms: int, protect_seq: int | None, max_bytes: int | None, keep: frozenset[int] = frozenset()
    ) -> Retained:
        """Delete closed predictions made before `before_ms` whose labelled entries all have seq <= `protect_seq`; then,
        oldest first, whole files of such predictions until all files hold at most `max_bytes`. Those with a routing hash of
        `keep` stay, and their files with them."""
        cut = smallest_id(before_ms)
        if protect_seq is None:
            slowest = self._readers.slowest()
            protect_seq = _ALL_ENTRIES if slowest is None else slowest
        done = Retained()
        for lane in self._lanes.numbers():
            after = ""
            while rows := self._lanes.rows_before(lane, cut, after, _CHUNK_PREDICTIONS):
                after = rows[-1].prediction_id
                done += self._remove(lane, rows, protect_seq, keep)
        done += self._expire(cut, before_ms)
        self._drop_empty()
        if max_bytes is not None:
            done += self._shrink(protect_seq, max_bytes, keep)
        return done

    def forget(self, routing_hash: int, now_ms: int) -> int:
        """Delete all predictions of a routing hash (unsigned), joined or not, read or not; their bytes are overwritten.
        Those made by `now_ms` that are written later are refused."""
        with self._file.write(durable=True) as db:
            remember(db, routing_hash, now_ms)
        deleted = 0
        for lane in self._lanes.numbers():
            while rows := self._lanes.rows_of_key(lane, routing_hash, _CHUNK_PREDICTIONS):
                self.scrub(lane, rows)
                deleted += len(rows)
        self.finish()
        return deleted

    def scrub(self, lane: int, rows: Sequence[Row]) -> None:
        """Delete predictions whatever still needs them, and overwrite their bytes."""
        with self._file.write(durable=True) as db:
            closed = _closed(db, lane)
            for row in rows:
                # One that is doomed already was counted before its deletion was interrupted.
                new = db.execute("INSERT OR IGNORE INTO doomed VALUES (?, ?)", (lane, row.seq)).rowcount
                count(db, closed=int(new == 1 and row.seq > closed))
            _delete_labels(db, lane, rows)
            count(db, scrubs=1)
        self._delete_doomed(lane, [row.seq for row in rows], rows)

    def finish(self) -> None:
        """Finish deletions that were interrupted, and leave nothing of what was deleted in the journal."""
        with self._file.read() as db:
            doomed = db.execute("SELECT lane, prediction FROM doomed ORDER BY lane, prediction").fetchall()
        for lane in dict.fromkeys(lane for lane, _ in doomed):
            seqs = [seq for of, seq in doomed if of == lane]
            rows = [row for seq in seqs for row in self._lanes.rows(lane, seq - 1, 1) if row.seq == seq]
            self._delete_doomed(lane, seqs, rows)
        self._lanes.scrub()
        self._file.empty_journal()

    def interrupted(self) -> bool:
        """Whether a deletion was interrupted, by this process or another one that is gone."""
        with self._file.read() as db:
            return db.execute("SELECT 1 FROM doomed LIMIT 1").fetchone() is not None

    def _delete_doomed(self, lane: int, seqs: Sequence[int], rows: Sequence[Row]) -> None:
        self._lanes.delete(lane, rows, scrub=True)
        with self._file.write(durable=False) as db:
            db.executemany("DELETE FROM doomed WHERE lane = ? AND prediction = ?", [(lane, seq) for seq in seqs])

    def _remove(self, lane: int, rows: Sequence[Row], protect_seq: int, keep: frozenset[int]) -> Retained:
        """Delete those of a few predictions that nobody needs any more; the others are counted."""
        rows, held = _without(rows, keep)
        with self._file.write(durable=False) as db:
            free, kept = _split(db, lane, rows, protect_seq)
            feedback, labelled = _delete_labels(db, lane, free)
        if free:
            self._lanes.delete(lane, free)
        return kept + Retained(len(free), feedback, labelled, kept=held)

    def _expire(self, cut: str, before_ms: int) -> Retained:
        """Delete what waited too long: feedback whose prediction never came, and keys whose predictions would be too old."""
        # What waits under the key of a request id has no time in its name: when it came is what counts.
        waiting = "prediction_id >= '~' AND received_ms < ?"
        parked = 0
        for condition, limit in (("prediction_id < ?", cut), (waiting, before_ms)):
            old = f"DELETE FROM parked WHERE seq IN (SELECT seq FROM parked WHERE {condition} LIMIT ?)"
            last = _CHUNK_PREDICTIONS
            while last == _CHUNK_PREDICTIONS:
                with self._file.write(durable=False) as db:
                    last = db.execute(old, (limit, _CHUNK_PREDICTIONS)).rowcount
                    count(db, parked_expired=last)
                parked += last
        with self._file.write(durable=False) as db:
            expire(db, before_ms)
        with self._file.write(durable=False) as db:
            for lane in self._lanes.numbers():
                first = self._lanes.rows(lane, 0, 1)
                drop(db, lane, first[0].seq if first else self._lanes.last_seq(lane) + 1)
        self._lanes.drop_scores(cut)
        return Retained(parked=parked)

    def _shrink(self, protect_seq: int, max_bytes: int, keep: frozenset[int]) -> Retained:
        """Delete the oldest record files whose predictions nobody needs any more until the rest is small enough."""
        done = Retained()
        held: set[int] = set()
        passed: dict[int, int] = {}  # by lane, the last file that stays for a routing hash that is kept
        while (over := self._bytes() - max_bytes) > 0:
            oldest = min(
                (
                    (files[0].newest_ms, lane)
                    for lane in self._lanes.numbers()
                    if lane not in held and (files := self._filled(lane, passed.get(lane, -1)))
                ),
                default=None,
            )
            if oldest is None:
                return done + Retained(over_bytes=over)
            lane = oldest[1]
            number = self._filled(lane, passed.get(lane, -1))[0].number
            removed = self._remove_file(lane, number, protect_seq, keep)
            if removed is None:
                held.add(lane)
                continue
            if removed.kept:
                passed[lane] = number
            # Those that are kept are counted where they are too old: here they may be counted again.
            done += replace(removed, kept=0)
            self._drop_empty()
        return done

    def _filled(self, lane: int, after: int) -> list[FileRow]:
        return [file for file in self._lanes.files(lane) if file.predictions and file.number > after]

    def _remove_file(self, lane: int, number: int, protect_seq: int, keep: frozenset[int]) -> Retained | None:
        """Delete all predictions of a lane's file but those that are kept; None, and nothing is deleted, where one of them is
        needed."""
        rows: list[Row] = []
        while page := self._lanes.rows(lane, rows[-1].seq if rows else 0, _CHUNK_PREDICTIONS):
            rows += [row for row in page if row.file <= number]
            if page[-1].file > number:
                break
        rows = [row for row in rows if row.file == number]
        with self._file.read() as db:
            _, kept = _split(db, lane, _without(rows, keep)[0], protect_seq)
        if kept.held_back:
            return None
        done = Retained()
        for start in range(0, len(rows), _CHUNK_PREDICTIONS):
            done += self._remove(lane, rows[start : start + _CHUNK_PREDICTIONS], protect_seq, keep)
        return done

    def _drop_empty(self) -> None:
        for lane in self._lanes.numbers():
            self._lanes.drop_empty(lane)

    def _bytes(self) -> int:
        with self._file.read() as db:
            return self._lanes.bytes() + used_bytes(db)


def _without(rows: Sequence[Row], keep: frozenset[int]) -> tuple[Sequence[Row], int]:
    """Predictions without those whose routing hash is kept, and the number of these."""
    if not keep:
        return rows, 0
    free = [row for row in rows if row.routing_hash not in keep]
    return free, len(rows) - len(free)


def _closed(db: sqlite3.Connection, lane: int) -> int:
    """Last prediction of a lane that is closed, with all before it."""
    found = db.execute("SELECT closed FROM lanes WHERE lane = ?", (lane,)).fetchone()
    return int(found[0]) if found else 0


def _split(db: sqlite3.Connection, lane: int, rows: Sequence[Row], protect_seq: int) -> tuple[list[Row], Retained]:
    """Predictions that nobody needs any more, and how many of the others wait for a reader and for the join."""
    closed = _closed(db, lane)
    joined = [row for row in rows if row.seq <= closed]
    unread = {
        row.seq
        for row in joined
        if db.execute(
            "SELECT 1 FROM labelled WHERE lane = ? AND prediction = ? AND seq > ?", (lane, row.seq, protect_seq)
        ).fetchone()
    }
    free = [row for row in joined if row.seq not in unread]
    return free, Retained(unread=len(unread), unjoined=len(rows) - len(joined))


def _delete_labels(db: sqlite3.Connection, lane: int, rows: Sequence[Row]) -> tuple[int, int]:
    """Delete what the labels have of predictions; the rows deleted from feedback and from labelled."""
    keys = [(lane, row.seq) for row in rows]
    feedback, labelled, *_ = (
        max(0, db.executemany(f"DELETE FROM {table} WHERE lane = ? AND prediction = ?", keys).rowcount)
        for table in ("feedback", "labelled", "late", "open")
    )
    return feedback, labelled
