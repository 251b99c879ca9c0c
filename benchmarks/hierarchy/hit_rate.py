"""Hit rate of a small cache on a skewed stream: TinyLFU before LRU, as in the device tier, and LRU alone.

The device tier has no cache without admission, so the figure beside it is a plain LRU over the same stream, id by id.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from benchmarks.hierarchy.tables import IdStream
from benchmarks.report import Progress, Report
from pipeline.arrays import F32, I64
from pipeline.embedding.device.cache import CacheShape, DeviceCache
from pipeline.embedding.tier import PENDING_STATUS, Wanted

__all__ = ["hit_rates"]


FRACTIONS = (0.01, 0.026, 0.1)
"""Capacities, of the table's rows."""
IDS = 3900
WIDTH = 8
PER_ROW = 20
"""Lookups per row of capacity; the second half is measured."""


def hit_rates(report: Report, count: int, progress: Progress) -> None:
    """Add, per capacity and policy, the fraction of ids found, and the rows written for it.

    Args:
        count: rows of the table that the stream (Zipf 1.05) draws from.
    """
    keys = np.random.default_rng(12).integers(-(2**63), 2**63 - 1, count)
    for fraction in FRACTIONS:
        progress(f"embedding: hit rates at {fraction:.1%} of {count:,} rows")
        capacity = int(count * fraction)
        turns = max(40, capacity * PER_ROW // IDS)
        places = IdStream.over(count, "zipf", 11).draw(turns * IDS).reshape(turns, IDS)
        found, entered = _admitted(capacity, keys[places])
        case = f"zipf/rows={count}/capacity={fraction:g}"
        lru_found, inserted = _lru(capacity, places)
        report.add(f"tinylfu+lru/{case}", "hit_rate", found, "share", limit=lru_found)
        report.add(f"tinylfu+lru/{case}", "inserts", entered, "rows", limit=inserted)


def _admitted(capacity: int, keys: I64) -> tuple[float, int]:
    """Fraction found in the second half of requests `[turns, m]`, and rows that entered in total."""
    cache, found = DeviceCache(CacheShape(capacity, WIDTH)), 0
    m = keys.shape[1]
    at, rows = np.arange(m) * WIDTH, np.zeros(m * WIDTH, np.float32)
    none: F32 = np.zeros(0, np.float32)
    for turn, asked in enumerate(keys):
        wanted = Wanted(0, WIDTH, asked, at, rows, at[:0], none, np.full(m, PENDING_STATUS, np.uint8))
        cache.find(wanted, 1)
        if turn >= len(keys) // 2:
            found += int((wanted.found == 1).sum())
        wanted.found[wanted.found == PENDING_STATUS] = 2  # as a tier below that holds everything
        cache.keep(wanted, 1)
    return found / keys[len(keys) // 2 :].size, cache.counts()["entered"]


def _lru(capacity: int, places: I64) -> tuple[float, int]:
    """The same for a cache that admits every row and evicts the least recently used one."""
    held, found, inserted = OrderedDict[int, None](), 0, 0
    half = len(places) // 2 * places.shape[1]
    for number, place in enumerate(places.reshape(-1).tolist()):
        if place in held:
            held.move_to_end(place)
            found += number >= half
            continue
        held[place] = None
        inserted += 1
        if len(held) > capacity:
            held.popitem(last=False)
    return found / (places.size - half), inserted
