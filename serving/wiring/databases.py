"""SQLite databases of a home, while others have them open or nobody has: their condition."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

__all__ = ["ADVICE", "HomeDatabase"]

ADVICE = "bring it back with `baton restore`"


class HomeDatabase:
    """One SQLite database of a home, read only.

    Args:
        path: the database.
        tables: that it must have.
        known_format: newest form of it that this version can read.
    """

    def __init__(self, path: Path, tables: frozenset[str], known_format: int) -> None:
        self.path, self._tables, self._known_format = path, tables, known_format
        self.there = path.exists()

    def faults(self, check_s: float) -> Iterator[str]:
        """What is wrong with it, each with what to do. `check_s`: longest time for its pages, in seconds."""
        journal = self.path.with_name(f"{self.path.name}-wal")
        if not self.there:
            if journal.exists() and journal.stat().st_size:
                yield f"{journal.name} is there without {self.path.name}: {ADVICE}, or remove both"
            return
        try:
            with closing(self._open()) as db:
                yield from self._read(db, check_s)
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                yield f"{self.path.name} cannot be read ({error}): {ADVICE}"
        except sqlite3.DatabaseError as error:
            yield f"{self.path.name} is damaged ({error}): {ADVICE}"

    def _read(self, db: sqlite3.Connection, check_s: float) -> Iterator[str]:
        found = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        missing = sorted(self._tables - found)
        if missing and (not found or found & self._tables):  # else it is another program's, which its reader says
            yield f"{self.path.name} lacks {', '.join(missing)}: {ADVICE}, or remove it if this home is new"
            return
        (written,) = db.execute("PRAGMA user_version").fetchone()
        if written > self._known_format:
            yield (
                f"{self.path.name} was written by a newer Baton (format {written}; this one knows {self._known_format}): install "
                "that version again, or bring back a backup that this version has written"
            )
            return
        until = time.monotonic() + check_s
        db.set_progress_handler(lambda: time.monotonic() > until, 1000)
        try:
            (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.OperationalError as error:
            if "interrupted" not in str(error):
                raise
        else:
            if verdict != "ok":
                yield f"{self.path.name} is damaged ({' '.join(verdict.split())}): {ADVICE}"

    def rows(self, query: str, *values: object) -> list[tuple[object, ...]]:
        """Answer of a query; nothing where there is no database."""
        if not self.there:
            return []
        with closing(self._open()) as db:
            return db.execute(query, values).fetchall()

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(f"file:{quote(str(self.path))}?mode=rw", uri=True, timeout=5.0)
