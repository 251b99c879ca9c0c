"""Index of a lane: the SQLite file of its narrow rows. Tables, opening, and transactions.

It knows the tables, and not the meaning of their rows. The lane's process writes; readers of any process go on meanwhile,
and who deletes queues for the write lock for a moment. What is deleted is overwritten.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

from pipeline.disk import asking, replacing, transaction
from pipeline.errors import InvalidInput, NotReady
from pipeline.forks import ProcessLock

__all__ = ["AT_ONCE_ROWS", "SCHEMA_VERSION", "Index", "index_path", "marks"]

SCHEMA_VERSION = 2
_APPLICATION_ID = 0x42544C31  # "BTL1"
AT_ONCE_ROWS = 64
"""Rows of one statement: each statement releases the GIL, and getting it back is slow."""
_BUSY_S = 10.0
"""Longest wait for another process."""

# Rows are never reused (AUTOINCREMENT): a reader's place stays valid. Neither a routing hash nor a request key has an index
# here: their values come in no order, and an index of them costs more than all the rest of a row (see `keys`). Indexes of
# format 1 have no request keys until their lane is claimed again.
_TABLES = """
CREATE TABLE files (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    begun_ms INTEGER NOT NULL,
    newest_ms INTEGER NOT NULL,
    end INTEGER NOT NULL,
    predictions INTEGER NOT NULL,
    scores INTEGER NOT NULL
);
CREATE TABLE predictions (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    prediction_id TEXT NOT NULL UNIQUE,
    file INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    length INTEGER NOT NULL,
    n INTEGER NOT NULL,
    endpoint TEXT NOT NULL,
    arm TEXT NOT NULL,
    time_ms INTEGER NOT NULL,
    routing_hash INTEGER NOT NULL,
    request_key INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE scores (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    prediction_id TEXT NOT NULL,
    arm TEXT NOT NULL,
    bundle TEXT NOT NULL,
    version INTEGER NOT NULL,
    file INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    length INTEGER NOT NULL,
    UNIQUE (prediction_id, arm, bundle, version)
);
CREATE TABLE inbox (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    prediction_id TEXT NOT NULL,
    received_ms INTEGER NOT NULL,
    entry TEXT NOT NULL
);
CREATE INDEX inbox_prediction ON inbox (prediction_id);
"""


def index_path(folder: Path) -> Path:
    """Path of the index in its lane's folder. A folder without it is not a lane yet."""
    return folder / "index.db"


def marks(rows: int, columns: int = 0) -> str:
    """Question marks of a statement: of a list of values, or of rows of columns."""
    one = f"({', '.join('?' * columns)})" if columns else "?"
    return ", ".join([one] * rows)


class Index:
    """Connection to one lane's index; usable from several threads, one at a time.

    Raises:
        InvalidInput: the file is something else, or was written by a newer Baton.
        NotReady: the file cannot be opened now.
    """

    def __init__(self, folder: Path) -> None:
        self.path = index_path(folder)
        self._what = f"traffic log {self.path}"
        self._lock = ProcessLock(self._what)
        self._keyed = False
        with asking(self._what):
            self._db = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode=rw",
                uri=True,
                timeout=_BUSY_S,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=256,
            )
        try:
            self._prepare()
        except BaseException:
            self._db.close()
            raise

    @classmethod
    def create(cls, folder: Path) -> None:
        """Make the index of a folder that has none; readers see all of it or nothing. The caller holds the claim."""
        path = index_path(folder)
        if path.exists():
            return
        try:
            with replacing(path, durable=True) as staging, closing(_private(staging)) as db:
                db.executescript(
                    "PRAGMA journal_mode=WAL; BEGIN;"
                    f"{_TABLES} PRAGMA application_id={_APPLICATION_ID}; PRAGMA user_version={SCHEMA_VERSION}; COMMIT;"
                )
        except (OSError, sqlite3.Error) as error:
            raise NotReady(f"traffic log {path} cannot be created: {error}") from error

    @property
    def has_request_keys(self) -> bool:
        """Whether predictions have a request key: an index of format 1 has none until its lane upgrades it."""
        if not self._keyed:
            self._keyed = bool(self.rows("SELECT 1 FROM pragma_table_info('predictions') WHERE name = 'request_key'"))
        return self._keyed

    def upgrade(self) -> None:
        """Bring an index of an earlier format to this one. The caller holds the claim. Raises: NotReady."""
        if not self.has_request_keys:
            with self.write(durable=True) as db:
                db.execute("ALTER TABLE predictions ADD COLUMN request_key INTEGER NOT NULL DEFAULT 0")
                db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")

    def write(self, *, durable: bool) -> AbstractContextManager[sqlite3.Connection]:
        """A write transaction: all of it or nothing. `durable`: it survives power loss, not only the death of a process.

        A durable commit makes every commit before it durable as well.

        Raises:
            NotReady: the index is locked, full or failing; nothing was written.
        """
        level = "FULL" if durable else "NORMAL"
        return self._transaction("BEGIN IMMEDIATE", "COMMIT", before=f"PRAGMA synchronous={level}")

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """All rows of one query. Raises: NotReady."""
        with self._lock, asking(self._what):
            return self._db.execute(query, values).fetchall()

    def rows_in(self, query: str, values: Sequence[Any]) -> list[Any]:
        """Rows of a query with one list of any length, at `{}`."""
        found: list[Any] = []
        for start in range(0, len(values), AT_ONCE_ROWS):
            some = values[start : start + AT_ONCE_ROWS]
            found += self.rows(query.format(marks(len(some))), some)
        return found

    def empty_log(self) -> None:
        """Bring all of the write-ahead log into the file, and leave none of its content.

        Raises:
            NotReady: readers or a writer were in the way all the time.
        """
        until = time.monotonic() + _BUSY_S
        while self.rows("PRAGMA wal_checkpoint(TRUNCATE)")[0][0]:
            if time.monotonic() > until:
                raise NotReady(f"{self._what}: its write-ahead log is in use and could not be emptied; try it again")

    def close(self) -> None:
        """Release the file; later use raises NotReady."""
        with self._lock:
            self._db.close()

    @contextmanager
    def _transaction(self, begin: str, end: str, *, before: str) -> Iterator[sqlite3.Connection]:
        with self._lock:
            with asking(self._what):
                self._db.execute(before)
            with transaction(self._db, begin, end, self._what):
                yield self._db

    def _prepare(self) -> None:
        try:
            self._db.execute("PRAGMA secure_delete=ON").fetchall()
            application, version = (
                int(self._db.execute(f"PRAGMA {what}").fetchone()[0]) for what in ("application_id", "user_version")
            )
        except sqlite3.OperationalError as error:
            raise NotReady(f"{self._what} cannot be opened: {error}") from error
        except sqlite3.DatabaseError as error:
            raise InvalidInput(f"{self.path} is not an index of a lane ({error}): move its folder away") from None
        if application != _APPLICATION_ID:
            raise InvalidInput(f"{self.path} is another program's database: move its folder away")
        if version > SCHEMA_VERSION:
            raise InvalidInput(
                f"{self.path} was written by a newer Baton (format {version}; this one knows {SCHEMA_VERSION}): "
                "upgrade this installation, or start with a new home"
            )


def _private(path: Path) -> sqlite3.Connection:
    """A new database that its owner alone can read; so will be the files that SQLite keeps beside it."""
    path.touch(0o600)
    return sqlite3.connect(path)
