"""Hash tables of 64-bit ids as plain arrays, and the compiled loops over them.

Open addressing with linear probing; the number of cells is a power of two. A cell is empty where `slots[cell] == 0` (a
slot is stored plus one), so every 64-bit id is legal. Functions take arrays only, hold no state and release the GIL. They
are serial, since numba's parallel layer aborts a process on concurrent calls.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import float32, int64, types, uint8

from pipeline.arrays import I64, U32
from pipeline.compiled import njit

__all__ = [
    "WANTED",
    "IdIndex",
    "array_type",
    "build",
    "capacity_for",
    "find",
    "find_or_insert",
    "splitmix64",
    "tuple_type",
]


def array_type(dtype: Any, dimensions: int = 1, *, readonly: bool = False) -> Any:
    """numba's type of a C-contiguous array, for explicit signatures."""
    return types.Array(dtype, dimensions, "C", readonly=readonly)


def tuple_type(*kinds: Any) -> Any:
    """numba's type of a tuple. Arguments are plain tuples: a named tuple makes a call a microsecond slower."""
    make: Any = types.Tuple
    return make(kinds)


_READ_I64 = array_type(int64, readonly=True)
WANTED = tuple_type(_READ_I64, _READ_I64, array_type(float32), _READ_I64, array_type(float32), array_type(uint8))
"""numba's type of `Wanted.arrays`."""


@njit(inline="always", cache=True)
def splitmix64(x: Any) -> Any:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection on uint64 that mixes every bit."""
    x = np.uint64(x)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def capacity_for(count: int) -> int:
    """Cells for `count` ids: a power of two, at most half full."""
    return 1 << max(4, int(2 * count - 1).bit_length())


@njit(nogil=True, cache=True)
def build(ids: I64, keys: I64, slots: U32) -> None:
    """Fill empty cells (`keys`, `slots`, zeroed) with distinct `ids`; id i gets slot i."""
    mask = np.uint64(len(keys) - 1)
    for i in range(len(ids)):
        cell = splitmix64(ids[i]) & mask
        while slots[cell] != 0:
            cell = (cell + np.uint64(1)) & mask
        keys[cell] = ids[i]
        slots[cell] = np.uint32(i + 1)


@njit(nogil=True, cache=True)
def find(ids: I64, keys: I64, slots: U32, out: I64) -> int:
    """Slots of `ids` into `out` (int64 `[n]`), -1 where an id is not held. Returns the number found."""
    mask = np.uint64(len(keys) - 1)
    found = 0
    for i in range(len(ids)):
        cell = splitmix64(ids[i]) & mask
        out[i] = -1
        while slots[cell] != 0:
            if keys[cell] == ids[i]:
                out[i] = np.int64(slots[cell]) - 1
                found += 1
                break
            cell = (cell + np.uint64(1)) & mask
    return found


@njit(nogil=True, cache=True)
def find_or_insert(ids: I64, keys: I64, slots: U32, used: int, out: I64) -> int:
    """Slots of `ids` into `out`; new ids get the slots used, used + 1, ... Returns the new number of slots used.

    The caller ensures that there are enough cells. The padding id 0 gets -1 and no slot.
    """
    mask = np.uint64(len(keys) - 1)
    for i in range(len(ids)):
        if ids[i] == 0:
            out[i] = -1
            continue
        cell = splitmix64(ids[i]) & mask
        while True:
            if slots[cell] == 0:
                keys[cell] = ids[i]
                slots[cell] = np.uint32(used + 1)
                out[i] = used
                used += 1
                break
            if keys[cell] == ids[i]:
                out[i] = np.int64(slots[cell]) - 1
                break
            cell = (cell + np.uint64(1)) & mask
    return used


class IdIndex:
    """A growing map from 64-bit ids to slots 0, 1, 2, ... in order of arrival. One writer; 12 bytes a cell."""

    def __init__(self, capacity: int = 1024) -> None:
        cells = capacity_for(capacity)
        self._keys: I64 = np.zeros(cells, np.int64)
        self._slots: U32 = np.zeros(cells, np.uint32)
        self._used = 0

    def __len__(self) -> int:
        return self._used

    def find(self, ids: I64) -> I64:
        """Slots int64 of `ids` (any shape), -1 where unknown."""
        flat = np.ascontiguousarray(ids).reshape(-1)
        out = np.empty(len(flat), np.int64)
        find(flat, self._keys, self._slots, out)
        return out.reshape(ids.shape)

    def insert(self, ids: I64) -> I64:
        """Slots int64 of `ids` (any shape), new ids added in order; -1 for padding."""
        flat = np.ascontiguousarray(ids).reshape(-1)
        # Ids repeat, so the worst case would allocate too much: count the new ones first.
        if 2 * (self._used + len(flat)) > len(self._keys):
            known = np.empty(len(flat), np.int64)
            find(flat, self._keys, self._slots, known)
            fresh = np.unique(flat[known < 0])
            if 2 * (self._used + len(fresh)) > len(self._keys):
                self._grow(2 * (self._used + len(fresh)))
        out = np.empty(len(flat), np.int64)
        self._used = int(find_or_insert(flat, self._keys, self._slots, self._used, out))
        return out.reshape(ids.shape)

    def ids(self) -> I64:
        """Ids by slot, int64 `[len(self)]`."""
        held = self._slots > 0
        out = np.empty(self._used, np.int64)
        out[self._slots[held].astype(np.int64) - 1] = self._keys[held]
        return out

    def _grow(self, capacity: int) -> None:
        ids = self.ids()
        cells = capacity_for(capacity)
        self._keys, self._slots = np.zeros(cells, np.int64), np.zeros(cells, np.uint32)
        build(ids, self._keys, self._slots)
