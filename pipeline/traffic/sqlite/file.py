"""SQLite file of the traffic log: its tables, opening, and transactions.

It knows the tables, and not the meaning of their rows; that is in `log` and `retention`. Several processes have
the file open at once: with write-ahead logging readers continue while one writes, and writers queue for the lock.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from pipeline.disk import asking, transaction
from pipeline.errors import InvalidInput, NotReady
from pipeline.forks import ProcessLock

__all__ = ["SCHEMA_VERSION", "TrafficFile"]

SCHEMA_VERSION = 2
_APPLICATION_ID = 0x42544E31  # "BTN1"
_OPEN_TRIES = 50

# Narrow tables are kept apart from blobs, so that walking and updating them touches few pages. Rows are never reused
# (AUTOINCREMENT): a reader's place stays valid. All predictions up to `watermark` are closed, none after it.
_TABLES = """
CREATE TABLE predictions (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    prediction_id TEXT NOT NULL UNIQUE,
    time_ms INTEGER NOT NULL,
    endpoint TEXT NOT NULL,
    n INTEGER NOT NULL,
    routing_hash INTEGER NOT NULL,
    closes_ms INTEGER NOT NULL,
    scored INTEGER NOT NULL
);
CREATE INDEX predictions_unscored ON predictions (seq) WHERE scored = 0;
CREATE TABLE records (seq INTEGER PRIMARY KEY, record BLOB NOT NULL);
CREATE TABLE scores (
    prediction_id TEXT NOT NULL,
    arm TEXT NOT NULL,
    bundle TEXT NOT NULL,
    version INTEGER NOT NULL,
    scores BLOB NOT NULL,
    PRIMARY KEY (prediction_id, arm, bundle, version)
);
CREATE TABLE feedback (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    prediction INTEGER NOT NULL,
    received_ms INTEGER NOT NULL,
    change BLOB NOT NULL
);
CREATE INDEX feedback_prediction ON feedback (prediction);
CREATE TABLE parked (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    prediction_id TEXT NOT NULL,
    received_ms INTEGER NOT NULL,
    entry TEXT NOT NULL
);
CREATE INDEX parked_prediction ON parked (prediction_id);
CREATE TABLE late (prediction INTEGER PRIMARY KEY, due_ms INTEGER NOT NULL);
CREATE INDEX late_due ON late (due_ms);
CREATE TABLE labelled (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    prediction INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    time_ms INTEGER NOT NULL,
    written_ms INTEGER NOT NULL,
    mature BLOB NOT NULL
);
CREATE INDEX labelled_prediction ON labelled (prediction);
CREATE TABLE watermark (one INTEGER PRIMARY KEY CHECK (one = 1), seq INTEGER NOT NULL, time_ms INTEGER NOT NULL);
INSERT INTO watermark VALUES (1, 0, 0);
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE positions (reader TEXT PRIMARY KEY, seq INTEGER NOT NULL) WITHOUT ROWID;
"""
# Julian day 2440587.5 is the beginning of 1970.
_NOW_MS = "SELECT CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)"
# Routing hashes whose predictions made until then must not be written.
_SINCE_2 = "CREATE TABLE forgotten (routing_hash INTEGER PRIMARY KEY, until_ms INTEGER NOT NULL)"


class TrafficFile:
    """Connection of one process; usable from several threads, one at a time.

    Args:
        path: the database file; created with its directory if absent.
        busy_s: longest wait for another process's write.

    Raises:
        InvalidInput: the file is something else, or was written by a newer Baton.
        NotReady: the file cannot be opened now.
    """

    def __init__(self, path: Path, busy_s: float = 10.0) -> None:
        self.path = path
        self._lock = ProcessLock(f"traffic log {path}")
        # A connection of its own: the time is asked for while others wait for the file.
        self._time = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self._time_lock = ProcessLock(f"traffic log {path}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(
                path, timeout=busy_s, isolation_level=None, check_same_thread=False, cached_statements=256
            )
        except (OSError, sqlite3.Error) as error:
            raise NotReady(f"traffic log {path} cannot be opened: {error}") from error
        try:
            self._prepare()
        except BaseException:
            self._db.close()
            raise

    def write(self, durable: bool) -> AbstractContextManager[sqlite3.Connection]:
        """A write transaction: all of it or nothing. `durable`: it survives power loss, not only the death of a process.

        A durable commit makes every commit before it durable as well.

        Raises:
            NotReady: the store is locked, full or failing; nothing was written.
        """
        level = "FULL" if durable else "NORMAL"
        return self._transaction("BEGIN IMMEDIATE", "COMMIT", before=f"PRAGMA synchronous={level}")

    def read(self) -> AbstractContextManager[sqlite3.Connection]:
        """A read transaction: one state of the log throughout.

        Raises:
            NotReady: the store is failing.
        """
        return self._transaction("BEGIN", "ROLLBACK")

    @contextmanager
    def _transaction(self, begin: str, end: str, *, before: str = "") -> Iterator[sqlite3.Connection]:
        what = f"traffic log {self.path}"
        with self._lock:
            if before:
                with asking(what):
                    self._db.execute(before)
            with transaction(self._db, begin, end, what):
                yield self._db

    @contextmanager
    def scrubbing(self) -> Iterator[None]:
        """Overwrite what is deleted inside; then empty the write-ahead log, as far as other readers allow."""
        with self._lock:
            self._db.execute("PRAGMA secure_delete=ON").fetchall()
            try:
                yield
            finally:
                self._db.execute("PRAGMA secure_delete=OFF").fetchall()
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def now_ms(self) -> int:
        """Unix milliseconds by SQLite's clock. Raises: NotReady: the file is closed."""
        try:
            with self._time_lock:
                return int(self._time.execute(_NOW_MS).fetchone()[0])
        except sqlite3.Error as error:
            raise NotReady(f"traffic log {self.path}: {error}") from error

    def close(self) -> None:
        """Release the file; later use raises NotReady."""
        with self._lock, self._time_lock:
            self._db.close()
            self._time.close()

    def _prepare(self) -> None:
        try:
            # A record of 100 candidates has 31 KB. Large pages, and a write-ahead log small enough to stay in the cache,
            # cut the CPU time of a write to a third of SQLite's defaults (benchmarks/traffic.py).
            self._db.execute("PRAGMA page_size=16384")
            self._write_ahead()
            self._db.execute("PRAGMA wal_autocheckpoint=256")
            self._db.execute(f"PRAGMA journal_size_limit={64 << 20}")
            self._db.execute("PRAGMA cache_size=-32768")
            self._tables()
        except sqlite3.OperationalError as error:
            raise NotReady(f"traffic log {self.path} cannot be opened: {error}") from error
        except sqlite3.DatabaseError as error:
            raise InvalidInput(
                f"{self.path} is not a traffic log ({error}): move it away or name another home"
            ) from None

    def _write_ahead(self) -> None:
        # Turning the log on needs the file alone, and SQLite does not wait for that as it waits for other locks.
        for attempt in range(_OPEN_TRIES):
            try:
                self._db.execute("PRAGMA journal_mode=WAL").fetchone()
                return
            except sqlite3.OperationalError:
                if attempt == _OPEN_TRIES - 1:
                    raise
                time.sleep(0.02)

    def _tables(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            version = self._number("PRAGMA user_version")
            application = self._number("PRAGMA application_id")
            if version == 0 and application == 0:
                if self._number("SELECT count(*) FROM sqlite_master"):
                    raise InvalidInput(f"{self.path} is another program's database: move it away or name another home")
                for statement in _TABLES.split(";\n"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA application_id={_APPLICATION_ID}")
            elif application != _APPLICATION_ID:
                raise InvalidInput(f"{self.path} is another program's database: move it away or name another home")
            elif version > SCHEMA_VERSION:
                raise InvalidInput(
                    f"{self.path} was written by a newer Baton (format {version}; this one knows {SCHEMA_VERSION}): "
                    "upgrade this installation, or start with a new home"
                )
            if version < 2:
                self._db.execute(_SINCE_2)
                self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def _number(self, query: str) -> int:
        return int(self._db.execute(query).fetchone()[0])
