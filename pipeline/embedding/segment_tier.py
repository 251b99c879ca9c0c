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
from numba import float32, int64, njit, types, uint8, uint64

from pipeline.embedding.kernels import splitmix64
from pipeline.embedding.key_filter import bits_of, union, word_of
from pipeline.embedding.perfect_hash import bucket_of, cell_of, partition_of
from pipeline.embedding.raw_memory import float_of, load_f32, load_i8, load_i64, load_u16, load_u64, prefetch
from pipeline.embedding.segment_file import Segment
from pipeline.embedding.tier import STALE, Fault, Wanted

__all__ = ["SegmentTier"]

U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]

BLOCK = 32
# Columns of what the kernel is told of a segment.
PILOTS, CELLS, FILTER, WORDS, PARTITIONS, BUCKETS, SIZE, STRIDE, WEIGHT, SCALE, ROW, DTYPE = range(12)
_DTYPES = {"float32": 0, "float16": 1, "int8": 2}
_F16_EXPONENT = np.float32(2.0**112)


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
                group.segments_told, group.filter, want.width, mark,
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
        self.segments_told = np.array([_tell(s) for s in segments if len(s)], np.int64).reshape(-1, 12)


def _tell(segment: Segment) -> list[int]:
    meta, layout = segment.meta, segment.layout
    return [
        segment.pilots.ctypes.data, segment.cells.ctypes.data, segment.filter.ctypes.data, meta.filter_words,
        meta.partitions, meta.buckets, meta.cells, layout.stride,
        layout.weight, layout.scale, layout.row, _DTYPES[layout.dtype],
    ]  # fmt: skip


@njit(inline="always", cache=True)
def _load_f16(address: Any) -> Any:
    # The exponent is moved into float32's place and scaled to its bias, which is exact, subnormals included.
    half = np.uint32(load_u16(address))
    plain = float_of((half & np.uint32(0x7FFF)) << np.uint32(13)) * _F16_EXPONENT
    return -plain if half & np.uint32(0x8000) else plain


@njit(inline="always", cache=True)
def _copy_row(cell: Any, scale: Any, row: Any, dtype: Any, width: Any, out: Any, at: Any) -> None:
    source = cell + np.uint64(row)
    if dtype == 0:
        # Widths that are constants to the compiler become a few vector moves.
        if width == 16:
            for c in range(16):
                out[at + c] = load_f32(source + np.uint64(4 * c))
        elif width == 8:
            for c in range(8):
                out[at + c] = load_f32(source + np.uint64(4 * c))
        else:
            for c in range(width):
                out[at + c] = load_f32(source + np.uint64(4 * c))
    elif dtype == 1:
        for c in range(width):
            out[at + c] = _load_f16(source + np.uint64(2 * c))
    else:
        factor = load_f32(cell + np.uint64(scale))
        for c in range(width):
            out[at + c] = np.float32(load_i8(source + np.uint64(c))) * factor


@njit(inline="always", cache=True)
def _find_in(
    told: Any, s: Any, start: Any, todo: Any, count: Any, mixed: Any, addresses: Any,
    keys: Any, at: Any, rows: Any, linear_at: Any, linear: Any, found: Any, width: Any, mark: Any,
) -> Any:  # fmt: skip
    """Look up the entries `todo[:count]` of a block in one segment; those that it does not hold stay in `todo`."""
    pilots, cells = np.uint64(told[s, PILOTS]), np.uint64(told[s, CELLS])
    partitions, buckets = np.uint64(told[s, PARTITIONS]), np.uint64(told[s, BUCKETS])
    size, stride = np.uint64(told[s, SIZE]), np.uint64(told[s, STRIDE])
    weight, scale, row, dtype = told[s, WEIGHT], told[s, SCALE], told[s, ROW], told[s, DTYPE]
    for t in range(count):
        x = mixed[todo[t]]
        part = partition_of(x, partitions)
        addresses[t] = pilots + np.uint64(2) * (part * buckets + bucket_of(x, buckets))
        prefetch(addresses[t])
    for t in range(count):
        x = mixed[todo[t]]
        place = partition_of(x, partitions) * size + cell_of(x, load_u16(addresses[t]), size)
        addresses[t] = cells + stride * place
        prefetch(addresses[t])
        prefetch(addresses[t] + stride - np.uint64(1))
    left = 0
    for t in range(count):
        p = todo[t]
        i = start + p
        cell = addresses[t]
        if load_i64(cell) == keys[i]:
            _copy_row(cell, scale, row, dtype, width, rows, at[i])
            if len(linear) > 0:
                linear[linear_at[i]] = load_f32(cell + np.uint64(weight))
            found[i] = mark
        else:
            todo[left] = p
            left += 1
    return left


def _array(dtype: Any, dimensions: int, *, readonly: bool = True) -> Any:
    return types.Array(dtype, dimensions, "C", readonly=readonly)


@njit(
    types.void(
        _array(int64, 1), _array(int64, 1), _array(float32, 1, readonly=False),
        _array(int64, 1), _array(float32, 1, readonly=False), _array(uint8, 1, readonly=False),
        _array(int64, 2), _array(uint64, 1), int64, int64,
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
    told: I64,
    delta_filter: U64,
    width: int,
    mark: int,
) -> None:
    """Rows and weights of the open ids of a `Wanted` from a stack of segments, the last one the base.

    Args:
        keys, at, rows, linear_at, linear, found: of the `Wanted`.
        told: int64 `[segments, 12]`, addresses and sizes.
        delta_filter: over all segments with a filter of their own; `[0]`: there are none.
        mark: written to `found` where an id was held.
    """
    segments = len(told)
    words = np.uint64(len(delta_filter))
    mixed = np.empty(BLOCK, np.uint64)
    addresses = np.empty(BLOCK, np.uint64)
    todo = np.empty(BLOCK, np.int64)
    touched = np.empty(BLOCK, np.int64)
    some = np.empty(BLOCK, np.int64)
    for start in range(0, len(keys), BLOCK):
        count, deltas = 0, 0
        for p in range(min(BLOCK, len(keys) - start)):
            mark_now = found[start + p]
            if mark_now == 0 or mark_now >= STALE:
                x = splitmix64(keys[start + p])
                mixed[p] = x
                if words > 0 and delta_filter[word_of(x, words)] & bits_of(x) == bits_of(x):
                    touched[deltas] = p
                    deltas += 1
                else:
                    todo[count] = p
                    count += 1
        for s in range(segments):
            if told[s, WORDS] == 0:
                # No filter: the base, which is asked for all that is left.
                for t in range(deltas):
                    todo[count] = touched[t]
                    count += 1
                deltas = 0
                count = _find_in(
                    told, s, start, todo, count, mixed, addresses,
                    keys, at, rows, linear_at, linear, found, width, mark,
                )  # fmt: skip
            elif deltas > 0:
                own = np.uint64(told[s, FILTER])
                size = np.uint64(told[s, WORDS])
                asked, rest = 0, 0
                for t in range(deltas):
                    x = mixed[touched[t]]
                    word = load_u64(own + np.uint64(8) * word_of(x, size))
                    if word & bits_of(x) == bits_of(x):
                        some[asked] = touched[t]
                        asked += 1
                    else:
                        touched[rest] = touched[t]
                        rest += 1
                missed = _find_in(
                    told, s, start, some, asked, mixed, addresses,
                    keys, at, rows, linear_at, linear, found, width, mark,
                )  # fmt: skip
                for t in range(missed):
                    touched[rest] = some[t]
                    rest += 1
                deltas = rest
