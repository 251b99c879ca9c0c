"""Traffic log of one machine: predictions in files of each lane, labels in one database that the join writes.

Lanes never wait for each other: each appends records and feedback to a folder of its own (`pipeline.traffic.lanes`), and
replies to feedback from what all lanes and the labels hold (`known`). The join takes in what the lanes wrote (`intake`) and
closes predictions (`closing`); `reader` and `deletion` are what their names say. The rules of feedback are in
`pipeline.traffic.feedback`, those of labelled rows in `pipeline.traffic.join`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from pipeline.clock import SystemClock
from pipeline.errors import NotReady
from pipeline.forks import ProcessLock
from pipeline.traffic.lanes.lane import Lane
from pipeline.traffic.lanes.lanes import Lanes
from pipeline.traffic.lanes.rows import ScoresEntry
from pipeline.traffic.local.closing import Closing
from pipeline.traffic.local.copying import trimming
from pipeline.traffic.local.deletion import Deletion
from pipeline.traffic.local.file import LabelsFile
from pipeline.traffic.local.forgotten import forgotten_among
from pipeline.traffic.local.inbox import Pending, pack_entry
from pipeline.traffic.local.intake import Intake
from pipeline.traffic.local.known import known_of, names_of
from pipeline.traffic.local.reader import Reader
from pipeline.traffic.local.readers import Readers
from pipeline.traffic.local.stats import read_stats
from pipeline.traffic.local.upgrade import upgrade
from pipeline.traffic.log import (
    FeedbackEntry,
    FeedbackReply,
    Labelled,
    Requested,
    Retained,
    Scores,
    TrafficStats,
    Unscored,
)
from pipeline.traffic.prediction import PredictionIds
from pipeline.traffic.record import made_by, read_head
from pipeline.traffic.requests import is_waiting, keys_of, name_of, waiting_name

__all__ = ["LocalTrafficLog"]

_CHUNK_PREDICTIONS = 512
"""Predictions that one transaction of the join closes: a commit costs a turn of the disk, and nobody but a deletion waits."""
_TRIM_ENTRIES = 256
"""Entries of its inbox that a lane leaves behind the join before it removes them."""


class LocalTrafficLog:
    """`pipeline.traffic.log.TrafficLog` in a folder; any number of processes on one machine may have it open.

    A process that writes predictions, scores or feedback holds a lane from then on.

    Args:
        path: the folder, created if absent. A log of version 0.1 is the file of that name with the ending `.db`; it is
            brought over first (`upgrade`).
        ids: verifies prediction ids.
        attribution_window_ms: how long after its exposure a row waits for a label before it counts as 0.
        late_limit_ms: feedback on predictions older than this is answered EXPIRED.
        lane: number of the lane to write; another one if a process holds it. A prediction is found soonest where its id
            names the lane that wrote it.
        file_bytes: size at which a lane begins its next file of records.

    Raises:
        InvalidInput: the folder has something else, or is of a newer Baton.
        NotReady: it cannot be opened now; all methods raise it if the store is locked, full or failing.
    """

    def __init__(
        self,
        path: Path,
        ids: PredictionIds,
        attribution_window_ms: int = 30 * 60_000,
        late_limit_ms: int = 24 * 3_600_000,
        *,
        lane: int = 0,
        file_bytes: int = 64 << 20,
    ) -> None:
        self._ids = ids
        self._window = attribution_window_ms
        self._late_limit = late_limit_ms
        self._root = path / "lanes"
        self._preferred = lane
        self._file_bytes = file_bytes
        self._owner = ProcessLock(f"traffic log {path}")
        self._own: Lane | None = None
        self._trimmed = 0
        self._closed = False
        self._file = LabelsFile(path / "labels.db")
        self._readers = Readers(path / "readers")
        try:
            upgrade(path.with_suffix(".db"), self._file, self._root, self._readers)
        except BaseException:
            self._file.close()
            raise
        self._lanes = Lanes(self._root)
        self._reader = Reader(self._file, self._lanes)
        self._intake = Intake(self._file, self._lanes, attribution_window_ms, late_limit_ms)
        self._deletion = Deletion(self._file, self._lanes, self._readers)

    @property
    def window_ms(self) -> int:
        """Attribution window."""
        return self._window

    @property
    def late_limit_ms(self) -> int:
        """Age up to which a prediction can be labelled."""
        return self._late_limit

    def now_ms(self) -> int:
        """The machine's time, as SQLite reads it."""
        return self._file.now_ms()

    def append_predictions(self, records: Sequence[bytes]) -> None:
        """Commit packed prediction records, in order; one written before is left as it is, one of the future is made now.

        Raises:
            InvalidInput: one of them is not a record; none is written.
        """
        now_ms = self.now_ms()
        read = [(read_head(blob), blob) for blob in (made_by(blob, now_ms) for blob in records)]
        with self._file.read() as db:
            forgotten = forgotten_among(db, {head.routing_hash for head, _ in read})
        refused = {h.prediction_id: h for h, _ in read if h.time_ms <= forgotten.get(h.routing_hash, -1)}
        with self._owner:
            lane = self._lane()
            lane.append([(head, blob) for head, blob in read if head.prediction_id not in refused])
            if refused:
                keys = {head.request_key for head in refused.values()} - {0}
                self._refuse(lane, sorted({*refused, *map(waiting_name, keys)}), now_ms)

    def append_scores(self, scores: Sequence[tuple[str, Scores]]) -> None:
        """Commit another arm's scores; a repetition for the same version changes nothing."""
        entries = [
            ScoresEntry(i, s.arm, s.bundle, s.version, np.ascontiguousarray(s.scores, np.float32).tobytes())
            for i, s in scores
        ]
        with self._owner:
            self._lane().put_scores(entries)

    def append_feedback(self, entries: Sequence[FeedbackEntry], now_ms: int) -> list[FeedbackReply]:
        """Commit exposures and labels; on return what is ACCEPTED is on disk.

        Two lanes that are told the same at the same instant may both answer ACCEPTED; it is applied once.
        """
        keys = keys_of(entries)
        requested = self.requested(keys) if keys else {}
        meant = [name_of(entry, requested, self._ids, now_ms, self._late_limit) for entry in entries]
        names = list(dict.fromkeys(name for name in meant if isinstance(name, str)))
        with self._owner:
            lane = self._lane()
            found = self._lanes.find_all([name for name in names if not is_waiting(name)])
            aliases = {name: names_of(found[name][1]) if name in found else [name] for name in names}
            pending = self._pending(aliases)
            with self._file.read() as db:
                known = {i: known_of(db, self._lanes, i, found.get(i), pending.get(i, ())) for i in names}
                row = db.execute("SELECT inbox FROM lanes WHERE lane = ?", (lane.number,)).fetchone()
            replies: list[FeedbackReply] = []
            kept: list[tuple[str, int, str]] = []
            for entry, name in zip(entries, meant, strict=True):
                if isinstance(name, FeedbackReply):
                    replies.append(name)
                    continue
                keep, reply = known[name].take(entry, now_ms, self._window)
                if keep is not None:
                    others = [other for other in pending.get(name, ()) if other.lane != lane.number]
                    kept.append((name, now_ms, pack_entry(keep, others)))
                replies.append(reply)
            if kept:
                lane.put_feedback(kept, max((r.seq for of, r in found.values() if of == lane.number), default=0))
            if row is not None and row[0] - self._trimmed >= _TRIM_ENTRIES:
                with trimming(self._root.parent) as allowed:
                    if allowed:
                        lane.trim(row[0])
                        self._trimmed = row[0]
        return replies

    def join(self, now_ms: int, limit: int = 1000) -> int:
        """Take in what the lanes wrote, then close predictions that are due and write revisions; the number of labelled
        entries written.

        A few predictions per transaction, each whole or not at all: a crash between two loses and repeats nothing.
        """
        if self._deletion.interrupted():
            self._deletion.finish()
        ends = self._intake.ends()
        closing = Closing(self._lanes, now_ms, self._window)
        entries = 0
        while entries < limit:
            with self._file.write(durable=True) as db:
                if not self._intake.take(db, ends):
                    continue
                left = limit - entries
                revised = closing.revise(db, min(_CHUNK_PREDICTIONS, left))
                closed = closing.close_due(db, _CHUNK_PREDICTIONS, left - revised.entries)
            entries += revised.entries + closed.entries
            if not revised.visits and not closed.visits:
                break
        for lane, row in closing.refused:
            self._deletion.scrub(lane, [row])
        return entries

    def labelled(self, after: int, limit: int = 256) -> list[Labelled]:
        """Entries of the labelled log with seq > after, in order, with all scores stored by now."""
        return self._reader.labelled(after, limit)

    def near_end(self, count: int) -> str:
        """A place after which the newest `count` predictions stand, and of each lane no more than that."""
        return self._reader.near_end(count)

    def unscored(
        self, after: str, before_ms: int, limit: int = 256, endpoints: Collection[str] | None = None
    ) -> Unscored:
        """The next predictions after a place that were made before `before_ms` and have no other arm's scores."""
        return self._reader.unscored(after, before_ms, limit, endpoints)

    def predictions(self, after: str, limit: int = 256) -> list[tuple[str, bytes]]:
        """Predictions after a place, each lane's in the order in which it wrote them: (place, record)."""
        return self._reader.predictions(after, limit)

    def latest(self, endpoint: str, limit: int) -> list[bytes]:
        """Up to `limit` records of an endpoint, the newest first, among the newest few of all."""
        return self._reader.latest(endpoint, limit)

    def records(self, prediction_ids: Sequence[str]) -> dict[str, bytes]:
        """The records of those predictions that are written, in the order asked."""
        return self._reader.records(prediction_ids)

    def requested(self, request_keys: Sequence[int]) -> dict[int, list[Requested]]:
        """The newest predictions, two at most, by the key of their caller's request id."""
        return {
            key: [Requested(row.prediction_id, row.time_ms, row.n) for _, row in rows]
            for key, rows in self._lanes.requested(request_keys).items()
        }

    def commit_position(self, reader: str, seq: int) -> None:
        """Store the position of `reader`; see `TrafficLog`."""
        self._readers.commit(reader, seq)

    def position(self, reader: str) -> int:
        """Position of a reader, 0 if it never committed one."""
        return self._readers.position(reader)

    def stats(self, now_ms: int) -> TrafficStats:
        """Totals, and the state of the join, once what the lanes wrote is taken in; on a full disk, as they were before."""
        with suppress(NotReady):  # the figures are asked for just then
            self._intake.run()
        with self._file.read() as db:
            return read_stats(db, self._lanes, now_ms)

    def retain(
        self,
        before_ms: int,
        protect_seq: int | None = None,
        max_bytes: int | None = None,
        keep: Collection[int] = (),
    ) -> Retained:
        """Delete predictions made before `before_ms`, and the oldest files while all are larger than `max_bytes`.

        Args:
            keep: routing hashes whose predictions stay, however old.
            protect_seq: labelled entries after this seq are kept with their predictions; without it, those after the
                position of the slowest reader that committed one.
        """
        self._intake.run()
        return self._deletion.retain(before_ms, protect_seq, max_bytes, frozenset(keep))

    def forget(self, routing_hash: int, now_ms: int) -> int:
        """Delete every record of one user, and refuse those made by `now_ms` that are written later; the number deleted."""
        self._intake.run()
        return self._deletion.forget(routing_hash, now_ms)

    def close(self) -> None:
        """Release the folder."""
        with self._owner:
            self._closed = True
            if self._own is not None:
                self._own.close()
            self._lanes.close()
            self._file.close()

    def _lane(self) -> Lane:
        """The lane that this process writes, held from the first time on."""
        if self._closed:
            raise NotReady(f"traffic log {self._root.parent}: it is closed")
        if self._own is None:
            self._own = Lane(self._root, self._preferred, SystemClock(), self._file_bytes)
        return self._own

    def _pending(self, aliases: Mapping[str, Sequence[str]]) -> dict[str, list[Pending]]:
        """What waits in all inboxes for these predictions, in order of lane and seq. `aliases`: all names of each."""
        one = {alias: name for name, names in aliases.items() for alias in names}
        found: dict[str, list[Pending]] = {}
        for lane, row in self._lanes.inbox_of(list(one)):
            found.setdefault(one[row.prediction_id], []).append(Pending(lane, *row))
        return {name: sorted(waiting, key=lambda p: (p.lane, p.seq)) for name, waiting in found.items()}

    def _refuse(self, lane: Lane, prediction_ids: Sequence[str], now_ms: int) -> None:
        """Have what was said under these names deleted, and delete other arms' scores of predictions with such ids."""
        pending = self._pending({i: [i] for i in prediction_ids})
        lane.put_feedback(
            [
                (i, now_ms, pack_entry(None, (p for p in pending.get(i, ()) if p.lane != lane.number)))
                for i in prediction_ids
            ]
        )
        self._lanes.drop_scores("", prediction_ids)
