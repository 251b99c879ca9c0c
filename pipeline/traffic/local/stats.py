"""Figures of the traffic log of one machine: totals and places, all looked up."""

from __future__ import annotations

import sqlite3

from pipeline.traffic.lanes.lanes import Lanes
from pipeline.traffic.local.ceilings import Ceilings
from pipeline.traffic.log import TrafficStats

__all__ = ["read_stats", "used_bytes"]


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

    def total(name: str) -> int:
        return int(totals.get(name, 0))

    return TrafficStats(
        predictions=total("predictions") + written,
        feedback=total("feedback"),
        labelled_entries=total("labelled_entries"),
        labelled_rows=total("labelled_rows"),
        parked_refused=total("parked_refused"),
        parked_expired=total("parked_expired"),
        open_predictions=max(0, written - total("closed")),
        parked=total("parked"),
        late=total("late"),
        watermark_ms=total("watermark_ms"),
        oldest_open_ms=max(0, now_ms - oldest_ms),
        last_seq=int(last[0]) if last else 0,
        bytes=lanes.bytes() + used_bytes(db),
        damaged=total("damaged"),
    )


def used_bytes(db: sqlite3.Connection) -> int:
    """Bytes of pages in use; the file itself does not shrink, its free pages are reused."""
    pages, free, size = (
        int(db.execute(f"PRAGMA {what}").fetchone()[0]) for what in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * size
