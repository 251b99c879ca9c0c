"""What is known of one prediction's feedback: applied by the join, parked for it, and waiting in the lanes' inboxes.

The reply to a client is computed from all three by the lane that is asked, so it needs no other process; the join applies
entries by the same code (`intake`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeline.errors import Damaged
from pipeline.traffic.feedback import Change, LabelState, accept, accept_parked, accepted_part, load_entry
from pipeline.traffic.join import arrived
from pipeline.traffic.lanes.lanes import Lanes
from pipeline.traffic.lanes.rows import Row
from pipeline.traffic.local.inbox import Pending, in_turn
from pipeline.traffic.log import FeedbackEntry, FeedbackReply
from pipeline.traffic.record import lazy_finder
from pipeline.traffic.requests import waiting_name

__all__ = [
    "Key",
    "Parked",
    "Said",
    "Written",
    "by_prediction",
    "candidates_of",
    "is_parked",
    "known_of",
    "names_of",
    "parked_for",
    "states_of",
]

Key = tuple[int, int]
"""A prediction: its lane, and its seq there."""
Said = tuple[int, FeedbackEntry]
"""An entry and when it came, Unix milliseconds."""


class Written:
    """Feedback on a prediction that a lane has written.

    Args:
        state: of its labels by now; `take` goes on from there.
        find: row of a hashed candidate id, or None.
        endpoint: of the prediction.
    """

    def __init__(
        self, prediction_ms: int, state: LabelState, find: Callable[[int], int | None], endpoint: str = ""
    ) -> None:
        self._made_ms = prediction_ms
        self._find = find
        self._endpoint = endpoint
        self.state = state

    def apply(self, entry: FeedbackEntry, received_ms: int) -> tuple[Change | None, FeedbackReply]:
        """Take an entry: the change, None if nothing is new, and the reply."""
        return accept(self.state, entry, self._made_ms, received_ms, self._find)

    def take(
        self, entry: FeedbackEntry, received_ms: int, window_ms: int
    ) -> tuple[FeedbackEntry | None, FeedbackReply]:
        """Take an entry: the part of it to keep, None if nothing is new, and the reply."""
        delay_ms, late = arrived(self.state, self._made_ms, received_ms, window_ms)
        change, reply = self.apply(entry, received_ms)
        reply = replace(reply, endpoint=self._endpoint, delay_ms=delay_ms, late=late)
        return None if change is None else accepted_part(entry, change, reply), reply


class Parked:
    """Feedback on a prediction that is not written yet; checked as far as that goes."""

    def __init__(self, earlier: Iterable[FeedbackEntry]) -> None:
        self._earlier = list(earlier)

    def take(
        self, entry: FeedbackEntry, received_ms: int, window_ms: int
    ) -> tuple[FeedbackEntry | None, FeedbackReply]:
        """Take an entry: the part of it to keep, None if nothing is new, and the reply."""
        keep, reply = accept_parked(self._earlier, entry)
        if keep is not None:
            self._earlier.append(keep)
        return keep, reply


def known_of(
    db: sqlite3.Connection, lanes: Lanes, prediction_id: str, found: tuple[int, Row] | None, pending: Sequence[Pending]
) -> Written | Parked:
    """What is known of a prediction.

    Args:
        db: a transaction of the labels.
        found: lane and row, None if it is not written.
        pending: entries on it that may wait in the inboxes, read before the transaction began: what the join has taken in
            since then is left out here.
    """
    taken = dict(db.execute("SELECT lane, inbox FROM lanes"))
    inboxes: dict[int, list[Pending]] = {}
    for other in pending:
        if other.seq > taken.get(other.lane, 0):
            inboxes.setdefault(other.lane, []).append(other)
    said = parked_for(db, [prediction_id] if found is None else names_of(found[1]))
    for other in in_turn(inboxes, taken):
        if (entry := other.entry) is not None:
            said.append((other.received_ms, entry))
    if found is None:
        return Parked(entry for _, entry in said)
    lane, row = found
    state = states_of(db, {(lane, row.seq): row.n})[lane, row.seq]
    known = Written(row.time_ms, state, candidates_of(lanes, lane, row), row.endpoint)
    for received_ms, entry in said:
        known.apply(entry, received_ms)
    return known


def names_of(row: Row) -> list[str]:
    """Names under which feedback may wait for a prediction: its id, and that of its request key if it has one."""
    return [row.prediction_id, waiting_name(row.request_key)] if row.request_key else [row.prediction_id]


def parked_for(db: sqlite3.Connection, names: Sequence[str]) -> list[Said]:
    """Entries parked for a prediction under any of its names, with the times when they came."""
    marks = ", ".join("?" * len(names))
    rows = db.execute(f"SELECT received_ms, entry FROM parked WHERE prediction_id IN ({marks}) ORDER BY seq", names)
    return [(received_ms, load_entry(names[0], text)) for received_ms, text in rows]


def is_parked(db: sqlite3.Connection, names: Sequence[str]) -> bool:
    """Whether anything is parked for a prediction under any of its names."""
    query = "SELECT 1 FROM parked WHERE prediction_id = ? LIMIT 1"
    return any(db.execute(query, (name,)).fetchone() is not None for name in names)


def states_of(db: sqlite3.Connection, rows: Mapping[Key, int]) -> dict[Key, LabelState]:
    """Labels of predictions as the join has applied them. `rows`: how many each has."""
    changes = by_prediction(db, "change", "feedback", rows)
    return {
        key: LabelState.fold(n, (Change.unpack(blob) for (blob,) in changes.get(key, ()))) for key, n in rows.items()
    }


def by_prediction(db: sqlite3.Connection, columns: str, table: str, keys: Iterable[Key]) -> dict[Key, list[Any]]:
    """Rows that a table has of a few predictions, in order of their seq."""
    lanes: dict[int, list[int]] = {}
    for lane, prediction in keys:
        lanes.setdefault(lane, []).append(prediction)
    found: dict[Key, list[Any]] = {}
    for lane, predictions in lanes.items():
        marks = ", ".join("?" * len(predictions))
        query = f"SELECT prediction, {columns} FROM {table} WHERE lane = ? AND prediction IN ({marks}) ORDER BY seq"
        for prediction, *values in db.execute(query, (lane, *predictions)):
            found.setdefault((lane, prediction), []).append(values)
    return found


def candidates_of(lanes: Lanes, lane: int, row: Row) -> Callable[[int], int | None]:
    """Function from a hashed candidate id to its row. A record that is damaged has no candidates that are known by id."""

    def load() -> bytes | None:
        try:
            return lanes.read(row.place(lane))
        except Damaged:
            return None

    return lazy_finder(load)
