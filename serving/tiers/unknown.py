"""Unknown ids: which part of what callers send lately no model has a row for, against the part at training.

A part that is far larger than at training means that callers write ids in another way than the log that the model was
trained on: other types, other spellings, another text for missing values.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterator, Mapping

from pipeline.clock import Clock
from pipeline.embedding.hierarchy.tally import LookupTally
from serving.lane.served import Snapshot
from serving.runtime.status import LaneStatus, UnknownIds

__all__ = ["WINDOW_S", "RecentLookups", "unknown_ids", "unusual"]

WINDOW_S = 600.0
STEP_S = 15.0
LEAST_IDS = 1000
"""Ids below which a fraction says nothing."""
_NOT_LOOKED_UP = ("late", "error", "open", "incomplete")

_Table = tuple[str, str]
"""Bundle and table."""


class RecentLookups:
    """Counts of the ids looked up within the last `WINDOW_S`, by bundle and table. Any thread may read."""

    def __init__(self, tally: LookupTally, clock: Clock) -> None:
        self._tally, self._clock = tally, clock
        self._lock = threading.Lock()
        self._past = deque([(clock.monotonic(), Counter[_Table](), Counter[_Table]())])

    def read(self) -> tuple[Counter[_Table], Counter[_Table]]:
        """Ids, and those of them that are unknown; ids that a tier could not look up are not."""
        ids: Counter[_Table] = Counter()
        unknown: Counter[_Table] = Counter()
        for (bundle, table, tier, case), count in self._tally.read().items():
            if case in ("hit", "stale"):
                ids[bundle, table] += count
            if tier == "default":
                unknown[bundle, table] += count
            elif case in _NOT_LOOKED_UP:
                unknown[bundle, table] -= count
        now = self._clock.monotonic()
        with self._lock:
            while len(self._past) > 1 and self._past[1][0] <= now - WINDOW_S:
                self._past.popleft()
            if now - self._past[-1][0] >= STEP_S:
                self._past.append((now, ids, unknown))
            _, ids_before, unknown_before = self._past[0]
        return ids - ids_before, unknown - unknown_before


def unknown_ids(lately: RecentLookups, snapshot: Snapshot) -> dict[str, dict[str, dict[str, UnknownIds]]]:
    """Unknown ids by endpoint, arm and table."""
    ids, unknown = lately.read()
    found: dict[str, dict[str, dict[str, UnknownIds]]] = {}
    for name, endpoint in snapshot.endpoints.items():
        for arm in ("stable", "candidate"):
            served = endpoint.arm(arm)
            if served is None:
                continue
            manifest = served.model.manifest
            found.setdefault(name, {})[arm] = {
                table: UnknownIds(
                    ids=ids[manifest.name, table],
                    unknown=unknown[manifest.name, table],
                    at_training=manifest.unknown_ids.get(table),
                )
                for table in manifest.tables
            }
    return found


def unusual(lanes: Mapping[str, LaneStatus]) -> Iterator[str]:
    """Tables of which callers send far more unknown ids than there were at training, in words."""
    sums: dict[tuple[str, str, str], UnknownIds] = {}
    for lane in lanes.values():
        for endpoint, arms in lane.embedding.unknown.items():
            for arm, tables in arms.items():
                for table, counts in tables.items():
                    before = sums.get((endpoint, arm, table), UnknownIds())
                    sums[endpoint, arm, table] = UnknownIds(
                        ids=before.ids + counts.ids,
                        unknown=before.unknown + counts.unknown,
                        at_training=counts.at_training,
                    )
    for (endpoint, arm, table), counts in sorted(sums.items()):
        if counts.ids < LEAST_IDS or counts.at_training is None:
            continue
        fraction, usual = counts.unknown / counts.ids, counts.at_training
        if fraction > usual + max(0.05, usual):
            yield (
                f"{endpoint}/{arm}: {fraction:.0%} of the last {counts.ids:,} ids of {table} are unknown, at training it was "
                f"{usual:.1%}; do callers write {table} as the log did (type, spelling, missing values)?"
            )
