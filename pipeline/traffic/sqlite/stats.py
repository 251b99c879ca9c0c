"""Figures of the SQLite traffic log: totals counted with each write, and the state of the join."""

from __future__ import annotations

import sqlite3

from pipeline.traffic.log import TrafficStats

__all__ = ["count", "read_stats"]


def count(db: sqlite3.Connection, **added: int) -> None:
    """Add to totals, in the caller's transaction."""
    db.executemany(
        "INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
        [(name, value) for name, value in added.items() if value],
    )


def read_stats(db: sqlite3.Connection, now_ms: int) -> TrafficStats:
    """Figures in the caller's read transaction; the open predictions are counted, the rest is looked up."""
    totals = dict(db.execute("SELECT name, value FROM counters").fetchall())
    watermark, watermark_ms = db.execute("SELECT seq, time_ms FROM watermark").fetchone()
    first_open = db.execute(
        "SELECT time_ms FROM predictions WHERE seq > ? ORDER BY seq LIMIT 1", (watermark,)
    ).fetchone()

    def number(query: str, *arguments: int) -> int:
        return int(db.execute(query, arguments).fetchone()[0])

    return TrafficStats(
        predictions=totals.get("predictions", 0),
        feedback=totals.get("feedback", 0),
        labelled_entries=totals.get("labelled_entries", 0),
        labelled_rows=totals.get("labelled_rows", 0),
        parked_refused=totals.get("parked_refused", 0),
        parked_expired=totals.get("parked_expired", 0),
        open_predictions=number("SELECT count(*) FROM predictions WHERE seq > ?", watermark),
        parked=number("SELECT count(*) FROM parked"),
        late=number("SELECT count(*) FROM late"),
        watermark_ms=watermark_ms,
        oldest_open_ms=max(0, now_ms - first_open[0]) if first_open else 0,
        last_seq=number("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'labelled'"),
        bytes=number("PRAGMA page_count") * number("PRAGMA page_size"),
    )
