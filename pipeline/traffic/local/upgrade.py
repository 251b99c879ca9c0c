"""Upgrade of the traffic log of version 0.1, one SQLite file, which becomes a lane and its labels.

Whoever opens the log first does it, while others wait: predictions in the order in which they were written, a few at a time,
with all that belongs to them. How far it is stands in the labels, so it goes on where it was killed; the old file is removed
once the new ones are on the disk. Numbers of labelled entries, positions of readers, what is parked, late, open or
forgotten, and all totals stay what they were.
"""

from __future__ import annotations

import fcntl
import logging
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.clock import SystemClock
from pipeline.disk import asking, sync
from pipeline.errors import InvalidInput, NotReady
from pipeline.traffic.lanes.lane import Lane
from pipeline.traffic.lanes.lanes import Lanes
from pipeline.traffic.lanes.rows import Row, ScoresEntry
from pipeline.traffic.local.file import LabelsFile
from pipeline.traffic.local.readers import Readers
from pipeline.traffic.local.stats import count, set_count, total
from pipeline.traffic.record import RecordHead, read_head

__all__ = ["upgrade"]

_APPLICATION_ID = 0x42544E31  # "BTN1"
LAST_FORMAT_VERSION = 2
_CHUNK_PREDICTIONS = 256
_TOLD_PREDICTIONS = 100_000
_GROWTH_RATIO = 1.1
"""Bytes of the new log over those of the old one, at most: indexes, checksums, and pages that are not full."""
_LEAST_ROOM_BYTES = 4 << 20
"""For journals, which do not shrink with the log."""
_COUNTERS = ("feedback", "labelled_entries", "labelled_rows", "parked_refused", "parked_expired")

log = logging.getLogger(__name__)


def upgrade(old: Path, file: LabelsFile, root: Path, readers: Readers) -> None:
    """Bring over the log of version 0.1 if there is one, and remove it.

    Args:
        old: its database.
        file: of the labels; root: folder of the lanes; readers: their positions.

    Raises:
        InvalidInput: it is something else, or the new log has predictions of its own already.
        NotReady: another process is at it, or the disk is full or failing; the next one goes on with it. Where it can be seen
            beforehand that the disk has no room, nothing is written.
    """
    if not old.exists():
        return
    with _alone(root.parent / "upgrade.lock", old):
        if not old.exists():
            return  # the process that was waited for did it
        with closing(_opened(old)) as db:
            lasts = dict(db.execute("SELECT name, seq FROM sqlite_sequence"))
            names = {"upgrade_predictions": lasts.get("predictions", 0), "upgrade_labelled": lasts.get("labelled", 0)}
            if not _is_done(file, old, names):
                _Upgrade(db, old, file, root, readers).run(names)
            with asking(f"traffic log {old}"):
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        for path in (old, *(old.with_name(f"{old.name}-{end}") for end in ("wal", "shm"))):
            path.unlink(missing_ok=True)
        sync(old.parent)


class _Old(NamedTuple):
    """A prediction of the old log."""

    seq: int
    time_ms: int
    closes_ms: int
    record: bytes


class _Upgrade:
    def __init__(self, db: sqlite3.Connection, old: Path, file: LabelsFile, root: Path, readers: Readers) -> None:
        self._readers = readers
        self._db = db
        self._old = old
        self._file = file
        self._root = root

    def run(self, names: dict[str, int]) -> None:
        """Do what is left of it."""
        (self._watermark,) = self._db.execute("SELECT seq FROM watermark").fetchone()
        (left,) = self._db.execute("SELECT count(*) FROM predictions").fetchone()
        self._check_room()
        log.info("the traffic log %s of version 0.1 is brought over to %s: %d predictions", self._old, self._root, left)
        with closing(Lane(self._root, 0, SystemClock())) as lane, closing(Lanes(self._root)) as lanes:
            while page := self._page():
                self._bring(lane, lanes, page)
            self._scores(lane)
        self._finish(names)

    def _check_room(self) -> None:
        """Check that the disk has room for what is left, beside the old log, which stays until all of it is brought over."""
        with self._file.read() as db:
            after = total(db, "upgraded")
        pages, unused, size = (
            self._db.execute(f"PRAGMA {what}").fetchone()[0] for what in ("page_count", "freelist_count", "page_size")
        )
        (of,), (left,) = (
            self._db.execute("SELECT count(*) FROM predictions WHERE seq > ?", (seq,)).fetchone() for seq in (0, after)
        )
        whole = (pages - unused) * size
        needed = round(_GROWTH_RATIO * whole * (left / of if of else 1.0)) + _LEAST_ROOM_BYTES
        free = shutil.disk_usage(self._root.parent).free
        if needed > free:
            raise NotReady(
                f"the traffic log {self._old} of version 0.1 cannot be brought over: that takes {needed:,} bytes in "
                f"{self._root.parent} beside it, and {needed - free:,} of them are missing; make room, and start again"
            )

    def _page(self) -> list[_Old]:
        """The next predictions."""
        with self._file.read() as db:
            after = total(db, "upgraded")
        with asking(f"traffic log {self._old}"):
            found = self._db.execute(
                "SELECT p.seq, p.time_ms, p.closes_ms, r.record FROM predictions p JOIN records r ON r.seq = p.seq"
                " WHERE p.seq > ? ORDER BY p.seq LIMIT ?",
                (after, _CHUNK_PREDICTIONS),
            ).fetchall()
        return [_Old(*values) for values in found]

    def _bring(self, lane: Lane, lanes: Lanes, page: Sequence[_Old]) -> None:
        """Write predictions to the lane, which leaves those that it has, and then all that belongs to them."""
        records: list[tuple[RecordHead, bytes]] = []
        kept: list[tuple[_Old, str]] = []
        for old in page:
            try:
                head = read_head(old.record)
            except InvalidInput as error:
                log.error("prediction %d of the traffic log %s is left behind: %s", old.seq, self._old, error)
                continue
            # The log may have set the time of a prediction right.
            records.append((head._replace(time_ms=old.time_ms), old.record))
            kept.append((old, head.prediction_id))
        lane.append(records)
        found = lanes.find_all([prediction_id for _, prediction_id in kept])
        with self._file.write(durable=True) as db:
            for old, prediction_id in kept:
                self._labels(db, old, *found[prediction_id])
            set_count(db, "upgraded", page[-1].seq)
            count(db, upgraded_count=len(kept))
            done = total(db, "upgraded_count")
        if done // _TOLD_PREDICTIONS != (done - len(kept)) // _TOLD_PREDICTIONS:
            log.info("%d predictions are brought over", done)

    def _labels(self, db: sqlite3.Connection, old: _Old, lane: int, row: Row) -> None:
        """Feedback and labelled entries of one prediction, and whether it is closed or due again."""
        key = (lane, row.seq)
        feedback = self._rows("SELECT received_ms, change FROM feedback WHERE prediction = ? ORDER BY seq", old.seq)
        db.executemany(
            "INSERT INTO feedback (lane, prediction, received_ms, change) VALUES (?, ?, ?, ?)",
            [(*key, *values) for values in feedback],
        )
        place = (row.prediction_id, row.endpoint, row.file, row.offset, row.length)
        query = "SELECT seq, revision, time_ms, written_ms, mature FROM labelled WHERE prediction = ? ORDER BY seq"
        for seq, *values in self._rows(query, old.seq):
            marks = ", ".join("?" * 12)
            db.execute(f"INSERT INTO labelled VALUES ({marks})", (seq, *key, *place, *values))
        for (due_ms,) in self._rows("SELECT due_ms FROM late WHERE prediction = ?", old.seq):
            db.execute("INSERT INTO late VALUES (?, ?, ?)", (*key, due_ms))
        closed = old.seq <= self._watermark
        db.execute(
            "INSERT INTO lanes (lane, seen, closed) VALUES (?, ?, ?)"
            " ON CONFLICT (lane) DO UPDATE SET seen = excluded.seen, closed = max(closed, excluded.closed)",
            (lane, row.seq, row.seq if closed else 0),
        )
        count(db, closed=int(closed))
        if feedback and not closed:
            db.execute("INSERT INTO open VALUES (?, ?, ?)", (*key, old.closes_ms))

    def _scores(self, lane: Lane) -> None:
        """Other arms' scores, those of predictions that never came included; what the lane has it leaves as it is."""
        after = 0
        query = "SELECT rowid, prediction_id, arm, bundle, version, scores FROM scores WHERE rowid > ? ORDER BY rowid LIMIT ?"
        while page := self._rows(query, after, _CHUNK_PREDICTIONS):
            lane.put_scores([ScoresEntry(*values) for _, *values in page])
            after = page[-1][0]

    def _finish(self, names: dict[str, int]) -> None:
        """Everything that belongs to no prediction. With its commit the old file is not needed any more."""
        for reader, seq in self._rows("SELECT reader, seq FROM positions"):
            self._readers.commit(reader, seq)
        totals = dict(self._rows("SELECT name, value FROM counters"))
        tables = {name for (name,) in self._rows("SELECT name FROM sqlite_master")}
        with self._file.write(durable=True) as db:
            for table in {"parked", "forgotten"} & tables:  # the first format forgets nobody
                for values in self._rows(f"SELECT * FROM {table}"):
                    db.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(values))})", values)
            count(db, **{name: totals.get(name, 0) for name in _COUNTERS})
            # The lane counts those that it has.
            count(db, predictions=totals.get("predictions", 0) - total(db, "upgraded_count"))
            ((watermark_ms,),) = self._rows("SELECT time_ms FROM watermark")
            set_count(db, "watermark_ms", watermark_ms)
            db.execute("DELETE FROM sqlite_sequence WHERE name = 'labelled'")
            db.execute("INSERT INTO sqlite_sequence VALUES ('labelled', ?)", (names["upgrade_labelled"],))
            for name, value in names.items():
                set_count(db, name, value)
            set_count(db, "upgrade_done", 1)
            db.execute("DELETE FROM counters WHERE name IN ('upgraded', 'upgraded_count')")

    def _rows(self, query: str, *values: object) -> list[Any]:
        with asking(f"traffic log {self._old}"):
            return self._db.execute(query, values).fetchall()


def _is_done(file: LabelsFile, old: Path, names: dict[str, int]) -> bool:
    """Whether the old file was brought over already. Raises: InvalidInput: another one was, or the new log is in use."""
    with file.read() as db:
        totals = dict(db.execute("SELECT name, value FROM counters"))
        used = db.execute("SELECT 1 FROM lanes LIMIT 1").fetchone() is not None
    if totals.get("upgrade_done") and all(totals[name] == value for name, value in names.items()):
        return True
    if totals.get("upgrade_done") or (used and not totals.get("upgraded")):
        raise InvalidInput(
            f"{old} is a traffic log of version 0.1 beside {file.path}, which has predictions of its own: move one of them "
            "away",
            "home",
        )
    return False


@contextmanager
def _alone(lock: Path, old: Path) -> Iterator[None]:
    """One process at a time; the others do not wait, since it may take long."""
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NotReady(f"{old} is being brought over to the format of this version; try again later") from None
        yield


def _opened(old: Path) -> sqlite3.Connection:
    """The old database, whole. Raises: InvalidInput: it is not one."""
    db = sqlite3.connect(old, timeout=10.0, isolation_level=None)
    try:
        (application,), (version,) = (
            db.execute(f"PRAGMA {what}").fetchone() for what in ("application_id", "user_version")
        )
    except sqlite3.OperationalError as error:
        db.close()
        raise NotReady(f"traffic log {old} cannot be opened: {error}") from error
    except sqlite3.DatabaseError as error:
        db.close()
        raise InvalidInput(f"{old} is not a traffic log ({error}): move it away or name another home") from None
    if application == _APPLICATION_ID and 1 <= version <= LAST_FORMAT_VERSION:
        return db
    db.close()
    if application == _APPLICATION_ID:
        raise InvalidInput(
            f"{old} was written by a newer Baton (format {version}): upgrade this installation, or start with a new home"
        )
    raise InvalidInput(f"{old} is another program's database: move it away or name another home")
