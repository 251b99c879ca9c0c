"""Figures of the traffic log of one machine: totals that each write keeps in its own transaction, and places to look up."""

from __future__ import annotations

import sqlite3

from pipeline.traffic.lanes.lanes import Lanes
from pipeline.traffic.local.ceilings import Ceilings
from pipeline.traffic.log import EndpointStats, TrafficStats

__all__ = ["count", "read_stats", "set_count", "total", "used_bytes"]


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


def read_stats(db: sqlite3.Connection, lanes: Lanes, now_ms: int) -> TrafficStats:
    """Figures in the caller's read transaction."""
    totals = dict(db.execute("SELECT name, value FROM counters"))
    closed = dict(db.execute("SELECT lane, closed FROM lanes"))
    numbers = lanes.numbers()
    written = sum(lanes.last_seq(lane) for lane in numbers)
    ceilings = Ceilings(db)
    heads = [(lane, row) for lane in numbers for row in lanes.rows(lane, closed.get(lane, 0), 1)]
    oldest_ms = min((ceilings.time_of(lane, row) for lane, row in heads), default=now_ms)
    last = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'labelled'").fetchone()

    def kept(name: str) -> int:
        return int(totals.get(name, 0))

    return TrafficStats(
        predictions=kept("predictions") + written,
        feedback=kept("feedback"),
        labelled_entries=kept("labelled_entries"),
        labelled_rows=kept("labelled_rows"),
        parked_refused=kept("parked_refused"),
        parked_expired=kept("parked_expired"),
        open_predictions=max(0, written - kept("closed")),
        parked=kept("parked"),
        late=kept("late"),
        watermark_ms=kept("watermark_ms"),
        oldest_open_ms=max(0, now_ms - oldest_ms),
        last_seq=int(last[0]) if last else 0,
        bytes=lanes.bytes() + used_bytes(db),
        damaged=kept("damaged"),
        endpoints=EndpointStats.of({str(name): int(value) for name, value in totals.items()}),
    )


def used_bytes(db: sqlite3.Connection) -> int:
    """Bytes of pages in use; the file itself does not shrink, its free pages are reused."""
    pages, free, size = (
        int(db.execute(f"PRAGMA {what}").fetchone()[0]) for what in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * size
