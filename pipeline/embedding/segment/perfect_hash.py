"""Perfect hash of a segment's keys, by displacement: a lookup reads one cell and follows no chain.

Keys fall into partitions by their hash and, within one, into buckets of about three. A bucket's 16-bit *pilot* is the
first number that sends all its keys to free cells of the partition; large buckets choose first (Belazzougui, Botelho,
Dietzfelbinger 2009, "Hash, displace, and compress"; pilots and partitions as in Pibiri and Trani 2021, "PTHash"). With
0.94 of the cells in use that takes seven tries a bucket and 0.7 bytes a key, against 16 bytes and more for a table of
keys and slots, so the pilots stay in the processor's caches and the rows need not. A partition is small enough to be
placed within those caches too, and is the unit of building, checking and memory use.

A key that was never placed is sent to some cell as well; comparing with the key in the cell tells the difference.
Functions are serial and release the GIL.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.arrays import I64, U8, U16, U32, U64
from pipeline.compiled import njit
from pipeline.embedding.kernels import splitmix64

__all__ = ["PILOTS", "bucket_of", "cell_of", "count_partitions", "partition_of", "place_partition", "route"]


PILOTS = 1 << 16
_LOW_MASK = np.uint64(0xFFFFFFFF)
_HALF_BITS = np.uint64(32)
_PILOT_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_SPREAD_MULTIPLIER = np.uint64(0xD6E8FEB86659FD93)


@njit(inline="always", cache=True)
def partition_of(mixed: Any, partitions: Any) -> Any:
    """The partition of a hash: its high half scaled (Lemire 2019), so counts need not be powers of two."""
    return ((mixed >> _HALF_BITS) * partitions) >> _HALF_BITS


@njit(inline="always", cache=True)
def bucket_of(mixed: Any, buckets: Any) -> Any:
    """The bucket within its partition: the low half scaled."""
    return ((mixed & _LOW_MASK) * buckets) >> _HALF_BITS


@njit(inline="always", cache=True)
def cell_of(mixed: Any, pilot: Any, cells: Any) -> Any:
    """The cell within its partition."""
    return (
        (((mixed ^ (np.uint64(pilot) * _PILOT_MULTIPLIER)) * _SPREAD_MULTIPLIER) >> _HALF_BITS) * cells
    ) >> _HALF_BITS


@njit(nogil=True, cache=True)
def count_partitions(ids: I64, salt: int, counts: I64) -> None:
    """Add the number of `ids` in each partition to `counts` `[P]`; a key is an id xor the salt of its table."""
    partitions = np.uint64(len(counts))
    for i in range(len(ids)):
        counts[partition_of(splitmix64(ids[i] ^ salt), partitions)] += 1


@njit(nogil=True, cache=True)
def route(ids: I64, salt: int, partitions: int, first: int, starts: I64, before: int, mixed: U64, origins: U32) -> None:
    """Append the `ids` of partitions `first`, `first + 1`, ... (as many as `starts` has) to their partitions.

    Args:
        starts: `[k]`, where each partition's next entry goes in `mixed` and `origins`; advanced.
        before: rows of all earlier sources; the origin of `ids[i]` is `before + i`.
        mixed, origins: hash of the key, and number of its row over all sources.
    """
    scale = np.uint64(partitions)
    for i in range(len(ids)):
        x = splitmix64(ids[i] ^ salt)
        part = np.int64(partition_of(x, scale)) - first
        if 0 <= part < len(starts):
            at = starts[part]
            mixed[at] = x
            origins[at] = np.uint32(before + i)
            starts[part] = at + 1


@njit(nogil=True, cache=True)
def _largest_first(starts: I64, ends: I64, largest: int) -> I64:
    """Numbers of the buckets, the largest first: a counting sort by size, at most `largest`."""
    room = np.zeros(largest + 2, np.int64)
    for b in range(len(ends)):
        room[largest - (ends[b] - starts[b]) + 1] += 1
    for s in range(largest + 1):
        room[s + 1] += room[s]
    order = np.empty(len(ends), np.int64)
    for b in range(len(ends)):
        s = largest - (ends[b] - starts[b])
        order[room[s]] = b
        room[s] += 1
    return order


@njit(nogil=True, cache=True)
def place_partition(mixed: U64, origins: U32, sources: I64, tables: I64, pilots: U16, taken: U8, cells: I64) -> int:
    """Choose the pilots of one partition.

    A repeated key is the same id in an older version and gets no cell; in another table it is a collision.

    Args:
        mixed, origins: `[n]`, newest version first.
        sources, tables: `[s]`, end of each source's origins, and its table.
        pilots: `[B]`, B at least 1, filled.
        taken: `[C]`, filled with 1 where a key is placed.
        cells: `[n]`, filled with each entry's cell, -1 for one that a newer entry hides.

    Returns:
        Number of keys placed; -1 when ids of two tables collide, -2 when the keys do not fit.
    """
    n = len(mixed)
    buckets, size = np.uint64(len(pilots)), np.uint64(len(taken))
    starts = np.zeros(len(pilots) + 1, np.int64)
    for i in range(n):
        starts[bucket_of(mixed[i], buckets) + 1] += 1
    largest = 0
    for b in range(len(pilots)):
        largest = max(largest, starts[b + 1])
        starts[b + 1] += starts[b]
    entries = np.empty(n, np.int64)
    ends = starts[:-1].copy()
    kept = 0
    for i in range(n):
        b = bucket_of(mixed[i], buckets)
        hidden = False
        for e in range(starts[b], ends[b]):
            other = entries[e]
            if mixed[other] == mixed[i]:
                mine = np.searchsorted(sources, origins[i], side="right")
                if tables[mine] != tables[np.searchsorted(sources, origins[other], side="right")]:
                    return -1
                hidden = True
        if hidden:
            cells[i] = -1
        else:
            entries[ends[b]] = i
            ends[b] += 1
            kept += 1
    if kept > len(taken):
        return -2
    taken[:] = 0
    order = _largest_first(starts, ends, largest)
    for o in range(len(order)):
        b = order[o]
        first, last = starts[b], ends[b]
        if first == last:
            break
        pilot = 0
        while True:
            e = first
            while e < last:
                cell = cell_of(mixed[entries[e]], pilot, size)
                if taken[cell] != 0:
                    break
                taken[cell] = 1
                cells[entries[e]] = np.int64(cell)
                e += 1
            if e == last:
                break
            while e > first:
                e -= 1
                taken[cells[entries[e]]] = 0
            pilot += 1
            if pilot == PILOTS:
                return -2
        pilots[b] = pilot
    return kept
