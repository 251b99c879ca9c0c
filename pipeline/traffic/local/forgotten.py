"""Keys of users who are forgotten: their predictions made until then must not come back, however late they are written.

Kept until retention would have removed such a prediction anyway; looked up by key.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection

__all__ = ["any_forgotten", "expire", "forgotten_among", "is_forgotten", "remember"]


def remember(db: sqlite3.Connection, routing_hash: int, until_ms: int) -> None:
    """Refuse predictions of a routing hash (unsigned) made until then, in the caller's transaction."""
    db.execute("INSERT OR REPLACE INTO forgotten VALUES (?, ?)", (_signed(routing_hash), until_ms))


def any_forgotten(db: sqlite3.Connection) -> bool:
    """Whether any key is forgotten: mostly none is, and then none is looked up."""
    return db.execute("SELECT 1 FROM forgotten LIMIT 1").fetchone() is not None


def is_forgotten(db: sqlite3.Connection, routing_hash: int, time_ms: int) -> bool:
    """Whether a prediction of a routing hash (unsigned) and time is refused."""
    return time_ms <= forgotten_among(db, [routing_hash]).get(routing_hash, time_ms - 1)


def forgotten_among(db: sqlite3.Connection, routing_hashes: Collection[int]) -> dict[int, int]:
    """Of routing hashes (unsigned) those that are forgotten, with the time until which their predictions are refused."""
    marks = ", ".join("?" * len(routing_hashes))
    query = f"SELECT routing_hash, until_ms FROM forgotten WHERE routing_hash IN ({marks})"
    return {value % (1 << 64): until_ms for value, until_ms in db.execute(query, [*map(_signed, routing_hashes)])}


def expire(db: sqlite3.Connection, before_ms: int) -> None:
    """Drop keys whose predictions are all older than that."""
    db.execute("DELETE FROM forgotten WHERE until_ms < ?", (before_ms,))


def _signed(value: int) -> int:
    """An unsigned 64-bit hash as SQLite stores it."""
    return value - (1 << 64) if value >= 1 << 63 else value
