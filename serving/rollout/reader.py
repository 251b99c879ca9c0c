"""Reader of the labelled log for all rollouts together: each entry is read once, and unpacked where its endpoint has one.

It has one place in the log. What resumes from an older place (a rollout whose sums were not stored) is read to by itself,
a bounded number of entries at a time, until it has reached that place and joins.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

from pipeline.traffic.log import Labelled, TrafficLog
from pipeline.traffic.record import PredictionRecord, unpack

__all__ = ["Counted", "LabelReader"]

_BATCH_ENTRIES = 256
_MOST_BATCHES = 40
"""Of a pass: bounded, so that a log that is long behind does not keep rollouts from being looked at."""
_NEAR_ENTRIES = 100_000
"""Places that lie so close together when a process starts are read on from the first of them."""

log = logging.getLogger(__name__)


class Counted(Protocol):
    """Sums that count the entries of an endpoint in the order of the log."""

    endpoint: str
    seq: int

    def add(self, entries: Sequence[Labelled], records: Sequence[PredictionRecord]) -> None:
        """Count entries of the endpoint; those at or before `seq` are skipped."""

    def passed(self, seq: int) -> None:
        """There are no other entries of the endpoint up to this place."""


class LabelReader:
    """Reader of the labelled log with one place. Not for several threads.

    Attributes:
        at_end: whether the last `step` came to the end of the log.
    """

    def __init__(self, log: TrafficLog) -> None:
        self._log = log
        self._place: int | None = None
        self.at_end = False

    def step(self, counted: Sequence[Counted]) -> list[Counted]:
        """Read on, a bounded number of entries; returns those that failed, whose sums are of no use any more."""
        if not counted:
            self._place = None
            return []
        places = [each.seq for each in counted]
        if self._place is None:
            self._place = min(place for place in places if place >= max(places) - _NEAR_ENTRIES)
        self._place = max(self._place, min(places))
        failed: list[Counted] = []
        behind = [each for each in counted if each.seq < self._place]
        if behind:
            self._read(behind, min(each.seq for each in behind), self._place, failed)
        with_it = [each for each in counted if each.seq >= self._place]
        self._place, self.at_end = self._read(with_it, self._place, None, failed)
        return failed

    def joined(self, counted: Counted) -> bool:
        """Whether sums count as much as has been read, to the end of the log."""
        return self.at_end and self._place is not None and counted.seq >= self._place

    def catch_up(self, counted: Counted) -> bool:
        """Read on for one alone, a bounded number of entries; whether it came to the end of the log."""
        failed: list[Counted] = []
        return self._read([counted], counted.seq, None, failed)[1] and not failed

    def _read(
        self, counted: Sequence[Counted], after: int, until: int | None, failed: list[Counted]
    ) -> tuple[int, bool]:
        """Read from a place up to `until`, or to the end; returns the place reached, and whether that was it."""
        readers: dict[str, list[Counted]] = {}
        for each in counted:
            readers.setdefault(each.endpoint, []).append(each)
        for _ in range(_MOST_BATCHES):
            entries = self._log.labelled(after, _BATCH_ENTRIES)
            last = len(entries) < _BATCH_ENTRIES
            if until is not None:
                wanted = [entry for entry in entries if entry.seq <= until]
                last = last or len(wanted) < len(entries)
                entries = wanted
            after = until if last and until is not None else entries[-1].seq if entries else after
            _count(entries, readers, failed)
            for each in counted:
                each.passed(after)
            if last:
                return after, True
        return after, False


def _count(entries: Sequence[Labelled], readers: dict[str, list[Counted]], failed: list[Counted]) -> None:
    """Add entries to the sums of their endpoints; those of endpoints without any are not unpacked."""
    chosen: dict[str, list[Labelled]] = {}
    for entry in entries:
        if entry.endpoint in readers:
            chosen.setdefault(entry.endpoint, []).append(entry)
    for endpoint, mine in chosen.items():
        records = [unpack(entry.record) for entry in mine]
        for each in readers[endpoint]:
            if each in failed:
                continue
            try:
                each.add(mine, records)
            except Exception:
                log.exception("labelled rows of %s could not be counted; their sums are read again", endpoint)
                failed.append(each)
