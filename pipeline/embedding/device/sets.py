"""Compiled loops of the device cache: sets of six rows that many threads find, copy and replace at once.

A set is one cache line, int64 `[8]`: six keys, then 16 bytes of state: a lock of 32 bits, six stamps of last use, six
births. All eight words are compared with a key at once; the lock's low bits mark which of the six places are taken, so
every 64-bit key is legal. Rows are stored apart, that of place w of set s at `6 s + w`. An id therefore costs two cache
misses, its set and its row; eight keys in one line and the state in another cost three, and a lookup took 50 % longer.

The lock counts writes and has a bit for a write in progress (a seqlock): a reader copies the row and uses the copy only
if the lock has not changed. No thread waits: a reader that loses `TRIES` times has a miss, a writer that finds a set
locked drops its row. A process that dies while it writes therefore costs one set.

Functions are serial and release the GIL. `pipeline.embedding.device.cache` owns the arrays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import boolean, float32, int64, types, uint8, uint64

from pipeline.arrays import F32, I64, U8, U64
from pipeline.compiled import njit
from pipeline.embedding.device.tinylfu import LINE_WORDS, PERIOD_COUNTS, SAMPLE_LOOKUPS, count, estimate, halve, line_of
from pipeline.embedding.kernels import WANTED, array_type, splitmix64, tuple_type
from pipeline.embedding.memory import (
    compare_and_swap,
    fence_acquire,
    fence_release,
    first_bit,
    load_acquire,
    load_f32,
    load_u8,
    match_keys,
    mover,
    prefetch,
    store_release,
    store_u8,
    unpacker,
)
from pipeline.embedding.tier import DEFAULT_STATUS, PENDING_STATUS, STALE_STATUS, WantedArrays

__all__ = [
    "FRESH_TICKS",
    "HEAD_WORDS",
    "LINE_BYTES",
    "WAYS",
    "CacheArrays",
    "find_rows",
    "held_keys",
    "keep_rows",
    "sweep_rows",
]


WAYS = 6
LINE_BYTES = 64
BLOCK_IDS = 64
_BLOCK_U64, _NONE_U64 = np.uint64(BLOCK_IDS), np.uint64(0xFFFFFFFFFFFFFFFF)
TRIES = 4
FRESH_TICKS = 8
"""Ticks that a row stays fresh. Births are stored modulo 256 ticks, so old rows are removed before they wrap around."""

# Offsets of the state in a set, each in units of its own size.
_LOCK_WORD = 12  # uint32: places taken, a bit each; BUSY; count of writes
_STAMPS_BYTE, _BORN_BYTE = 52, 58  # uint8 [6]
_TAKEN_MASK, _BUSY_FLAG, _WRITE_MASK = np.uint32(63), np.uint32(64), np.uint32(128)

# Words of the head, which all users of one cache share. Plain counts: racing threads may lose one.
HEAD_WORDS = 16
NOW, SEEN, CALLS, COUNTED, HAND, HELD, ENTERED, REFUSED, CONTENDED, SWEPT = range(10)

FLOAT32_CODE, FLOAT16_CODE, INT8_CODE = 0, 1, 2
"""Row formats. An int8 row has its float32 scale before its numbers."""


@njit(inline="always", cache=True)
def _set_of(mixed: Any, sets: Any) -> Any:
    # The high half of the hash scaled to the number of sets (Lemire 2019), so capacities need not be powers of two.
    return ((mixed >> np.uint64(32)) * sets) >> np.uint64(32)


_unpack32, _unpack16, _unpack8 = unpacker("float32"), unpacker("float16"), unpacker("int8")
_pack16 = mover("float16", 1, pack=True)
_copy_weight = mover("float32", 1)


@njit(inline="always", cache=True)
def _read_row(kind: Any, source: Any, to: Any, width: Any) -> None:
    """Copy a row between addresses. Not arrays: numba would count their references for each row."""
    if kind == FLOAT32_CODE:
        _unpack32(to, source, np.float32(0.0), np.uint64(width))
    elif kind == FLOAT16_CODE:
        _unpack16(to, source, np.float32(0.0), np.uint64(width))
    else:
        _unpack8(to, source + np.uint64(4), load_f32(source), np.uint64(width))


@njit(inline="always", cache=True)
def _write_row(kind: Any, stored: Any, floats: Any, slot: Any, rows: Any, at: Any, width: Any) -> None:
    if kind == FLOAT32_CODE:
        for c in range(width):
            floats[slot, c] = rows[at + c]
    elif kind == FLOAT16_CODE:
        source = np.uint64(rows.ctypes.data) + np.uint64(4) * np.uint64(at)
        to = np.uint64(stored.ctypes.data) + np.uint64(slot) * np.uint64(stored.shape[1])
        for c in range(width):
            _pack16(to + np.uint64(2 * c), source + np.uint64(4 * c), np.float32(0.0))
    else:
        largest = np.float32(0.0)
        for c in range(width):
            largest = max(largest, abs(rows[at + c]))
        scale = largest / np.float32(127.0)
        floats[slot, 0] = scale
        for c in range(width):
            number = np.rint(rows[at + c] / scale) if scale > 0 else np.float32(0.0)
            stored[slot, 4 + c] = np.uint8(np.int8(number))


@njit(inline="always", cache=True)
def _is_old(line: Any, way: Any, tick: Any) -> Any:
    """Whether the row at a place of the set at this address is too old."""
    born = load_u8(line + np.uint64(_BORN_BYTE) + np.uint64(way))
    return tick >= 0 and np.uint8(np.uint8(tick) - born) > np.uint8(FRESH_TICKS)


@njit(inline="always", cache=True)
def _age(line: Any, way: Any, now: Any) -> Any:
    return np.uint8(now - load_u8(line + np.uint64(_STAMPS_BYTE) + np.uint64(way)))


@njit(inline="always", cache=True)
def _oldest(line: Any, now: Any) -> Any:
    """The least recently used place of the set at this address."""
    way = np.int64(0)
    for w in range(1, WAYS):
        if _age(line, w, now) > _age(line, way, now):
            way = np.int64(w)
    return way


@njit(inline="always", cache=True)
def _advance(head: Any, sketch: Any, looked: Any, counted: Any, sets: Any, lines: Any) -> None:
    """Advance the clock of last use, which starts at 1, and halve the counters that are due."""
    head[SEEN] += looked
    every = max(np.uint64(1), sets // np.uint64(2))  # 12 ticks are as many lookups as there are rows
    if head[SEEN] >= every:
        head[NOW] += head[SEEN] // every
        head[SEEN] = np.uint64(0)
    head[COUNTED] += counted
    while head[COUNTED] >= np.uint64(PERIOD_COUNTS):
        head[COUNTED] -= np.uint64(PERIOD_COUNTS)
        halve(sketch, head[HAND] % lines)
        head[HAND] += np.uint64(1)


_CACHE = tuple_type(
    array_type(uint64), array_type(int64, 2), array_type(uint8, 2), array_type(float32, 2), array_type(uint64)
)
CacheArrays = tuple[U64, I64, U8, F32, U64]
"""The arrays of a cache: head `[HEAD_WORDS]`, sets `[S, 8]`, stored rows by bytes `[S * WAYS, stride]` and the same as
float32, sketch."""


@njit(inline="always", cache=True)
def _home(key: Any, set_at: Any, size: Any) -> Any:
    """Hash of a key and the number of its set, whose cache line is prefetched."""
    mixed = splitmix64(key)
    home = _set_of(mixed, size)
    prefetch(set_at + home * np.uint64(LINE_BYTES))
    return mixed, home


@njit(inline="always", cache=True)
def _match(set_at: Any, home: Any, key: Any, row_at: Any, stride: Any) -> Any:
    """Place of a key in its set, `_NONE_U64` where it is not held, and the lock; the row is prefetched."""
    line = set_at + home * np.uint64(LINE_BYTES)
    lock = load_acquire(line + np.uint64(4 * _LOCK_WORD))
    held = match_keys(line, key) & lock & _TAKEN_MASK
    way = _NONE_U64
    if held != 0:
        way = first_bit(held)
        source = row_at + (home * np.uint64(WAYS) + way) * stride
        prefetch(source)
        if stride > np.uint64(LINE_BYTES):
            prefetch(source + np.uint64(LINE_BYTES))
    return way, lock & ~_BUSY_FLAG  # a write under way never equals what the lock is later


@njit(cache=True)
def _find_again(line: Any, key: Any, source: Any, to: Any, width: Any, kind: Any, tick: Any) -> Any:
    """Look an id up again whose set was written while it was read. 0: not held, 1: copied, 2: copied, and old.

    Args:
        line: address of the set.
        source: address of the set's first row, and bytes of a row.
        to: addresses of the row and of the weight, 0: there are no weights.
    """
    (row_at, stride), (row_to, weight_to) = source, to
    lock_at = line + np.uint64(4 * _LOCK_WORD)
    for _ in range(TRIES):
        lock = load_acquire(lock_at)
        if lock & _BUSY_FLAG:
            continue
        ways = match_keys(line, key) & lock & _TAKEN_MASK
        if ways == 0:
            break
        way = first_bit(ways)
        row = row_at + way * stride
        _read_row(kind, row, row_to, width)
        if weight_to != 0:
            _copy_weight(weight_to, row + stride - np.uint64(4), np.float32(0.0))
        old = _is_old(line, way, tick)
        fence_acquire()
        if load_acquire(lock_at) == lock:
            return 2 if old else 1
    return 0


@njit(types.void(WANTED, _CACHE, int64, int64, uint8, int64), nogil=True, cache=True)
def find_rows(wanted: WantedArrays, cache: CacheArrays, width: int, kind: int, mark: int, tick: int) -> None:
    """Copy rows and weights of what is open and held, mark and stamp them, all in one pass.

    Args:
        wanted: `Wanted.arrays`.
        width, kind: d, and the format of the stored rows.
        mark: written into `found`, with `STALE_STATUS` where the row is older than `FRESH_TICKS`.
        tick: the time in ticks; -1: rows do not age.
    """
    keys, at, rows, linear_at, linear, found = wanted
    head, sets, stored, _, sketch = cache
    size, total = np.uint64(sets.shape[0]), np.uint64(len(keys))
    lines = np.uint64(len(sketch) // LINE_WORDS)
    weighted = len(linear) > 0
    set_at, row_at = np.uint64(sets.ctypes.data), np.uint64(stored.ctypes.data)
    sketch_at = np.uint64(sketch.ctypes.data)
    rows_at, linear_to = np.uint64(rows.ctypes.data), np.uint64(linear.ctypes.data)
    stride = np.uint64(stored.shape[1])
    hashes, homes = np.empty(2 * BLOCK_IDS, np.uint64), np.empty(2 * BLOCK_IDS, np.uint64)
    ways, locked = np.empty(BLOCK_IDS, np.uint64), np.empty(BLOCK_IDS, np.uint32)
    # A cache that is less than half full admits every row, and need not count.
    counting = np.uint64(2) * head[HELD] >= size * np.uint64(WAYS)
    # A new phase for each call, or requests of one length would always count the same fields.
    phase = splitmix64(head[CALLS]) & np.uint64(SAMPLE_LOOKUPS - 1)
    head[CALLS] += np.uint64(1)
    counted = np.uint64(0)
    now = np.uint8(head[NOW])
    for p in range(min(_BLOCK_U64, total)):
        hashes[p], homes[p] = _home(keys[p], set_at, size)
    half = np.uint64(0)
    for start in range(np.uint64(0), total, _BLOCK_U64):
        block = min(_BLOCK_U64, total - start)
        ahead = min(_BLOCK_U64, total - start - block)
        other = _BLOCK_U64 - half
        sampled = block if counting else np.uint64(0)
        for p in range(phase, sampled, np.uint64(SAMPLE_LOOKUPS)):
            prefetch(sketch_at + line_of(hashes[half + p], lines) * np.uint64(8))
        for p in range(block):
            # The sets of the next block are fetched together with the rows of this one.
            if p < ahead:
                hashes[other + p], homes[other + p] = _home(keys[start + block + p], set_at, size)
            q, home = start + p, homes[half + p]
            if found[q] != PENDING_STATUS and found[q] < STALE_STATUS:
                ways[p] = _NONE_U64
            else:
                ways[p], locked[p] = _match(set_at, home, keys[q], row_at, stride)
        for p in range(phase, sampled, np.uint64(SAMPLE_LOOKUPS)):
            count(sketch, hashes[half + p], lines)
            counted += np.uint64(1)
        for p in range(block):
            q, way, home = start + p, ways[p], homes[half + p]
            if way == _NONE_U64:
                continue
            line = set_at + home * np.uint64(LINE_BYTES)
            source = row_at + (home * np.uint64(WAYS) + way) * stride
            row_to = rows_at + np.uint64(4 * at[q])
            weight_to = linear_to + np.uint64(4 * linear_at[q]) if weighted else np.uint64(0)
            _read_row(kind, source, row_to, width)
            if weighted:
                _copy_weight(weight_to, source + stride - np.uint64(4), np.float32(0.0))
            old = _is_old(line, way, tick)
            fence_acquire()
            if load_acquire(line + np.uint64(4 * _LOCK_WORD)) == locked[p]:
                found[q] = mark | STALE_STATUS if old else mark
                # Once per tick at most: a line written on each read would move between cores.
                if load_u8(line + np.uint64(_STAMPS_BYTE) + way) != now:
                    store_u8(line + np.uint64(_STAMPS_BYTE) + way, now)
            else:
                first = source - way * stride
                result = _find_again(line, keys[q], (first, stride), (row_to, weight_to), width, kind, tick)
                found[q] = PENDING_STATUS if result == 0 else mark if result == 1 else mark | STALE_STATUS
        half = other
    _advance(head, sketch, total, counted, size, lines)


@njit(inline="always", cache=True)
def _release(line: Any, lock: Any, way: Any, now: Any, tick: Any) -> None:
    """End a write into a place of the set at this address, whose lock was `lock` before it."""
    store_u8(line + np.uint64(_STAMPS_BYTE + way), now)
    store_u8(line + np.uint64(_BORN_BYTE + way), np.uint8(tick))
    store_release(line + np.uint64(4 * _LOCK_WORD), (lock | (np.uint32(1) << np.uint32(way))) + _WRITE_MASK)


@njit(types.void(WANTED, _CACHE, int64, int64, uint8, int64, boolean), nogil=True, cache=True)
def keep_rows(
    wanted: WantedArrays, cache: CacheArrays, width: int, kind: int, mark: int, tick: int, overwrite: bool
) -> None:
    """Write rows that lower tiers found (`mark < found < DEFAULT`) into the cache.

    A row that is held is replaced where it is too old, or with `overwrite`. A new one takes a free place, or that of the
    least recently used row of its set if it is requested more often (TinyLFU). Arguments as `find_rows`.
    """
    keys, at, rows, linear_at, linear, found = wanted
    head, sets, stored, floats, sketch = cache
    size = np.uint64(sets.shape[0])
    lines = np.uint64(len(sketch) // LINE_WORDS)
    weighted = len(linear) > 0
    set_at, sketch_at = np.uint64(sets.ctypes.data), np.uint64(sketch.ctypes.data)
    now, last = np.uint8(head[NOW]), floats.shape[1] - 1
    chosen, asked = np.empty(BLOCK_IDS, np.int64), np.empty(BLOCK_IDS, np.uint64)
    total = len(keys)
    start = 0
    while start < total:
        block = 0
        while start < total and block < BLOCK_IDS:
            if mark < found[start] < DEFAULT_STATUS:
                mixed, _ = _home(keys[start], set_at, size)
                chosen[block], asked[block] = start, mixed
                block += 1
                prefetch(sketch_at + line_of(mixed, lines) * np.uint64(8))
            start += 1
        # Most offered rows are requested rarely and are refused at once. For the others, fetch what they would replace.
        left = 0
        for p in range(block):
            h = _set_of(asked[p], size)
            line = set_at + h * np.uint64(LINE_BYTES)
            lock = load_acquire(line + np.uint64(4 * _LOCK_WORD))
            if lock & _TAKEN_MASK == _TAKEN_MASK and match_keys(line, keys[chosen[p]]) & _TAKEN_MASK == 0:
                if estimate(sketch, asked[p], lines) == 0:
                    head[REFUSED] += np.uint64(1)
                    continue
                victim = sets[h, _oldest(line, now)]
                prefetch(sketch_at + line_of(splitmix64(victim), lines) * np.uint64(8))
            chosen[left], asked[left] = chosen[p], asked[p]
            left += 1
        for p in range(left):
            q, mixed = chosen[p], asked[p]
            h = _set_of(mixed, size)
            line = set_at + h * np.uint64(LINE_BYTES)
            lock = load_acquire(line + np.uint64(4 * _LOCK_WORD))
            if lock & _BUSY_FLAG:
                head[CONTENDED] += np.uint64(1)
                continue
            taken = lock & _TAKEN_MASK
            ways = match_keys(line, keys[q]) & taken
            held = ways != 0
            if held:
                way = np.int64(first_bit(ways))
                if not (overwrite or _is_old(line, way, tick)):
                    continue
            elif taken != _TAKEN_MASK:
                way = np.int64(first_bit(~taken))
            else:
                way = _oldest(line, now)
                rival = estimate(sketch, splitmix64(sets[h, way]), lines)
                if estimate(sketch, mixed, lines) <= rival:
                    head[REFUSED] += np.uint64(1)
                    continue
            # The lock is still what it was before all this was read, or another thread was faster.
            if not compare_and_swap(line + np.uint64(4 * _LOCK_WORD), lock, lock | _BUSY_FLAG):
                head[CONTENDED] += np.uint64(1)
                continue
            fence_release()
            sets[h, way] = keys[q]
            slot = np.int64(h) * WAYS + way
            _write_row(kind, stored, floats, slot, rows, at[q], width)
            if weighted:
                floats[slot, last] = linear[linear_at[q]]
            _release(line, lock, way, now, tick)
            head[ENTERED] += np.uint64(not held)
            head[HELD] += np.uint64(not held and taken != _TAKEN_MASK)


@njit(types.void(_CACHE, int64, boolean), nogil=True, cache=True)
def sweep_rows(cache: CacheArrays, tick: int, everything: bool) -> None:
    """Remove rows that are too old, or all, before their births wrap around."""
    head, sets, _, _, _ = cache
    lock_at = np.uint64(sets.ctypes.data) + np.uint64(4 * _LOCK_WORD)
    for h in range(sets.shape[0]):
        at = lock_at + np.uint64(h) * np.uint64(LINE_BYTES)
        lock = load_acquire(at)
        kept = lock
        for w in range(WAYS):
            if everything or _is_old(at - np.uint64(4 * _LOCK_WORD), w, tick):
                kept &= ~(np.uint32(1) << np.uint32(w))
        if kept != lock and not lock & _BUSY_FLAG and compare_and_swap(at, lock, lock | _BUSY_FLAG):
            store_release(at, kept + _WRITE_MASK)
            for w in range(WAYS):
                head[HELD] -= np.uint64(((lock ^ kept) >> np.uint32(w)) & np.uint32(1))


@njit(int64(_CACHE, array_type(int64)), nogil=True, cache=True)
def held_keys(cache: CacheArrays, out: I64) -> int:
    """Write the keys held into `out`, at most `len(out)`: the most recently used of every set first, then the next of every
    set, and so on. Returns their number. Exact while no thread writes."""
    head, sets, _, _, _ = cache
    now = np.uint8(head[NOW])
    used = 0
    for rank in range(WAYS):
        for h in range(sets.shape[0]):
            line = np.uint64(sets.ctypes.data) + np.uint64(h) * np.uint64(LINE_BYTES)
            lock = load_acquire(line + np.uint64(4 * _LOCK_WORD))
            for w in range(WAYS):
                if not (lock >> np.uint32(w)) & np.uint32(1):
                    continue
                before = 0
                for v in range(WAYS):
                    if (lock >> np.uint32(v)) & np.uint32(1):
                        mine, other = _age(line, w, now), _age(line, v, now)
                        before += other < mine or (other == mine and v < w)
                if before == rank:
                    if used == len(out):
                        return used
                    out[used] = sets[h, w]
                    used += 1
    return used
