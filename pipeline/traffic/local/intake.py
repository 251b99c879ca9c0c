"""Intake: what lanes have written since the last pass comes into the labels, in one order for all lanes.

Feedback of the inboxes is checked against its prediction and stored as changes; where that is not written yet it is parked,
until the walk over new predictions meets it. How far each lane is processed is committed with what was taken, so any number
of processes may do this at once, and a crash loses and repeats nothing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence

from pipeline.traffic.feedback import dump_entry
from pipeline.traffic.join import closes_at
from pipeline.traffic.lanes.lanes import Lanes
from pipeline.traffic.lanes.rows import Row
from pipeline.traffic.local.ceilings import Ceilings
from pipeline.traffic.local.file import LabelsFile
from pipeline.traffic.local.inbox import Pending, in_turn
from pipeline.traffic.local.known import Key, Said, Written, candidates_of, is_parked, parked_for, states_of
from pipeline.traffic.local.stats import count, total
from pipeline.traffic.log import INVALID

__all__ = ["Intake"]

_CHUNK_ENTRIES = 256
"""Entries of one transaction, so that others who write never wait long."""


class Intake:
    """Takes in what the lanes wrote.

    Args:
        window_ms: attribution window.
    """

    def __init__(self, file: LabelsFile, lanes: Lanes, window_ms: int) -> None:
        self._file = file
        self._lanes = lanes
        self._window = window_ms

    def run(self) -> None:
        """Take in all that is written by now."""
        numbers = self._lanes.numbers()
        # In this order: a prediction that comes after its feedback was parked lies behind `written`, and is met.
        written = {lane: self._lanes.last_seq(lane) for lane in numbers}
        said = {lane: self._lanes.last_inbox_seq(lane) for lane in numbers}
        while self._behind("inbox", said):
            with self._file.write(durable=True) as db:
                self._take(db, numbers)
        while behind := self._behind("seen", written):
            with self._file.write(durable=True) as db:
                self._walk(db, behind, written)

    def _behind(self, place: str, ends: Mapping[int, int]) -> list[int]:
        """Lanes that are not processed up to their ends."""
        with self._file.read() as db:
            done = dict(db.execute(f"SELECT lane, {place} FROM lanes"))
        return [lane for lane, end in ends.items() if done.get(lane, 0) < end]

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
        found = self._lanes.find_all(list(dict.fromkeys(entry.prediction_id for entry in entries)))
        said: dict[str, list[Said]] = {prediction_id: [] for prediction_id in found}
        taken = 0
        for pending in entries:
            entry = pending.entry
            if entry is None:
                db.execute("DELETE FROM parked WHERE prediction_id = ?", (pending.prediction_id,))
                continue
            taken += 1
            if pending.prediction_id in found:
                said[pending.prediction_id].append((pending.received_ms, entry))
            else:
                row = (pending.prediction_id, pending.received_ms, dump_entry(entry))
                db.execute("INSERT INTO parked (prediction_id, received_ms, entry) VALUES (?, ?, ?)", row)
        self._apply(db, found, said)
        count(db, feedback=taken)

    def _walk(self, db: sqlite3.Connection, behind: list[int], written: Mapping[int, int]) -> None:
        """Look at new predictions for what is parked for them."""
        db.executemany("INSERT OR IGNORE INTO lanes (lane) VALUES (?)", [(lane,) for lane in behind])
        seen = dict(db.execute("SELECT lane, seen FROM lanes"))
        for lane in behind:
            place = written[lane]
            if total(db, "parked"):
                rows = [row for row in self._lanes.rows(lane, seen[lane], _CHUNK_ENTRIES) if row.seq <= place]
                place = rows[-1].seq if len(rows) == _CHUNK_ENTRIES else place
                waiting = [row for row in rows if is_parked(db, row.prediction_id)]
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
            earlier = parked_for(db, prediction_id) if parked else []
            before = len(changes)
            for received_ms, entry in [*earlier, *said.get(prediction_id, ())]:
                change, reply = known.apply(entry, received_ms)
                refused += (reply.exposed + reply.outcomes).count(INVALID)
                if change is not None:
                    changes.append((*key, received_ms, change.pack()))
            if earlier:
                db.execute("DELETE FROM parked WHERE prediction_id = ?", (prediction_id,))
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
