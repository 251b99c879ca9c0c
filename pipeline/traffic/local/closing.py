"""Closing of predictions: mature rows go into the labelled log, and later changes of them as revisions.

The predictions of all lanes close in the order of their times, those of one lane in the order in which it wrote them; one
that is open holds back those after it. The rules are in `pipeline.traffic.join`.
"""

from __future__ import annotations

import heapq
import sqlite3
from collections import deque
from typing import NamedTuple

from pipeline.traffic.join import set_right
from pipeline.traffic.lanes.lanes import Lanes
from pipeline.traffic.lanes.rows import Row
from pipeline.traffic.local.ceilings import Ceilings, lower
from pipeline.traffic.local.forgotten import any_forgotten, is_forgotten
from pipeline.traffic.local.known import Key
from pipeline.traffic.local.labelling import Due, write_rows
from pipeline.traffic.local.stats import count, set_count, total

__all__ = ["Closing", "Done"]

_AHEAD_PREDICTIONS = 256
"""Predictions of a lane that are read at once."""


class Done(NamedTuple):
    """Predictions looked at, and entries of the labelled log written."""

    visits: int
    entries: int


class Closing:
    """One pass over predictions that are due; what it has read of the lanes it keeps from one transaction to the next.

    Args:
        now_ms: Unix milliseconds by the log's clock.
        window_ms: attribution window.

    Attributes:
        refused: predictions passed over since their user was forgotten while they were on their way, by lane.
    """

    def __init__(self, lanes: Lanes, now_ms: int, window_ms: int) -> None:
        self._lanes = lanes
        self._now = now_ms
        self._window = window_ms
        self._ahead: dict[int, deque[Row]] = {}
        self._scrubs = 0
        self._doomed: set[Key] = set()
        self._open: dict[int, tuple[dict[int, int], int]] = {}
        """Closing times of predictions with feedback, by lane, and up to which prediction they are read."""
        self.refused: list[tuple[int, Row]] = []

    def revise(self, db: sqlite3.Connection, room: int) -> Done:
        """Revise closed predictions that are due."""
        ceilings = Ceilings(db)
        due, gone = [], []
        for lane, prediction in db.execute(
            "SELECT lane, prediction FROM late WHERE due_ms <= ? ORDER BY due_ms, lane, prediction LIMIT ?",
            (self._now, room),
        ).fetchall():
            found = self._lanes.rows(lane, prediction - 1, 1)
            if found and found[0].seq == prediction:
                due.append(Due(lane, found[0], ceilings.time_of(lane, found[0])))
            else:
                gone.append((lane, prediction))
        db.executemany("DELETE FROM late WHERE lane = ? AND prediction = ?", gone)
        return Done(len(due) + len(gone), write_rows(db, due, self._now, self._window, closing=False))

    def close_due(self, db: sqlite3.Connection, visits: int, entries: int) -> Done:
        """Close predictions in order as long as they are due: at most so many, with so many entries."""
        closed = dict.fromkeys(self._lanes.numbers(), 0)
        closed |= dict(db.execute("SELECT lane, closed FROM lanes"))
        before = dict(closed)
        self._pass_over_deleted(db)
        for lane, seq in closed.items():
            self._fill(lane, seq)
        due, seen = self._due(db, self._set_right(db, closed), closed, visits, entries)
        db.executemany("DELETE FROM open WHERE lane = ? AND prediction = ?", [p.key for p in due if p.said])
        written = write_rows(db, due, self._now, self._window, closing=True)
        db.executemany(
            "INSERT INTO lanes (lane, closed) VALUES (?, ?) ON CONFLICT (lane) DO UPDATE SET closed = excluded.closed",
            [(lane, seq) for lane, seq in closed.items() if seq != before[lane]],
        )
        count(db, closed=seen)
        if due:
            set_count(db, "watermark_ms", due[-1].time_ms)
        for endpoint, time_ms in {one.row.endpoint: one.time_ms for one in due}.items():
            set_count(db, f"watermark_ms/{endpoint}", time_ms)
        return Done(seen, written)

    def _due(
        self, db: sqlite3.Connection, ceilings: Ceilings, closed: dict[int, int], visits: int, entries: int
    ) -> tuple[list[Due], int]:
        """The next predictions of all lanes that are due, in order, and how many were passed, with forgotten ones; `closed` goes
        on with them."""
        self._open.clear()
        forgets = any_forgotten(db)
        heads = [(ceilings.time_of(lane, rows[0]), lane) for lane, rows in self._ahead.items() if rows]
        heapq.heapify(heads)
        due: list[Due] = []
        seen = 0
        while heads and seen < visits and len(due) < entries:
            time_ms, lane = heads[0]
            row = self._ahead[lane][0]
            if forgets and is_forgotten(db, row.routing_hash, row.time_ms):
                self.refused.append((lane, row))
            elif self._closes_ms(db, lane, row, time_ms) <= self._now:
                due.append(Due(lane, row, time_ms, row.seq in self._open[lane][0]))
            else:
                break
            self._ahead[lane].popleft()
            closed[lane] = row.seq
            seen += 1
            self._fill(lane, row.seq)
            if self._ahead[lane]:
                heapq.heapreplace(heads, (ceilings.time_of(lane, self._ahead[lane][0]), lane))
            else:
                heapq.heappop(heads)
        return due, seen

    def _fill(self, lane: int, after: int) -> None:
        """Read on in a lane where nothing that was read is left; what another process has closed since is dropped."""
        rows = self._ahead.setdefault(lane, deque())
        while rows and rows[0].seq <= after:
            rows.popleft()
        while not rows and (read := self._lanes.rows(lane, after, _AHEAD_PREDICTIONS)):
            rows.extend(row for row in read if (lane, row.seq) not in self._doomed)
            after = read[-1].seq

    def _pass_over_deleted(self, db: sqlite3.Connection) -> None:
        """Read again where predictions were deleted since; those whose deletion is under way are as good as gone."""
        if (scrubs := total(db, "scrubs")) != self._scrubs:
            self._scrubs = scrubs
            self._ahead.clear()
            self._doomed = set(db.execute("SELECT lane, prediction FROM doomed"))

    def _set_right(self, db: sqlite3.Connection, closed: dict[int, int]) -> Ceilings:
        """Set the times of all open predictions right where one of those read is of the future."""
        ceilings = Ceilings(db)
        ahead = ((lane, row) for lane, rows in self._ahead.items() for row in rows if row.time_ms > self._now)
        if not any(ceilings.time_of(lane, row) > self._now for lane, row in ahead):
            return ceilings
        for lane, seq in closed.items():
            lower(db, lane, seq, self._lanes.last_seq(lane), self._now)
        return Ceilings(db)

    def _closes_ms(self, db: sqlite3.Connection, lane: int, row: Row, time_ms: int) -> int:
        """When an open prediction closes. Without feedback it has no row that says so."""
        known, last = self._open.get(lane, ({}, 0))
        if row.seq > last:
            last = self._ahead[lane][-1].seq
            query = "SELECT prediction, closes_ms FROM open WHERE lane = ? AND prediction BETWEEN ? AND ?"
            known |= dict(db.execute(query, (lane, row.seq, last)))
            self._open[lane] = known, last
        closes_ms = known.get(row.seq, time_ms + self._window)
        return set_right(time_ms, closes_ms, self._now, self._window)[1]
