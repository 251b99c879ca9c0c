"""Store of idempotency keys and their answers: in `control.db`, or in a shared Redis (`serving.state.redis.idempotency`)."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from pipeline.disk import asking
from pipeline.errors import NotReady
from pipeline.forks import ProcessLock

__all__ = ["Keys", "SqliteKeys", "Taken"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    caller TEXT NOT NULL, key TEXT NOT NULL, digest TEXT NOT NULL, answer TEXT, time_ms INTEGER NOT NULL,
    PRIMARY KEY (caller, key)
) STRICT;
"""


class Taken(NamedTuple):
    """A key that was used before: digest of its request, and the answer (None: there is none yet)."""

    digest: str
    answer: str | None


class Keys(Protocol):
    """Store of keys, each within its caller. Safe for several threads and processes. All methods raise NotReady."""

    def take(self, caller: str, key: str, digest: str, now_ms: int) -> Taken | None:
        """Take a key; returns the earlier use, in which case nothing is written."""

    def answer(self, caller: str, key: str, answer: str) -> None:
        """Store the answer to a key that was taken."""

    def free(self, caller: str, key: str) -> None:
        """Forget a key."""

    def close(self) -> None:
        """Close the store."""


class SqliteKeys:
    """Store of keys in `control.db`.

    Args:
        kept: number of keys at most, the newest ones; kept_ms: age up to which they are kept.
        make: whether the file is made where there is none; else it is the control store's to make, and a call raises NotReady
            until it is there.
    """

    def __init__(self, path: Path, *, kept: int, kept_ms: int, make: bool = True) -> None:
        self._kept, self._kept_ms = kept, kept_ms
        self._path, self._what = path, f"state {path}"
        self._lock = ProcessLock(self._what)
        self._db: sqlite3.Connection | None = None
        self._file = (0, 0)
        if make:
            path.touch()
        if path.exists():
            with self._open():
                pass

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """Context with a connection to the file that has the name now."""
        with self._lock, asking(self._what):
            try:
                found = os.stat(self._path)
            except FileNotFoundError:
                raise NotReady(f"{self._what} is gone, and the keys with it") from None
            if self._db is None or self._file != (found.st_dev, found.st_ino):
                self._close()
                self._db = sqlite3.connect(self._path, timeout=10.0, isolation_level=None, check_same_thread=False)
                self._file = found.st_dev, found.st_ino
                self._db.execute("PRAGMA synchronous = FULL")
                self._db.executescript(_SCHEMA)
            yield self._db

    def take(self, caller: str, key: str, digest: str, now_ms: int) -> Taken | None:
        with self._open() as db:
            row = db.execute(
                "SELECT digest, answer FROM answers WHERE caller = ? AND key = ? AND time_ms > ?",
                (caller, key, now_ms - self._kept_ms),
            ).fetchone()
            if row is not None:
                return Taken(*row)
            db.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, NULL, ?)", (caller, key, digest, now_ms))
            db.execute(
                "DELETE FROM answers WHERE time_ms <= ? OR rowid IN "
                "(SELECT rowid FROM answers ORDER BY time_ms DESC, rowid DESC LIMIT -1 OFFSET ?)",
                (now_ms - self._kept_ms, self._kept),
            )
        return None

    def answer(self, caller: str, key: str, answer: str) -> None:
        with self._open() as db:
            db.execute("UPDATE answers SET answer = ? WHERE caller = ? AND key = ?", (answer, caller, key))

    def free(self, caller: str, key: str) -> None:
        with self._open() as db:
            db.execute("DELETE FROM answers WHERE caller = ? AND key = ?", (caller, key))

    def close(self) -> None:
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._db is not None:
            self._db.close()
        self._db = None
