"""Ceilings: how the times of all open predictions are set right at once where the clock went back.

A prediction of the future was made by a clock that was ahead. A ceiling is the latest time that the predictions of a lane
can have which were open when that was found: one row for each lane, instead of a change of every prediction.
"""

from __future__ import annotations

import sqlite3

from pipeline.traffic.lanes.rows import Row

__all__ = ["Ceilings", "drop", "lower"]


class Ceilings:
    """Latest times of open predictions, as one transaction reads them. Almost always there are none."""

    def __init__(self, db: sqlite3.Connection) -> None:
        rows: list[tuple[int, int, int, int]] = db.execute("SELECT lane, after, last, time_ms FROM ceilings").fetchall()
        self._rows = rows

    def time_of(self, lane: int, row: Row) -> int:
        """When a prediction was made, by the log's clock (Unix milliseconds)."""
        below = (time_ms for of, after, last, time_ms in self._rows if of == lane and after < row.seq <= last)
        return min((row.time_ms, *below))


def lower(db: sqlite3.Connection, lane: int, after: int, last: int, time_ms: int) -> None:
    """Set the times right of a lane's predictions after a seq, up to the last one, in the caller's transaction."""
    db.execute("INSERT OR IGNORE INTO ceilings VALUES (?, ?, ?, ?)", (lane, after, last, time_ms))


def drop(db: sqlite3.Connection, lane: int, before: int) -> None:
    """Drop what is about deleted predictions alone: those before a seq."""
    db.execute("DELETE FROM ceilings WHERE lane = ? AND last < ?", (lane, before))
