"""Device cache on the CPU: the most requested rows, in memory of this process, above a slower or larger tier.

A set-associative cache per width group. A key's set is found by hash, all its places are compared at once, the row is
copied and its last use stamped in the same pass (`pipeline.embedding.device.sets`). Frequency of requests decides what
may enter a full set (`pipeline.embedding.device.tinylfu`), least recent use what leaves it. Next stop:
`pipeline.embedding.device.tier`, which shares caches between versions.

**Processes.** Several processes may map the arrays and use them together. Baton gives each lane its own: private memory
gets huge pages, which shared memory does not on a stock kernel, and page walks would cost more than the rows that lanes
hold twice.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass

import numpy as np

from pipeline.arrays import I64, U64
from pipeline.bundle.row_format import RowFormat
from pipeline.embedding.device.sets import (
    CONTENDED,
    ENTERED,
    FRESH_TICKS,
    HEAD_WORDS,
    HELD,
    LINE_BYTES,
    NOW,
    REFUSED,
    SWEPT,
    WAYS,
    CacheArrays,
    find_rows,
    held_keys,
    keep_rows,
    sweep_rows,
)
from pipeline.embedding.device.tinylfu import LINE_WORDS, ROW_WORDS
from pipeline.embedding.tier import Wanted

__all__ = ["CacheShape", "DeviceCache"]


_KINDS: dict[RowFormat, int] = {"float32": 0, "float16": 1, "int8": 2}
_SWEEP_TICKS, _ROUND_TICKS = 128, 256  # ticks between sweeps, and until births wrap around


@dataclass(frozen=True, slots=True)
class CacheShape:
    """Capacity and row format of a cache.

    Args:
        rows: capacity; rounded up to whole sets.
        width: d.
        linear: whether a row has a weight beside it.
        format: of stored rows. float16 rounds to nearest; int8 has a scale per row, and its error is at most 1/254 of
            the row's largest number.
    """

    rows: int
    width: int
    linear: bool = False
    format: RowFormat = "float32"

    @property
    def sets(self) -> int:
        return max(1, -(-self.rows // WAYS))

    @property
    def stride(self) -> int:
        """Bytes of a stored row with its weight, in whole 4-byte words."""
        row = {"float32": 4 * self.width, "float16": 2 * self.width, "int8": 4 + self.width}[self.format]
        return -(-row // 4) * 4 + 4 * self.linear

    @property
    def bytes_per_row(self) -> float:
        """The row, a sixth of its set's line of 64 bytes and 8 bytes of the sketch."""
        return self.stride + LINE_BYTES / WAYS + 8 * ROW_WORDS

    @property
    def words(self) -> int:
        """64-bit words of the sketch."""
        return LINE_WORDS * max(1, self.sets * WAYS * ROW_WORDS // LINE_WORDS)

    @property
    def bytes(self) -> int:
        """Bytes of the whole cache."""
        return 8 * HEAD_WORDS + self.sets * (LINE_BYTES + WAYS * self.stride) + 8 * self.words


class DeviceCache:
    """Rows of one width by key. Any number of threads, and of processes that map `memory`, may find and keep at once.

    Args:
        shape: capacity and format.
        memory: `shape.bytes` bytes, zeros or written by a cache of the same shape, aligned to 64; None: private memory.
    """

    def __init__(self, shape: CacheShape, memory: mmap.mmap | None = None) -> None:
        self.shape = shape
        self.memory = _private(shape.bytes) if memory is None else memory
        raw = np.frombuffer(self.memory, np.uint8, shape.bytes)
        sets, slots = shape.sets, shape.sets * WAYS
        parts = np.cumsum([8 * HEAD_WORDS, LINE_BYTES * sets, slots * shape.stride])
        head, table, stored, sketch = np.split(raw, parts)
        table, stored = table.reshape(sets, -1), stored.reshape(slots, shape.stride)
        self._head: U64 = head.view(np.uint64)
        self._kind = _KINDS[shape.format]
        self._arrays: CacheArrays = (
            self._head,
            table.view(np.int64),
            stored,
            stored.view(np.float32),
            sketch.view(np.uint64),
        )
        if self._head[NOW] == 0:
            self._head[NOW] = 1

    @property
    def bytes(self) -> int:
        """Bytes of memory."""
        return self.shape.bytes

    def find(self, wanted: Wanted, mark: int, tick: int = -1) -> None:
        """Fill open ids that are held (`Tier.find`). `tick`: the time; -1: rows do not age."""
        self._sweep(tick)
        find_rows(wanted.arrays, self._arrays, self.shape.width, self._kind, mark, tick)

    def keep(self, wanted: Wanted, mark: int, tick: int = -1, *, overwrite: bool = False) -> None:
        """Take rows that lower tiers found (`Tier.offer`); with `overwrite` rows that are held are replaced."""
        self._sweep(tick)
        keep_rows(wanted.arrays, self._arrays, self.shape.width, self._kind, mark, tick, overwrite)

    def _sweep(self, tick: int) -> None:
        passed = tick - int(self._head[SWEPT])
        if tick >= 0 and passed >= _SWEEP_TICKS:
            self._head[SWEPT] = tick
            # There was no call for so long that births may have wrapped around: every row is old.
            sweep_rows(self._arrays, tick, passed >= _ROUND_TICKS - FRESH_TICKS)

    def keys(self, limit: int | None = None) -> I64:
        """Keys held, int64, the most recently used of every set first."""
        out = np.empty(self.shape.sets * WAYS if limit is None else limit, np.int64)
        return out[: int(held_keys(self._arrays, out))]

    def counts(self) -> dict[str, int]:
        """`rows` held, and since the start: `entered`, `refused` by admission, `contended` (dropped: the set was locked)."""
        head = self._head
        return {
            "rows": int(head[HELD]),
            "entered": int(head[ENTERED]),
            "refused": int(head[REFUSED]),
            "contended": int(head[CONTENDED]),
        }


def _private(size: int) -> mmap.mmap:
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
