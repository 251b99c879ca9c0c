"""Segment tier: looks ids up in the segments of a version on local disk, newest first, in one pass.

Ids are processed in blocks, so that the cache misses of a block overlap: hash and filter, pilots, cells, rows. One filter
over all delta segments finds at one access that no delta touched an id, which is the usual case; otherwise each segment's
own filter decides where to look. Rows of any format are returned as float32. Next stop: `file` for the format on disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numba import int64, types, uint64

from pipeline.arrays import U64
from pipeline.compiled import njit
from pipeline.embedding.kernels import WANTED, array_type, splitmix64
from pipeline.embedding.memory import copy_bytes, load_f32, load_i64, load_u16, load_u64, prefetch, unpacker
from pipeline.embedding.segment.file import Segment
from pipeline.embedding.segment.key_filter import bits_of, union, word_of
from pipeline.embedding.segment.perfect_hash import bucket_of, cell_of, partition_of
from pipeline.embedding.tier import STALE_STATUS, Fault, Wanted, WantedArrays

__all__ = ["SegmentTier"]


BLOCK_IDS = 32
# Columns of the kernel's table of segments, uint64, one row a segment.
PILOTS, CELLS, FILTER, WORDS, PARTITIONS, BUCKETS, SIZE, STRIDE, WEIGHT, SCALE, ROW, DTYPE = range(12)
_DTYPES = {"float32": 0, "float16": 1, "int8": 2}


class SegmentTier:
    """Segment tier of one version.

    Args:
        groups: by width group, as in `Generation.groups`: the segments newest first, the base's last.
    """

    name = "segment"

    def __init__(self, groups: Sequence[Sequence[Segment]]) -> None:
        self._groups = tuple(_Stack(segments) for segments in groups)

    @property
    def segments(self) -> list[Segment]:
        """All segments, group by group, newest first."""
        return [segment for group in self._groups for segment in group.segments]

    def find(self, wanted: Sequence[Wanted], mark: int, deadline: float) -> Fault | None:
        """Fill open ids that are held; never waits."""
        for want in wanted:
            group = self._groups[want.group]
            find_rows(want.arrays, group.table, group.deltas, group.filter, want.width, mark)
        return None

    def offer(self, wanted: Sequence[Wanted], mark: int) -> None:
        """Nothing: segments hold what was published."""

    def describe(self) -> Mapping[str, float | str]:
        """Rows (a row that a delta also holds counts twice), bytes mapped and number of segments."""
        segments = self.segments
        return {
            "rows": sum(len(s) for s in segments),
            "bytes": sum(s.bytes for s in segments),
            "segments": len(segments),
        }

    def close(self) -> None:
        """Nothing: a segment is unmapped with the last reference to it."""


class _Stack:
    """Segments of one width, and the table of their addresses for the kernel; the segments keep the memory alive."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.segments = tuple(segments)
        self.filter = union([s.filter for s in segments])
        self.table = np.array([_entry(s) for s in segments if len(s)], np.uint64).reshape(-1, 12)
        self.deltas = sum(len(s.filter) > 0 for s in segments)


def _entry(segment: Segment) -> list[int]:
    meta, layout = segment.meta, segment.layout
    return [
        segment.pilots.ctypes.data, segment.cells.ctypes.data, segment.filter.ctypes.data, meta.filter_words,
        meta.partitions, meta.buckets, meta.cells, layout.stride,
        max(0, layout.weight), max(0, layout.scale), layout.row, _DTYPES[layout.dtype],
    ]  # fmt: skip


_copy_f32, _copy_f16, _copy_i8 = unpacker("float32"), unpacker("float16"), unpacker("int8")


@njit(inline="always", cache=True)
def _passes(address: Any, words: Any, mixed: Any) -> Any:
    bits = bits_of(mixed)
    return load_u64(address + np.uint64(8) * word_of(mixed, words)) & bits == bits


@njit(inline="always", cache=True)
def _next_segment(table: Any, first: Any, deltas: Any, mixed: Any) -> Any:
    """The first segment from `first` on that may hold a key: a delta, else the base, else the number of segments."""
    s = first
    while s < deltas and not _passes(table[s, FILTER], table[s, WORDS], mixed):
        s += np.uint64(1)
    return s


@njit(inline="always", cache=True)
def _pilot_at(table: Any, s: Any, mixed: Any) -> Any:
    part = partition_of(mixed, table[s, PARTITIONS])
    return table[s, PILOTS] + np.uint64(2) * (part * table[s, BUCKETS] + bucket_of(mixed, table[s, BUCKETS]))


@njit(inline="always", cache=True)
def _cell_at(table: Any, s: Any, mixed: Any, pilot: Any) -> Any:
    size = table[s, SIZE]
    place = partition_of(mixed, table[s, PARTITIONS]) * size + cell_of(mixed, pilot, size)
    return table[s, CELLS] + table[s, STRIDE] * place


@njit(inline="always", cache=True)
def _copy_cell(table: Any, s: Any, cell: Any, to: Any, weight_to: Any, width: Any) -> None:
    """Copy row and weight from the cell at an address; `weight_to` 0: there are no weights."""
    source = cell + table[s, ROW]
    dtype = table[s, DTYPE]
    if dtype == 0:
        _copy_f32(to, source, np.float32(1), width)
    elif dtype == 1:
        _copy_f16(to, source, np.float32(1), width)
    else:
        _copy_i8(to, source, load_f32(cell + table[s, SCALE]), width)
    if weight_to != 0:
        copy_bytes(weight_to, cell + table[s, WEIGHT], 4)


@njit(inline="always", cache=True)
def _prefetch_filters(table: Any, layers: Any, mixed: Any) -> None:
    s = np.uint64(0)
    while s < layers:
        prefetch(table[s, FILTER] + np.uint64(8) * word_of(mixed, table[s, WORDS]))
        s += np.uint64(1)


@njit(
    types.void(WANTED, array_type(uint64, 2, readonly=True), int64, array_type(uint64, readonly=True), int64, int64),
    nogil=True,
    cache=True,
)
def find_rows(wanted: WantedArrays, table: U64, deltas: int, delta_filter: U64, width: int, mark: int) -> None:
    """Copy rows and weights of the open ids of a `Wanted` from a stack of segments.

    Args:
        wanted: `Wanted.arrays`.
        table: `[segments, 12]`, addresses and sizes: the deltas newest first, then the base, if it is among them.
        deltas: how many are deltas, and have a filter.
        delta_filter: over all of these; `[0]`: there are none.
        mark: written to `found` where an id was held.
    """
    keys, at, rows, linear_at, linear, found = wanted
    one, four, eight = np.uint64(1), np.uint64(4), np.uint64(8)
    segments, layers, numbers = np.uint64(len(table)), np.uint64(deltas), np.uint64(width)
    words = np.uint64(len(delta_filter))
    filter_at, rows_at = np.uint64(delta_filter.ctypes.data), np.uint64(rows.ctypes.data)
    linear_from, weighted = np.uint64(linear.ctypes.data), len(linear) > 0
    hashes = np.empty(BLOCK_IDS, np.uint64)
    entries = np.empty(BLOCK_IDS, np.uint64)
    where = np.empty(BLOCK_IDS, np.uint64)
    addresses = np.empty(BLOCK_IDS, np.uint64)
    total = np.uint64(len(keys))
    start = np.uint64(0)
    while start < total:
        end = min(start + np.uint64(BLOCK_IDS), total)
        count = np.uint64(0)
        i = start
        while i < end:
            state = found[i]
            if state == 0 or state >= STALE_STATUS:
                mixed = splitmix64(keys[i])
                hashes[count], entries[count] = mixed, i
                if words > 0:
                    prefetch(filter_at + eight * word_of(mixed, words))
                count += one
            i += one
        t = np.uint64(0)
        while t < count:
            mixed = hashes[t]
            where[t] = layers
            if words > 0 and _passes(filter_at, words, mixed):
                where[t] = 0
                _prefetch_filters(table, layers, mixed)
            t += one
        left = np.uint64(0)
        t = np.uint64(0)
        while t < count:
            mixed = hashes[t]
            s = _next_segment(table, where[t], layers, mixed)
            if s < segments:
                hashes[left], entries[left], where[left] = mixed, entries[t], s
                addresses[left] = _pilot_at(table, s, mixed)
                prefetch(addresses[left])
                left += one
            t += one
        t = np.uint64(0)
        while t < left:
            s = where[t]
            cell = _cell_at(table, s, hashes[t], load_u16(addresses[t]))
            addresses[t] = cell
            prefetch(cell)
            prefetch(cell + table[s, STRIDE] - one)
            t += one
        t = np.uint64(0)
        while t < left:
            i, s, cell, mixed = entries[t], where[t], addresses[t], hashes[t]
            key = keys[i]
            while load_i64(cell) != key:
                # A false positive of the filter: one in a hundred, so nothing is prefetched.
                s = _next_segment(table, s + one, layers, mixed)
                if s >= segments:
                    break
                cell = _cell_at(table, s, mixed, load_u16(_pilot_at(table, s, mixed)))
            if s < segments:
                weight_to = linear_from + four * np.uint64(linear_at[i]) if weighted else np.uint64(0)
                _copy_cell(table, s, cell, rows_at + four * np.uint64(at[i]), weight_to, numbers)
                found[i] = mark
            t += one
        start = end
