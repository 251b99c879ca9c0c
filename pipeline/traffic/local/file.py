"""Database of labels (`labels.db`): its tables, opening, and transactions.

It holds what became of the predictions in the lanes' folders (`pipeline.traffic.lanes`): feedback applied, rows labelled,
keys forgotten, totals. It knows the tables, and not the meaning of their rows; that is in the other
files of this folder. The process that joins writes it; others write a row now and then, and read it at any time: with
write-ahead logging readers continue while one writes.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

from pipeline.disk import asking, clear_staging, creating, transaction
from pipeline.errors import InvalidInput, NotReady
from pipeline.forks import ProcessLock

__all__ = ["LabelsFile"]

FORMAT_VERSION = 1
_APPLICATION_ID = 0x42544E32  # "BTN2"
_OPEN_TRIES = 50

# A prediction is known by its lane and its seq there. `lanes` has how far each lane is processed: feedback of its inbox
# taken in, predictions looked at for parked feedback, predictions closed. `open` and `feedback` have predictions with
# feedback alone: what is never labelled leaves no row here. `ceilings`: see `ceilings`; with its rows in the
# key's order SQLite 3.40 would call a whole file damaged, since the key does not come first.
_TABLES = """
CREATE TABLE lanes (
    lane INTEGER PRIMARY KEY,
    inbox INTEGER NOT NULL DEFAULT 0,
    seen INTEGER NOT NULL DEFAULT 0,
    closed INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE ceilings (
    lane INTEGER NOT NULL,
    after INTEGER NOT NULL,
    last INTEGER NOT NULL,
    time_ms INTEGER NOT NULL,
    PRIMARY KEY (lane, last, time_ms)
);
CREATE TABLE open (
    lane INTEGER NOT NULL,
    prediction INTEGER NOT NULL,
    closes_ms INTEGER NOT NULL,
    PRIMARY KEY (lane, prediction)
) WITHOUT ROWID;
CREATE TABLE feedback (
    seq INTEGER PRIMARY KEY,
    lane INTEGER NOT NULL,
    prediction INTEGER NOT NULL,
    received_ms INTEGER NOT NULL,
    change BLOB NOT NULL
);
CREATE INDEX feedback_prediction ON feedback (lane, prediction);
CREATE TABLE parked (
    seq INTEGER PRIMARY KEY,
    prediction_id TEXT NOT NULL,
    received_ms INTEGER NOT NULL,
    entry TEXT NOT NULL
);
CREATE INDEX parked_prediction ON parked (prediction_id);
CREATE TABLE late (
    lane INTEGER NOT NULL,
    prediction INTEGER NOT NULL,
    due_ms INTEGER NOT NULL,
    PRIMARY KEY (lane, prediction)
) WITHOUT ROWID;
CREATE INDEX late_due ON late (due_ms);
CREATE TABLE labelled (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    lane INTEGER NOT NULL,
    prediction INTEGER NOT NULL,
    prediction_id TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    file INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    length INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    time_ms INTEGER NOT NULL,
    written_ms INTEGER NOT NULL,
    mature BLOB NOT NULL
);
CREATE INDEX labelled_prediction ON labelled (lane, prediction);
CREATE TABLE damaged (lane INTEGER NOT NULL, file INTEGER NOT NULL, offset INTEGER NOT NULL,
    PRIMARY KEY (lane, file, offset)) WITHOUT ROWID;
CREATE TABLE doomed (lane INTEGER NOT NULL, prediction INTEGER NOT NULL, PRIMARY KEY (lane, prediction)) WITHOUT ROWID;
CREATE TABLE forgotten (routing_hash INTEGER PRIMARY KEY, until_ms INTEGER NOT NULL);
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
""" + "".join(
    f"""INSERT INTO counters VALUES ('{table}', 0);
CREATE TRIGGER {table}_in AFTER INSERT ON {table}
    BEGIN UPDATE counters SET value = value + 1 WHERE name = '{table}' ; END;
CREATE TRIGGER {table}_out AFTER DELETE ON {table}
    BEGIN UPDATE counters SET value = value - 1 WHERE name = '{table}' ; END;
"""
    for table in ("parked", "late", "damaged")
)
# Julian day 2440587.5 is the beginning of 1970.
_NOW_MS = "SELECT CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)"


class LabelsFile:
    """Connections of one process: one that writes and one that reads, each usable from several threads, one at a time.

    Args:
        path: the database file; created with its directory if absent.
        busy_s: longest wait for another process's write.

    Raises:
        InvalidInput: the file is something else, or was written by a newer Baton.
        NotReady: the file cannot be opened now.
    """

    def __init__(self, path: Path, busy_s: float = 10.0) -> None:
        self.path = path
        self._what = f"traffic log {path}"
        self._writing, self._reading, self._asking = (ProcessLock(self._what) for _ in range(3))
        # A connection of its own: the time is asked for while others wait for the file.
        self._time = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        opened: list[sqlite3.Connection] = []
        try:
            if not path.exists():  # whoever is killed now leaves no database without its tables
                with creating(path) as staging, closing(_connect(staging, busy_s)) as db:
                    db.execute("PRAGMA synchronous=OFF")  # `creating` brings it to the disk
                    _write_ahead(db)
                    with transaction(db, "BEGIN", "COMMIT", self._what):
                        _lay_out(db)
            clear_staging(path)
            for _ in range(2):
                opened.append(_connect(path, busy_s))
            self._writer, self._reader = opened
            self._prepare()
        except BaseException as error:
            for db in (*opened, self._time):
                db.close()
            if isinstance(error, OSError | sqlite3.OperationalError):
                raise NotReady(f"{self._what} cannot be opened: {error}") from error
            if isinstance(error, sqlite3.DatabaseError):
                raise InvalidInput(
                    f"{path} is not a traffic log ({error}): move it away or name another home"
                ) from None
            raise

    def write(self, durable: bool) -> AbstractContextManager[sqlite3.Connection]:
        """A write transaction: all of it or nothing. `durable`: it survives power loss, not only the death of a process.

        Raises:
            NotReady: the store is locked, full or failing; nothing was written.
        """
        return self._write(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")

    @contextmanager
    def _write(self, before: str) -> Iterator[sqlite3.Connection]:
        with self._writing:
            with asking(self._what):
                self._writer.execute(before)
            with transaction(self._writer, "BEGIN IMMEDIATE", "COMMIT", self._what):
                yield self._writer

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A read transaction: one state of the labels throughout.

        Raises:
            NotReady: the store is failing.
        """
        with self._reading, transaction(self._reader, "BEGIN", "ROLLBACK", self._what):
            yield self._reader

    def empty_journal(self) -> None:
        """Empty the write-ahead log, so that it has nothing of what was deleted.

        Raises:
            NotReady: others read or wrote all the time.
        """
        with self._writing, asking(self._what):
            (busy, *_) = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise NotReady(f"{self._what} is in use all the time, so its journal cannot be emptied; try again")

    def now_ms(self) -> int:
        """Unix milliseconds by SQLite's clock. Raises: NotReady: the file is closed."""
        with self._asking, asking(self._what):
            return int(self._time.execute(_NOW_MS).fetchone()[0])

    def close(self) -> None:
        """Release the file; later use raises NotReady."""
        with self._writing, self._reading, self._asking:
            for db in (self._writer, self._reader, self._time):
                db.close()

    def _prepare(self) -> None:
        _write_ahead(self._writer)
        self._writer.execute("PRAGMA wal_autocheckpoint=1024")
        self._writer.execute(f"PRAGMA journal_size_limit={64 << 20}")
        self._writer.execute("PRAGMA cache_size=-32768")
        # What is deleted is overwritten: little is deleted here, and a user may ask to be forgotten.
        self._writer.execute("PRAGMA secure_delete=ON").fetchall()
        with transaction(self._writer, "BEGIN IMMEDIATE", "COMMIT", self._what):
            self._tables()

    def _tables(self) -> None:
        version = self._number("PRAGMA user_version")
        application = self._number("PRAGMA application_id")
        if version == 0 and application == 0 and not self._number("SELECT count(*) FROM sqlite_master"):
            _lay_out(self._writer)
        elif application != _APPLICATION_ID:
            raise InvalidInput(f"{self.path} is another program's database: move it away or name another home")
        elif version > FORMAT_VERSION:
            raise InvalidInput(
                f"{self.path} was written by a newer Baton (format {version}; this one knows {FORMAT_VERSION}): "
                "upgrade this installation, or start with a new home"
            )

    def _number(self, query: str) -> int:
        return int(self._writer.execute(query).fetchone()[0])


def _connect(path: Path, busy_s: float) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=busy_s, isolation_level=None, check_same_thread=False, cached_statements=256)


def _lay_out(db: sqlite3.Connection) -> None:
    for statement in _TABLES.split(";\n"):
        db.execute(statement)
    db.execute(f"PRAGMA application_id={_APPLICATION_ID}")
    db.execute(f"PRAGMA user_version={FORMAT_VERSION}")


def _write_ahead(db: sqlite3.Connection) -> None:
    # Turning the log on needs the file alone, and SQLite does not wait for that as it waits for other locks.
    for attempt in range(_OPEN_TRIES):
        try:
            db.execute("PRAGMA journal_mode=WAL").fetchone()
            return
        except sqlite3.OperationalError:
            if attempt == _OPEN_TRIES - 1:
                raise
            time.sleep(0.02)
