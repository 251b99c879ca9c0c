"""Counts of looked-up ids by table and tier, over all model versions of a process."""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.arrays import I64
from pipeline.embedding.tier import DEFAULT_STATUS, STALE_STATUS

__all__ = ["CASES", "LookupTally", "Tallied"]

CASES = ("hit", "miss", "stale", "late", "error", "open", "incomplete")
"""Cases of an id, by tier and table: found; looked up and not found; found stale, and served; not looked up since the
tier was late, failed, had its circuit breaker open, or does not have all rows yet. An id is a miss of every tier that
looked it up and did not have it."""


class Tallied(NamedTuple):
    """Key of one count. `tier` is `default` (and `case` `hit`) for ids that no tier had."""

    bundle: str
    table: str
    tier: str
    case: str


class StoreCounts:
    """Counts of one store: an array per thread that looks up, so that no thread waits and no count is lost.

    Args:
        tables: by row of the arrays. tiers: names by mark minus one.
    """

    def __init__(self, bundle: str, tables: Sequence[str], tiers: Sequence[str]) -> None:
        self._bundle, self._tables, self._tiers = bundle, tuple(tables), tuple(tiers)
        self._lock = threading.Lock()
        self._found: list[I64] = []
        self._faults: Counter[tuple[int, int, str]] = Counter()

    def array(self) -> I64:
        """A new array int64 `[tables, 256]` for one thread, which counts ids by table and `found`."""
        mine = np.zeros((len(self._tables), 256), np.int64)
        with self._lock:
            self._found.append(mine)
        return mine

    def fault(self, mark: int, case: str, tables: I64) -> None:
        """Count ids that a tier did not look up: how many by table."""
        with self._lock:
            for table in np.flatnonzero(tables).tolist():
                self._faults[table, mark, case] += int(tables[table])

    def read(self) -> Counter[Tallied]:
        with self._lock:
            found = sum(self._found, np.zeros((len(self._tables), 256), np.int64))
            faults = dict(self._faults)
        counts: Counter[Tallied] = Counter()
        for t, table in enumerate(self._tables):
            below = int(found[t, DEFAULT_STATUS])
            counts[Tallied(self._bundle, table, "default", "hit")] += below
            for mark in range(len(self._tiers), 0, -1):
                tier = self._tiers[mark - 1]
                missing = sum(faults.get((t, mark, case), 0) for case in CASES[3:])
                stale, hit = int(found[t, STALE_STATUS | mark]), int(found[t, mark])
                counts[Tallied(self._bundle, table, tier, "hit")] += hit
                counts[Tallied(self._bundle, table, tier, "stale")] += stale
                counts[Tallied(self._bundle, table, tier, "miss")] += max(0, below - missing)
                for case in CASES[3:]:
                    counts[Tallied(self._bundle, table, tier, case)] += faults.get((t, mark, case), 0)
                below += hit + stale
        return counts


class LookupTally:
    """Sum of the counts of all stores of a process, those that are gone included."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._alive: list[tuple[weakref.ref[object], StoreCounts]] = []
        self._gone: Counter[Tallied] = Counter()

    def watch(self, store: object, counts: StoreCounts) -> None:
        """Include a store's counts; they are kept after the store is collected."""
        with self._lock:
            self._alive.append((weakref.ref(store), counts))

    def read(self) -> Counter[Tallied]:
        """All counts since the start; they only rise."""
        with self._lock:
            alive = []
            total = Counter(self._gone)
            for store, counts in self._alive:
                mine = counts.read()
                total.update(mine)
                if store() is None:
                    self._gone.update(mine)
                else:
                    alive.append((store, counts))
            self._alive = alive
            return total
