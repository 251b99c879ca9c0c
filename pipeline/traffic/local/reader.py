"""Readers of the traffic log of one machine: labelled entries, and predictions of all lanes.

What was deleted since, or is damaged on the disk, is passed over: readers go on from place to place, and one record must
not end the log for all of them. Damaged ones are logged and counted, each once.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from itertools import islice, takewhile

import numpy as np

from pipeline.errors import Damaged, NotReady
from pipeline.traffic.join import MatureRows
from pipeline.traffic.lanes.lanes import Lanes
from pipeline.traffic.lanes.places import pack_place, unpack_place
from pipeline.traffic.lanes.rows import Place, Row
from pipeline.traffic.local.ceilings import Ceilings
from pipeline.traffic.local.file import LabelsFile
from pipeline.traffic.log import Labelled, Scores, Unscored

__all__ = ["Reader"]

_PAGE_PREDICTIONS = 256
_PASSED_PREDICTIONS = 4096
"""Predictions that one call looks at, at most."""

log = logging.getLogger(__name__)


class Reader:
    """Reads labels and lanes."""

    def __init__(self, file: LabelsFile, lanes: Lanes) -> None:
        self._file = file
        self._lanes = lanes
        self._damaged: set[Place] = set()

    def labelled(self, after: int, limit: int) -> list[Labelled]:
        """Entries of the labelled log with seq > after, in order, with all scores stored by now."""
        query = (
            "SELECT seq, prediction_id, endpoint, revision, time_ms, mature, lane, file, offset, length FROM labelled"
            " WHERE seq > ? ORDER BY seq LIMIT ?"
        )
        found: list[Labelled] = []
        while len(found) < limit:
            with self._file.read() as db:
                rows = db.execute(query, (after, limit - len(found))).fetchall()
            others = self._others([prediction_id for _, prediction_id, *_ in rows])
            for seq, i, endpoint, revision, time_ms, mature, *place in rows:
                after = seq
                record = self.record(Place(*place))
                if record is not None:
                    scores = tuple(others.get(i, ()))
                    rows_of = MatureRows.unpack(mature)
                    found.append(Labelled(seq, i, endpoint, revision, time_ms, *rows_of, record, scores))
            if not rows:
                break
        return found

    def predictions(self, after: str, limit: int) -> list[tuple[str, bytes]]:
        """Predictions after a place, by time as far as lanes allow: place and record."""
        found: list[tuple[str, bytes]] = []
        for place, lane, row in self._from(unpack_place(after)):
            if len(found) == limit:
                break
            if (record := self.record(row.place(lane))) is not None:
                found.append((pack_place(place), record))
        return found

    def near_end(self, count: int) -> str:
        """A place after which the newest `count` predictions stand, and of each lane no more than that."""
        return pack_place({lane: max(0, self._lanes.last_seq(lane) - count) for lane in self._lanes.numbers()})

    def unscored(self, after: str, before_ms: int, limit: int, endpoints: Collection[str] | None) -> Unscored:
        """See `TrafficLog.unscored`. What is passed over costs a look at the indexes and no record."""
        place = unpack_place(after)
        with self._file.read() as db:
            ceilings = Ceilings(db)
        lanes = (self._before(lane, place.get(lane, 0), before_ms, ceilings) for lane in self._lanes.numbers())
        rows = islice(heapq.merge(*lanes, key=lambda found: found[1].time_ms), _PASSED_PREDICTIONS)
        found: list[tuple[str, bytes]] = []
        while page := list(islice(rows, _PAGE_PREDICTIONS)):
            wanted = {row.prediction_id for _, row in page if endpoints is None or row.endpoint in endpoints}
            wanted -= {row.prediction_id for _, row in self._lanes.scores_of(list(wanted))}
            for lane, row in page:
                if len(found) == limit:
                    return Unscored(found, pack_place(place))
                place[lane] = row.seq
                if row.prediction_id in wanted and (record := self.record(row.place(lane))) is not None:
                    found.append((pack_place(place), record))
        return Unscored(found, pack_place(place))

    def latest(self, endpoint: str, limit: int) -> list[bytes]:
        """Up to `limit` records of an endpoint, the newest first, among the newest few of all."""
        rows: list[tuple[int, Row]] = []
        for lane in self._lanes.numbers():
            few = 64 * limit
            rows += [(lane, row) for row in self._lanes.rows(lane, max(0, self._lanes.last_seq(lane) - few), few)]
        rows.sort(key=lambda found: (found[1].time_ms, found[1].seq), reverse=True)
        records = (self.record(row.place(lane)) for lane, row in rows[: 64 * limit] if row.endpoint == endpoint)
        found: list[bytes] = []
        for record in records:
            if record is not None:
                found.append(record)
            if len(found) == limit:
                break
        return found

    def records(self, prediction_ids: Sequence[str]) -> dict[str, bytes]:
        """The records of those predictions that are written, in the order asked."""
        rows = self._lanes.find_all(prediction_ids)
        found = {i: self.record(rows[i][1].place(rows[i][0])) for i in prediction_ids if i in rows}
        return {i: record for i, record in found.items() if record is not None}

    def record(self, place: Place) -> bytes | None:
        """Payload at a place; None where it was deleted or is damaged."""
        try:
            return self._lanes.read(place)
        except Damaged as error:
            if place not in self._damaged:
                self._damaged.add(place)
                log.error("a record of the traffic log is passed over: %s", error)
                with suppress(NotReady), self._file.write(durable=False) as db:
                    db.execute("INSERT OR IGNORE INTO damaged VALUES (?, ?, ?)", place[:3])
            return None

    def _from(self, place: dict[int, int]) -> Iterator[tuple[dict[int, int], int, Row]]:
        """Predictions after a place: the place then (one object, which goes on), lane and row."""
        rows = heapq.merge(
            *(self._rows(lane, place.get(lane, 0)) for lane in self._lanes.numbers()),
            key=lambda found: found[1].time_ms,
        )
        for lane, row in rows:
            place[lane] = row.seq
            yield place, lane, row

    def _rows(self, lane: int, after: int) -> Iterator[tuple[int, Row]]:
        while page := self._lanes.rows(lane, after, _PAGE_PREDICTIONS):
            yield from ((lane, row) for row in page)
            after = page[-1].seq

    def _before(self, lane: int, after: int, before_ms: int, ceilings: Ceilings) -> Iterator[tuple[int, Row]]:
        """Predictions of one lane up to the first that is not older."""
        return takewhile(lambda found: ceilings.time_of(*found) < before_ms, self._rows(lane, after))

    def _others(self, prediction_ids: Sequence[str]) -> dict[str, list[Scores]]:
        """Other arms' scores by prediction."""
        found: dict[str, list[Scores]] = {}
        for lane, row in self._lanes.scores_of(list(dict.fromkeys(prediction_ids))):
            if (blob := self.record(row.place(lane))) is not None:
                scores = Scores(row.arm, row.bundle, row.version, np.frombuffer(blob, np.float32))
                found.setdefault(row.prediction_id, []).append(scores)
        return found
