"""Labelling: new rows of predictions that close or are due again, written to the labelled log.

A few predictions at a time, since each statement takes its share of a pass. The rules are in `pipeline.traffic.join`.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pipeline.traffic.join import NO_ROWS, MatureRows, mature_rows, written_labels
from pipeline.traffic.lanes.rows import Row
from pipeline.traffic.local.known import Key, by_prediction, states_of
from pipeline.traffic.local.stats import count

__all__ = ["Due", "write_rows"]


class Due(NamedTuple):
    """A prediction to write rows of. `time_ms`: when it was made, by the log's clock. `said`: there is feedback on it."""

    lane: int
    row: Row
    time_ms: int
    said: bool = True

    @property
    def key(self) -> Key:
        return self.lane, self.row.seq


def write_rows(db: sqlite3.Connection, due: Sequence[Due], now_ms: int, window_ms: int, *, closing: bool) -> int:
    """Write new rows of predictions, if any, and when each is due again; the number of entries written.

    Args:
        closing: whether they close now; then nothing of them was written before.
    """
    keys = {p.key: p.row.n for p in due if p.said}
    states = states_of(db, keys)
    earlier = {} if closing else by_prediction(db, "revision, mature", "labelled", keys)
    entries: list[tuple[object, ...]] = []
    again: list[tuple[int, int, int]] = []
    done: list[Key] = []
    rows_written: Counter[str] = Counter()
    for p in due:
        place = (p.row.file, p.row.offset, p.row.length)
        head = (*p.key, p.row.prediction_id, p.row.endpoint, *place)
        if not p.said:
            entries.append((*head, 0, p.time_ms, now_ms, b""))
            continue
        before = earlier.get(p.key, [])
        written = written_labels(p.row.n, (MatureRows.unpack(blob) for _, blob in before))
        rows, due_ms = mature_rows(states[p.key], written, now_ms, window_ms)
        if due_ms is not None:
            again.append((*p.key, due_ms))
        elif not closing:
            done.append(p.key)
        if closing and rows is None and due_ms is None:
            rows = NO_ROWS
        if rows is not None:
            revision = 0 if closing else max((r for r, _ in before), default=0) + 1
            entries.append((*head, revision, p.time_ms, now_ms, rows.pack()))
            rows_written[p.row.endpoint] += len(rows.indices)
    _store(db, entries, again, done)
    count(db, labelled_entries=len(entries), labelled_rows=rows_written.total())
    count(db, **{f"labelled_rows/{endpoint}": rows for endpoint, rows in rows_written.items()})
    return len(entries)


def _store(
    db: sqlite3.Connection,
    entries: Iterable[tuple[object, ...]],
    again: Iterable[tuple[int, int, int]],
    done: Iterable[Key],
) -> None:
    db.executemany(
        "INSERT INTO labelled (lane, prediction, prediction_id, endpoint, file, offset, length, revision, time_ms,"
        " written_ms, mature) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        entries,
    )
    db.executemany(
        "INSERT INTO late VALUES (?, ?, ?) ON CONFLICT (lane, prediction) DO UPDATE SET due_ms = excluded.due_ms", again
    )
    db.executemany("DELETE FROM late WHERE lane = ? AND prediction = ?", done)
