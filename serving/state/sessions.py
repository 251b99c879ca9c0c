"""Store of browser sessions in a file of the home, or in a shared Redis (`serving.state.redis.sessions`).

The file is no part of a backup, so that no restore brings back a session that was signed out of.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Collection, Mapping
from pathlib import Path

from pipeline.disk import asking, transaction, writing
from pipeline.forks import ProcessLock
from serving.security.session import SessionRow

__all__ = ["MAX_SESSIONS", "MAX_TOKEN_SESSIONS", "SqliteSessions"]

MAX_TOKEN_SESSIONS = 20
"""Sessions of one token; a new one ends the one that would end first."""
MAX_SESSIONS = 1000
"""Sessions of an installation."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS sessions (key TEXT PRIMARY KEY, token TEXT NOT NULL, ends_ms INTEGER NOT NULL, row TEXT NOT NULL) STRICT;
"""
_NEWEST = "SELECT key FROM sessions {} ORDER BY ends_ms DESC, rowid DESC LIMIT -1 OFFSET ?"


class SqliteSessions:
    """Store of sessions in an SQLite file, for the control processes of one machine. See `SessionRows`.

    Args:
        path: of the file; made with its folder, for its owner alone.
    """

    def __init__(self, path: Path) -> None:
        self._what = f"sessions {path}"
        self._lock = ProcessLock(self._what)
        with writing(path):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        with asking(self._what):
            self._db = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(_SCHEMA)

    def put(self, row: SessionRow, now_ms: int) -> None:
        with self._lock, transaction(self._db, "BEGIN IMMEDIATE", "COMMIT", self._what):
            self._db.execute(
                "INSERT OR REPLACE INTO sessions VALUES (?, ?, ?, ?)", (row.key, row.token, row.ends_ms, row.pack())
            )
            self._db.execute("DELETE FROM sessions WHERE ends_ms <= ?", (now_ms,))
            for which, values in (("WHERE token = ?", (row.token, MAX_TOKEN_SESSIONS)), ("", (MAX_SESSIONS,))):
                self._db.execute(f"DELETE FROM sessions WHERE key IN ({_NEWEST.format(which)})", values)

    def get(self, keys: Collection[str]) -> Mapping[str, SessionRow]:
        found = {}
        with self._lock, asking(self._what):
            for key in keys:
                stored = self._db.execute("SELECT row FROM sessions WHERE key = ?", (key,)).fetchone()
                row = None if stored is None else SessionRow.unpack(key, stored[0])
                if row is not None:
                    found[key] = row
        return found

    def remove(self, key: str) -> None:
        with self._lock, asking(self._what):
            self._db.execute("DELETE FROM sessions WHERE key = ?", (key,))

    def close(self) -> None:
        with self._lock:
            self._db.close()
