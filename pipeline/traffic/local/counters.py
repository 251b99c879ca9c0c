"""Totals of the traffic log of one machine: kept by each write in its own transaction, so that none is ever counted."""

from __future__ import annotations

import sqlite3

__all__ = ["count", "set_count", "total"]


def count(db: sqlite3.Connection, **added: int) -> None:
    """Add to totals, in the caller's transaction."""
    db.executemany(
        "INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
        [(name, value) for name, value in added.items() if value],
    )


def set_count(db: sqlite3.Connection, name: str, value: int) -> None:
    """Set a figure, in the caller's transaction."""
    db.execute("INSERT OR REPLACE INTO counters VALUES (?, ?)", (name, value))


def total(db: sqlite3.Connection, name: str) -> int:
    """One total, 0 if nothing was ever added."""
    row = db.execute("SELECT value FROM counters WHERE name = ?", (name,)).fetchone()
    return int(row[0]) if row else 0
