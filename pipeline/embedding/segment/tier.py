"""The tier of local disk: the segments of a version, newest first, looked up in one pass.

Ids go in blocks, so that the misses of a block overlap: hash and filter, pilots, cells, rows. One filter over all delta
segments tells at one access that an id was not touched since the base, as most were not; each segment's own filter then
tells where to look. Rows of any format leave as float32. Next stop: `segment_file` for what lies on disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import float32, int64, types, uint8, uint64

from pipeline.compiled import njit
from pipeline.embedding.kernels import splitmix64
from pipeline.embedding.memory import copy_bytes, load_f32, load_i64, load_u16, load_u64, mover, prefetch
from pipeline.embedding.segment.file import Segment
from pipeline.embedding.segment.key_filter import bits_of, union, word_of
from pipeline.embedding.segment.perfect_hash import bucket_of, cell_of, partition_of
from pipeline.embedding.tier import STALE_STATUS, Fault, Wanted

__all__ = ["SegmentTier"]

U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]

BLOCK_IDS = 32
# What the kernel is told of a segment: a row of uint64.
PILOTS, CELLS, FILTER, WORDS, PARTITIONS, BUCKETS, SIZE, STRIDE, WEIGHT, SCALE, ROW, DTYPE = range(12)
_DTYPES = {"float32": 0, "float16": 1, "int8": 2}


class SegmentTier:
    """All segments of one version.

    Args:
        groups: by width group, as in `Generation.groups`: the segments newest first, the base's last.
    """

    name = "segment"
    shared_over_versions = False

    def __init__(self, groups: Sequence[Sequence[Segment]]) -> None:
        self._groups = tuple(_Stack(segments) for segments in groups)

    @property
    def segments(self) -> list[Segment]:
        """All of them, group by group, newest first."""
        return [segment for group in self._groups for segment in group.segments]

    def find(self, wanted: Sequence[Wanted], mark: int, deadline: float) -> Fault | None:
        """Fill what is open and held; never waits."""
        for want in wanted:
            group = self._groups[want.group]
            find_rows(
                want.keys, want.at, want.rows, want.linear_at, want.linear, want.found,
                group.told, group.deltas, group.filter, want.width, mark,
            )  # fmt: skip
        return None

    def offer(self, wanted: Sequence[Wanted], mark: int) -> None:
        """Nothing: segments hold what was published."""

    def describe(self) -> Mapping[str, float | str]:
        """Rows (one that a delta holds as well counts twice), bytes mapped and number of segments."""
        segments = self.segments
        return {
            "rows": sum(len(s) for s in segments),
            "bytes": sum(s.bytes for s in segments),
            "segments": len(segments),
        }

    def close(self) -> None:
        """Nothing: the maps go with the last reference to them."""


class _Stack:
    """The segments of one width, told to the kernel by addresses, which the segments keep alive."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.segments = tuple(segments)
        self.filter = union([s.filter for s in segments])
        self.told = np.array([_tell(s) for s in segments if len(s)], np.uint64).reshape(-1, 12)
        self.deltas = sum(len(s.filter) > 0 for s in segments)


def _tell(segment: Segment) -> list[int]:
    meta, layout = segment.meta, segment.layout
    return [
        segment.pilots.ctypes.data, segment.cells.ctypes.data, segment.filter.ctypes.data, meta.filter_words,
        meta.partitions, meta.buckets, meta.cells, layout.stride,
        max(0, layout.weight), max(0, layout.scale), layout.row, _DTYPES[layout.dtype],
    ]  # fmt: skip


_F32_16, _F32_8, _F32_1 = (mover("float32", lanes) for lanes in (16, 8, 1))
_F16_16, _F16_8, _F16_1 = (mover("float16", lanes) for lanes in (16, 8, 1))
_I8_16, _I8_8, _I8_1 = (mover("int8", lanes) for lanes in (16, 8, 1))


def _row_mover(sixteen: Any, eight: Any, one: Any, item: int) -> Any:
    """`copy(to, from, scale, width)` between addresses, from a stored format to float32."""
    step, out_step = np.uint64(item), np.uint64(4)

    @njit(inline="always", cache=True)
    def copy(to: Any, source: Any, scale: Any, width: Any) -> None:
        done = np.uint64(0)
        while done + np.uint64(16) <= width:
            sixteen(to + out_step * done, source + step * done, scale)
            done += np.uint64(16)
        if done + np.uint64(8) <= width:
            eight(to + out_step * done, source + step * done, scale)
            done += np.uint64(8)
        while done < width:
            one(to + out_step * done, source + step * done, scale)
            done += np.uint64(1)

    return copy


_copy_f32 = _row_mover(_F32_16, _F32_8, _F32_1, 4)
_copy_f16 = _row_mover(_F16_16, _F16_8, _F16_1, 2)
_copy_i8 = _row_mover(_I8_16, _I8_8, _I8_1, 1)


@njit(inline="always", cache=True)
def _passes(address: Any, words: Any, mixed: Any) -> Any:
    bits = bits_of(mixed)
    return load_u64(address + np.uint64(8) * word_of(mixed, words)) & bits == bits


@njit(inline="always", cache=True)
def _next_segment(told: Any, first: Any, deltas: Any, mixed: Any) -> Any:
    """The first segment from `first` on that may hold a key; the base, where there is one, and else the number of all."""
    s = first
    while s < deltas and not _passes(told[s, FILTER], told[s, WORDS], mixed):
        s += np.uint64(1)
    return s


@njit(inline="always", cache=True)
def _pilot_at(told: Any, s: Any, mixed: Any) -> Any:
    part = partition_of(mixed, told[s, PARTITIONS])
    return told[s, PILOTS] + np.uint64(2) * (part * told[s, BUCKETS] + bucket_of(mixed, told[s, BUCKETS]))


@njit(inline="always", cache=True)
def _cell_at(told: Any, s: Any, mixed: Any, pilot: Any) -> Any:
    size = told[s, SIZE]
    place = partition_of(mixed, told[s, PARTITIONS]) * size + cell_of(mixed, pilot, size)
    return told[s, CELLS] + told[s, STRIDE] * place


def _array(dtype: Any, dimensions: int, *, readonly: bool = True) -> Any:
    return types.Array(dtype, dimensions, "C", readonly=readonly)


@njit(
    types.void(
        _array(int64, 1), _array(int64, 1), _array(float32, 1, readonly=False),
        _array(int64, 1), _array(float32, 1, readonly=False), _array(uint8, 1, readonly=False),
        _array(uint64, 2), int64, _array(uint64, 1), int64, int64,
    ),
    nogil=True,
    cache=True,
)  # fmt: skip
def find_rows(
    keys: I64,
    at: I64,
    rows: F32,
    linear_at: I64,
    linear: F32,
    found: U8,
    told: U64,
    deltas: int,
    delta_filter: U64,
    width: int,
    mark: int,
) -> None:
    """Rows and weights of the open ids of a `Wanted` from a stack of segments.

    Args:
        keys, at, rows, linear_at, linear, found: of the `Wanted`.
        told: `[segments, 12]`, addresses and sizes: the deltas newest first, then the base, where it is there.
        deltas: how many are deltas, and have a filter.
        delta_filter: over all of these; `[0]`: there are none.
        mark: written to `found` where an id was held.
    """
    one, four, eight = np.uint64(1), np.uint64(4), np.uint64(8)
    segments, layers, numbers = np.uint64(len(told)), np.uint64(deltas), np.uint64(width)
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
                s = np.uint64(0)
                while s < layers:
                    prefetch(told[s, FILTER] + eight * word_of(mixed, told[s, WORDS]))
                    s += one
            t += one
        left = np.uint64(0)
        t = np.uint64(0)
        while t < count:
            mixed = hashes[t]
            s = _next_segment(told, where[t], layers, mixed)
            if s < segments:
                hashes[left], entries[left], where[left] = mixed, entries[t], s
                addresses[left] = _pilot_at(told, s, mixed)
                prefetch(addresses[left])
                left += one
            t += one
        t = np.uint64(0)
        while t < left:
            s = where[t]
            cell = _cell_at(told, s, hashes[t], load_u16(addresses[t]))
            addresses[t] = cell
            prefetch(cell)
            prefetch(cell + told[s, STRIDE] - one)
            t += one
        t = np.uint64(0)
        while t < left:
            i, s, cell, mixed = entries[t], where[t], addresses[t], hashes[t]
            key = keys[i]
            while load_i64(cell) != key:
                # The filter let pass what is not there: one in a hundred, so nothing is asked for ahead.
                s = _next_segment(told, s + one, layers, mixed)
                if s >= segments:
                    break
                cell = _cell_at(told, s, mixed, load_u16(_pilot_at(told, s, mixed)))
            if s < segments:
                to, source = rows_at + four * np.uint64(at[i]), cell + told[s, ROW]
                dtype = told[s, DTYPE]
                if dtype == 0:
                    _copy_f32(to, source, np.float32(1), numbers)
                elif dtype == 1:
                    _copy_f16(to, source, np.float32(1), numbers)
                else:
                    _copy_i8(to, source, load_f32(cell + told[s, SCALE]), numbers)
                if weighted:
                    copy_bytes(linear_from + four * np.uint64(linear_at[i]), cell + told[s, WEIGHT], 4)
                found[i] = mark
            t += one
        start = end
