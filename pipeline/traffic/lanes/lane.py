"""Lane: the one writer of a folder of the traffic log.

A group of records is appended to the folder's current file within the transaction that commits their rows to its index: bytes
that the index does not know were never written, and the next append overwrites them. Readers of any process are in `lanes`.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from pipeline.clock import Clock
from pipeline.disk import writing
from pipeline.errors import NotReady
from pipeline.forks import ProcessLock
from pipeline.traffic.lanes.claim import Claim
from pipeline.traffic.lanes.files import RecordFile, file_numbers, file_path
from pipeline.traffic.lanes.frames import framed
from pipeline.traffic.lanes.index import AT_ONCE_ROWS, Index, marks
from pipeline.traffic.lanes.keeper import Keeper
from pipeline.traffic.lanes.keys import RUN_ROWS
from pipeline.traffic.lanes.lanes import Lanes
from pipeline.traffic.lanes.rows import ScoresEntry, lane_of, signed
from pipeline.traffic.record import RecordHead

__all__ = ["Lane"]

logger = logging.getLogger(__name__)

_KNOWN_PREDICTIONS = "SELECT prediction_id FROM predictions WHERE prediction_id IN ({})"
_KNOWN_SCORES = "SELECT prediction_id, arm, bundle, version FROM scores WHERE prediction_id IN ({})"
_END = "SELECT end FROM files WHERE number = ?"
_PREDICTION = "prediction_id, file, offset, length, n, endpoint, arm, time_ms, routing_hash"
_NEW_FILE = "INSERT INTO files (begun_ms, newest_ms, end, predictions, scores) VALUES (?, 0, 0, 0, 0)"
_GROWN_FILE = (
    "UPDATE files SET end = ?, newest_ms = max(newest_ms, ?), predictions = predictions + ?, scores = scores + ?"
    " WHERE number = ?"
)


class Lane:
    """Writer of one lane's folder, which this process holds until it closes it or ends.

    Any thread may call it, one at a time. What a method returned for survives `kill -9`; what `put_feedback` returned for
    survives power loss, with the records that it is about. Other records reach the disk within about a second: of those
    that power loss takes the index may know, and then they count as damaged.

    Args:
        root: folder of all lanes, created if absent.
        preferred: number of the folder; the next one that no process holds if another process holds it.
        file_bytes: size at which the next record file is begun, so that retention can delete whole files; file_ms: Unix
            milliseconds after which it is.
        run_rows: rows of the shortest run of routing hashes.

    Raises:
        InvalidInput: the folder's index is something else, or was written by a newer Baton.
        NotReady: the folder cannot be opened; all methods raise it if the disk is full, read-only or failing, and then
            nothing was written.
    """

    def __init__(
        self,
        root: Path,
        preferred: int,
        clock: Clock,
        file_bytes: int = 64 << 20,
        file_ms: int = 3_600_000,
        run_rows: int = RUN_ROWS,
    ) -> None:
        self._clock = clock
        self._file_bytes = file_bytes
        self._file_ms = file_ms
        self._lock = ProcessLock(f"traffic log {root}")
        self._claim = Claim.take(root, preferred)
        self._folder = self._claim.folder
        self._closed = False
        try:
            Index.create(self._folder)
            self._index = Index(self._folder)
            try:
                self._index.upgrade()
                with writing(self._folder):
                    self._file = self._resume()
                self._last_seq = 0
                self._keeper = Keeper(self._folder, self._file, run_rows, lambda: self._last_seq)
            except BaseException:
                self._index.close()
                raise
        except BaseException:
            self._claim.release()
            raise
        self._lanes = Lanes(root)

    @property
    def number(self) -> int:
        """The folder that was claimed."""
        return self._claim.number

    def append(self, records: Sequence[tuple[RecordHead, bytes]]) -> int:
        """Commit packed records with their heads, in order, as one group; the number of new ones.

        A prediction id written before is left as it is: by this lane, or by another one where the id itself names
        another lane.
        """
        by_id: dict[str, tuple[RecordHead, bytes]] = {}
        for record in records:
            by_id.setdefault(record[0].prediction_id, record)
        foreign = [prediction_id for prediction_id in by_id if lane_of(prediction_id) != self.number]
        known = set(self._lanes.find_all(foreign)) if foreign else set()
        with self._lock:
            known |= {i for (i,) in self._index.rows_in(_KNOWN_PREDICTIONS, list(by_id))}
            new = [record for prediction_id, record in by_id.items() if prediction_id not in known]
            if new:
                self._insert_predictions(new)
        return len(new)

    def put_scores(self, entries: Sequence[ScoresEntry]) -> int:
        """Commit other arms' scores as one group; the number of new ones. A version's scores are written once."""
        by_version: dict[tuple[str, str, str, int], ScoresEntry] = {}
        for entry in entries:
            by_version.setdefault(entry[:4], entry)
        with self._lock:
            known = set(self._index.rows_in(_KNOWN_SCORES, list({entry.prediction_id for entry in entries})))
            new = [entry for version, entry in by_version.items() if version not in known]
            if new:
                self._insert_scores(new)
        return len(new)

    def put_feedback(self, entries: Sequence[tuple[str, int, str]], newest_seq: int = 0) -> None:
        """Commit feedback for the join: (prediction id, Unix milliseconds when it came, text).

        Args:
            newest_seq: of the predictions of this lane that it is about; they are on disk afterwards, too.
        """
        with self._lock:
            if newest_seq > self._keeper.flushed_seq:
                self._keeper.flush()
            with self._index.write(durable=True) as db:
                db.executemany("INSERT INTO inbox (prediction_id, received_ms, entry) VALUES (?, ?, ?)", entries)

    def trim(self, seq: int) -> None:
        """Remove feedback up to this seq of the inbox: the join has it."""
        with self._lock, self._index.write(durable=False) as db:
            db.execute("DELETE FROM inbox WHERE seq <= ?", (seq,))

    def keep(self) -> None:
        """Do now what a thread does about once a second: bring records to disk, and make them findable by routing hash fast."""
        self._keeper.turn()

    def close(self) -> None:
        """Flush to disk and let go of the folder; later use raises NotReady."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            try:
                self._keeper.close()
            finally:
                self._index.close()
                self._lanes.close()
                self._claim.release()

    def _insert_predictions(self, new: Sequence[tuple[RecordHead, bytes]]) -> None:
        keyed = any(head.request_key for head, _ in new)

        def insert(db: sqlite3.Connection, file: int, offsets: Iterable[int]) -> None:
            rows: list[tuple[object, ...]] = [
                (h.prediction_id, file, at, len(blob), h.n, h.endpoint, h.arm, h.time_ms, signed(h.routing_hash))
                for (h, blob), at in zip(new, offsets, strict=True)
            ]
            columns = _PREDICTION
            if keyed:
                columns += ", request_key"
                rows = [(*row, signed(head.request_key)) for row, (head, _) in zip(rows, new, strict=True)]
            _insert(db, f"predictions ({columns})", rows)
            seqs.append(db.execute("SELECT last_insert_rowid()").fetchone()[0])

        seqs: list[int] = []
        self._commit([blob for _, blob in new], insert, max(head.time_ms for head, _ in new), len(new), 0)
        self._last_seq = seqs[-1]

    def _insert_scores(self, new: Sequence[ScoresEntry]) -> None:
        def insert(db: sqlite3.Connection, file: int, offsets: Iterable[int]) -> None:
            rows = [(*e[:4], file, at, len(e.scores)) for e, at in zip(new, offsets, strict=True)]
            _insert(db, "scores (prediction_id, arm, bundle, version, file, offset, length)", rows)

        self._commit([entry.scores for entry in new], insert, 0, 0, len(new))

    def _commit(
        self,
        payloads: Sequence[bytes],
        insert: Callable[[sqlite3.Connection, int, Sequence[int]], None],
        newest_ms: int,
        predictions: int,
        scores: int,
    ) -> None:
        """Append payloads, and insert the rows that point at them: all or nothing."""
        file = self._file
        try:
            with writing(self._folder), self._index.write(durable=False) as db:
                file, at = self._current(db)
                parts, offsets, end = framed(payloads, at)
                insert(db, file.number, offsets)
                db.execute(_GROWN_FILE, (end, newest_ms, predictions, scores, file.number))
                file.write(parts, at)
        except BaseException:
            self._take_back(file)
            raise
        if file is not self._file:
            self._keeper.follow(file)
            self._file = file

    def _current(self, db: sqlite3.Connection) -> tuple[RecordFile, int]:
        """The file to append to, and where: a new one where the last is large or old, or was removed since nothing in it
        was left."""
        file, now_ms = self._file, self._clock.wall_ms()
        old = abs(now_ms - file.begun_ms) >= self._file_ms  # backwards where the clock was set
        found = db.execute(_END, (file.number,)).fetchone()
        if found and not old and found[0] < self._file_bytes:
            return file, found[0]
        return self._new_file(db, now_ms), 0

    def _take_back(self, file: RecordFile) -> None:
        """Leave in a file what the index knows: a commit may have failed, or succeeded just before an interrupt."""
        with suppress(NotReady):
            known = self._index.rows(_END, (file.number,))
            if known:
                file.cut(known[0][0])
            else:
                with suppress(OSError):
                    file.path.unlink()
        if file is not self._file:
            file.close()

    def _resume(self) -> RecordFile:
        """The last file, without what the index does not know. Bytes that it knows and that power loss took are zeros."""
        files = self._index.rows("SELECT number, begun_ms, end FROM files ORDER BY number")
        begun = set(file_numbers(self._folder)) - {number for number, _, _ in files}
        for path in (*self._folder.glob(".*"), *(file_path(self._folder, number) for number in begun)):
            path.unlink()  # begun, and never committed
        if not files:
            with self._index.write(durable=False) as db:
                return self._new_file(db, self._clock.wall_ms())
        number, begun_ms, end = files[-1]
        path = file_path(self._folder, number)
        size = path.stat().st_size if path.exists() else 0
        if size > end:
            logger.warning("traffic log %s: %d bytes of an append that did not end are cut off", path, size - end)
        elif size < end:
            logger.error("traffic log %s: %d bytes are missing: their records are damaged", path, end - size)
        return RecordFile(self._folder, number, begun_ms, end)

    def _new_file(self, db: sqlite3.Connection, now_ms: int) -> RecordFile:
        ((number,),) = db.execute(f"{_NEW_FILE} RETURNING number", (now_ms,)).fetchall()
        return RecordFile(self._folder, number, now_ms)


def _insert(db: sqlite3.Connection, table: str, rows: Sequence[tuple[object, ...]]) -> None:
    for start in range(0, len(rows), AT_ONCE_ROWS):
        some = rows[start : start + AT_ONCE_ROWS]
        db.execute(f"INSERT INTO {table} VALUES {marks(len(some), len(some[0]))}", [v for row in some for v in row])
