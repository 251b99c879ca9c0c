"""Intake: what lanes have written since the last pass comes into the labels, in one order for all lanes.

Feedback of the inboxes is checked against its prediction and stored as changes; where that is not written yet it is parked,
until the walk over new predictions meets it. How far each lane is processed is committed with what was taken, so any number
of processes may do this at once, and a crash loses and repeats nothing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pipeline.traffic.feedback import dump_entry
from pipeline.traffic.join import closes_at
from pipeline.traffic.lanes.lanes import Lanes
from pipeline.traffic.lanes.rows import Row
from pipeline.traffic.local.ceilings import Ceilings
from pipeline.traffic.local.file import LabelsFile
from pipeline.traffic.local.inbox import Pending, in_turn
from pipeline.traffic.local.known import Key, Said, Written, candidates_of, is_parked, names_of, parked_for, states_of
from pipeline.traffic.local.stats import count, total
from pipeline.traffic.log import INVALID
from pipeline.traffic.requests import is_waiting, waiting_key

__all__ = ["Ends", "Intake"]

_CHUNK_ENTRIES = 128
"""Entries of one transaction, so that others who write never wait long."""


class Ends(NamedTuple):
    """How far lanes have written: their numbers, and the last seq of a prediction and of an inbox by lane."""

    numbers: list[int]
    written: Mapping[int, int]
    said: Mapping[int, int]


class Intake:
    """Takes in what the lanes wrote.

    Args:
        window_ms: attribution window.
        late_limit_ms: age up to which a prediction can be labelled.
    """

    def __init__(self, file: LabelsFile, lanes: Lanes, window_ms: int, late_limit_ms: int) -> None:
        self._file = file
        self._lanes = lanes
        self._window = window_ms
        self._late_limit = late_limit_ms

    def run(self) -> None:
        """Take in all that is written by now."""
        ends, done = self.ends(), False
        while not done:
            with self._file.write(durable=True) as db:
                done = self.take(db, ends)

    def ends(self) -> Ends:
        """How far the lanes have written by now."""
        numbers = self._lanes.numbers()
        # In this order: a prediction that comes after its feedback was parked lies behind `written`, and is met.
        written = {lane: self._lanes.last_seq(lane) for lane in numbers}
        said = {lane: self._lanes.last_inbox_seq(lane) for lane in numbers}
        return Ends(numbers, written, said)

    def take(self, db: sqlite3.Connection, ends: Ends) -> bool:
        """Take in some of what was written up to the ends, in the caller's transaction; whether that was the last of it."""
        if _behind(db, "inbox", ends.said):
            self._take(db, ends.numbers)
            if _behind(db, "inbox", ends.said):
                return False
        if behind := _behind(db, "seen", ends.written):
            self._walk(db, behind, ends.written)
        return not _behind(db, "seen", ends.written)

    def _take(self, db: sqlite3.Connection, numbers: list[int]) -> None:
        """Take in some entries of each inbox."""
        db.executemany("INSERT OR IGNORE INTO lanes (lane) VALUES (?)", [(lane,) for lane in numbers])
        taken = dict(db.execute("SELECT lane, inbox FROM lanes"))
        room = max(1, _CHUNK_ENTRIES // max(1, len(numbers)))
        inboxes = {
            lane: [Pending(lane, *row) for row in self._lanes.inbox(lane, taken[lane], room)] for lane in numbers
        }
        entries = list(in_turn(inboxes, taken))
        self._enter(db, entries)
        taken.update((entry.lane, entry.seq) for entry in entries)
        if not entries:
            self._pass_over_gaps(inboxes, taken)
        db.executemany("UPDATE lanes SET inbox = ? WHERE lane = ?", [(seq, lane) for lane, seq in taken.items()])

    def _pass_over_gaps(self, inboxes: Mapping[int, list[Pending]], taken: dict[int, int]) -> None:
        """Nothing could be taken: entries wait for others that were deleted with their prediction, or inboxes end with
        such. What an entry names was there before it, so what is not there now will not come."""
        for lane, entries in inboxes.items():
            for other, seq in [
                *(entries[0].after.items() if entries else ()),
                (lane, self._lanes.last_inbox_seq(lane)),
            ]:
                left = self._lanes.inbox(other, taken.get(other, 0), 1)
                if other in taken and (not left or left[0].seq > seq):
                    taken[other] = max(taken[other], seq)

    def _enter(self, db: sqlite3.Connection, entries: Sequence[Pending]) -> None:
        """Store entries where they belong."""
        names = list(dict.fromkeys(entry.prediction_id for entry in entries))
        found = self._lanes.find_all([name for name in names if not is_waiting(name)])
        requested = self._lanes.requested([waiting_key(name) for name in names if is_waiting(name)])
        said: dict[str, list[Said]] = {prediction_id: [] for prediction_id in found}
        taken = refused = 0
        for pending in entries:
            entry = pending.entry
            if entry is None:
                db.execute("DELETE FROM parked WHERE prediction_id = ?", (pending.prediction_id,))
                continue
            taken += 1
            if is_waiting(pending.prediction_id) and (
                rows := self._young(requested.get(waiting_key(pending.prediction_id), ()), pending.received_ms)
            ):
                # Written since the entry came. Where there are two by now, nobody can say which is meant.
                if len(rows) == 1:
                    prediction_id = rows[0][1].prediction_id
                    found |= self._lanes.find_all([prediction_id])
                    said.setdefault(prediction_id, []).append((pending.received_ms, entry))
                else:
                    refused += len(entry.exposed) + len(entry.outcomes)
            elif pending.prediction_id in found:
                said[pending.prediction_id].append((pending.received_ms, entry))
            else:
                row = (pending.prediction_id, pending.received_ms, dump_entry(entry))
                db.execute("INSERT INTO parked (prediction_id, received_ms, entry) VALUES (?, ?, ?)", row)
        self._apply(db, found, said)
        count(db, feedback=taken, parked_refused=refused)

    def _young(self, found: Sequence[tuple[int, Row]], now_ms: int) -> list[tuple[int, Row]]:
        """Predictions that could still be labelled then."""
        return [(lane, row) for lane, row in found if now_ms - row.time_ms <= self._late_limit]

    def _walk(self, db: sqlite3.Connection, behind: list[int], written: Mapping[int, int]) -> None:
        """Look at new predictions for what is parked for them."""
        db.executemany("INSERT OR IGNORE INTO lanes (lane) VALUES (?)", [(lane,) for lane in behind])
        seen = dict(db.execute("SELECT lane, seen FROM lanes"))
        for lane in behind:
            place = written[lane]
            if total(db, "parked"):
                rows = [row for row in self._lanes.rows(lane, seen[lane], _CHUNK_ENTRIES) if row.seq <= place]
                place = rows[-1].seq if len(rows) == _CHUNK_ENTRIES else place
                waiting = [row for row in rows if is_parked(db, names_of(row))]
                self._apply(db, {row.prediction_id: (lane, row) for row in waiting}, {})
            db.execute("UPDATE lanes SET seen = max(seen, ?) WHERE lane = ?", (place, lane))

    def _apply(
        self, db: sqlite3.Connection, found: Mapping[str, tuple[int, Row]], said: Mapping[str, list[Said]]
    ) -> None:
        """Check entries against their predictions, after those that were parked for them, and store what is new, as of
        the times when they came."""
        states = states_of(db, {(lane, row.seq): row.n for lane, row in found.values()})
        closed = dict(db.execute("SELECT lane, closed FROM lanes"))
        ceilings, parked = Ceilings(db), total(db, "parked")
        changes: list[tuple[object, ...]] = []
        late: list[Key] = []
        open_: list[tuple[int, int, int]] = []
        refused = 0
        for prediction_id, (lane, row) in found.items():
            key, made_ms = (lane, row.seq), ceilings.time_of(lane, row)
            known = Written(made_ms, states[key], candidates_of(self._lanes, lane, row))
            earlier = parked_for(db, names_of(row)) if parked else []
            before = len(changes)
            for received_ms, entry in [*earlier, *said.get(prediction_id, ())]:
                change, reply = known.apply(entry, received_ms)
                refused += (reply.exposed + reply.outcomes).count(INVALID)
                if change is not None:
                    changes.append((*key, received_ms, change.pack()))
            if earlier:
                db.executemany("DELETE FROM parked WHERE prediction_id = ?", [(name,) for name in names_of(row)])
            if len(changes) > before and row.seq <= closed.get(lane, 0):
                late.append(key)
            elif len(changes) > before:
                open_.append((*key, closes_at(known.state, made_ms, self._window)))
        db.executemany("INSERT INTO feedback (lane, prediction, received_ms, change) VALUES (?, ?, ?, ?)", changes)
        db.executemany(
            "INSERT INTO late VALUES (?, ?, 0) ON CONFLICT (lane, prediction) DO UPDATE SET due_ms = 0", late
        )
        db.executemany("INSERT OR REPLACE INTO open VALUES (?, ?, ?)", open_)
        count(db, parked_refused=refused)


def _behind(db: sqlite3.Connection, place: str, ends: Mapping[int, int]) -> list[int]:
    """Lanes that are not processed up to their ends."""
    done = dict(db.execute(f"SELECT lane, {place} FROM lanes"))
    return [lane for lane, end in ends.items() if done.get(lane, 0) < end]
