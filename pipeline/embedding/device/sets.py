"""The compiled loops of the device cache: sets of six rows, found, copied and replaced by many threads at once.

A set is one cache line, int64 `[8]`: six keys, then 16 bytes of state: a lock of 32 bits, six stamps of last use, six
births. All eight words are compared with a key at once; the lock's low bits say which of the six places are taken, so
every 64-bit key is legal. Rows lie apart, place w of set s at `6 s + w`. An id therefore costs two cache misses, its set
and its row; with eight keys in a line and the state in another it costs three, and a lookup half as much again.

The lock counts writes and has a bit for one under way (a seqlock): a reader copies, looks whether the lock is
still what it was, and takes what it has only then. Nobody waits: a reader that loses `TRIES` times has missed, a writer
that finds a set taken lets its row go. So a process that dies while it writes costs one set.

Functions are serial and release the GIL. `pipeline.embedding.device.cache` owns the arrays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import boolean, float32, int64, types, uint8, uint32, uint64

from pipeline.compiled import njit
from pipeline.embedding.device.tinylfu import LINE_WORDS, PERIOD_COUNTS, SAMPLE_LOOKUPS, count, estimate, halve, line_of
from pipeline.embedding.kernels import splitmix64
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
)
from pipeline.embedding.tier import DEFAULT_STATUS, PENDING_STATUS, STALE_STATUS

__all__ = ["FRESH_TICKS", "HEAD_WORDS", "LINE_BYTES", "WAYS", "find_rows", "held_keys", "keep_rows", "sweep_rows"]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
U32 = npt.NDArray[np.uint32]
U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

WAYS = 6
LINE_BYTES = 64
BLOCK_IDS = 64
_BLOCK_U64, _NONE_U64 = np.uint64(BLOCK_IDS), np.uint64(0xFFFFFFFFFFFFFFFF)
TRIES = 4
FRESH_TICKS = 8
"""Ticks that a row stays fresh; births are kept modulo 256 ticks, so old rows are swept before that."""

# Where the state stands in a set, in units of its own size.
_LOCK_WORD = 12  # uint32: places taken, a bit each; BUSY; count of writes
_STAMPS_BYTE, _BORN_BYTE = 52, 58  # uint8 [6]
_TAKEN_MASK, _BUSY_FLAG, _WRITE_MASK = np.uint32(63), np.uint32(64), np.uint32(128)

# Words of the head: what all users of one cache share. Plain counts; racing threads may lose one.
HEAD_WORDS = 16
NOW, SEEN, CALLS, COUNTED, HAND, HELD, ENTERED, REFUSED, CONTENDED, SWEPT = range(10)

FLOAT32_CODE, FLOAT16_CODE, INT8_CODE = 0, 1, 2
"""Row formats. An int8 row has its float32 scale before its numbers."""


@njit(inline="always", cache=True)
def _set_of(mixed: Any, sets: Any) -> Any:
    # The high half of the hash scaled to the number of sets (Lemire 2019), so capacities need not be powers of two.
    return ((mixed >> np.uint64(32)) * sets) >> np.uint64(32)


def _unpacker(kind: str, size: int) -> Any:
    """A loop that brings `width` numbers of a format, `size` bytes each, from one address to float32 at another."""
    sixteen, eight, one = (mover(kind, lanes) for lanes in (16, 8, 1))
    by16, by8, by1 = np.uint64(16 * size), np.uint64(8 * size), np.uint64(size)

    @njit(inline="always")
    def unpack(source: Any, to: Any, width: Any, scale: Any) -> None:
        left = width
        while left >= 16:
            sixteen(to, source, scale)
            to, source, left = to + np.uint64(64), source + by16, left - 16
        if left >= 8:
            eight(to, source, scale)
            to, source, left = to + np.uint64(32), source + by8, left - 8
        while left > 0:
            one(to, source, scale)
            to, source, left = to + np.uint64(4), source + by1, left - 1

    return unpack


_unpack32, _unpack16, _unpack8 = _unpacker("float32", 4), _unpacker("float16", 2), _unpacker("int8", 1)
_pack16 = mover("float16", 1, pack=True)
_copy_weight = mover("float32", 1)


@njit(inline="always", cache=True)
def _read_row(kind: Any, source: Any, to: Any, width: Any) -> None:
    """From one address to another: no arrays, which numba would count references of for each row."""
    if kind == FLOAT32_CODE:
        _unpack32(source, to, width, np.float32(0.0))
    elif kind == FLOAT16_CODE:
        _unpack16(source, to, width, np.float32(0.0))
    else:
        _unpack8(source + np.uint64(4), to, width, load_f32(source))


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
    """Of a place of the set at this address."""
    born = load_u8(line + np.uint64(_BORN_BYTE) + np.uint64(way))
    return tick >= 0 and np.uint8(np.uint8(tick) - born) > np.uint8(FRESH_TICKS)


@njit(inline="always", cache=True)
def _age(line: Any, way: Any, now: Any) -> Any:
    return np.uint8(now - load_u8(line + np.uint64(_STAMPS_BYTE) + np.uint64(way)))


@njit(inline="always", cache=True)
def _oldest(line: Any, now: Any) -> Any:
    """The place of the set at this address that was used longest ago."""
    way = np.int64(0)
    for w in range(1, WAYS):
        if _age(line, w, now) > _age(line, way, now):
            way = np.int64(w)
    return way


@njit(inline="always", cache=True)
def _advance(head: Any, sketch: Any, looked: Any, counted: Any, sets: Any, lines: Any) -> None:
    """Move the clock of last use, which starts at 1, and halve the counters whose turn has come."""
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


def _array(dtype: Any, dimensions: int, *, readonly: bool = False) -> Any:
    return types.Array(dtype, dimensions, "C", readonly=readonly)


_CACHE = (
    _array(uint64, 1),
    _array(int64, 2),
    _array(uint32, 2),
    _array(uint8, 2),
    _array(uint8, 2),
    _array(float32, 2),
    _array(uint64, 1),
)
"""head [HEAD_WORDS]; sets [S, 8] and the same as locks uint32 [S, 16] and state uint8 [S, 64]; stored rows by bytes
[S * WAYS, stride] and as float32; sketch."""
_WANTED = (
    _array(int64, 1, readonly=True),
    _array(int64, 1, readonly=True),
    _array(int64, 1, readonly=True),
    _array(float32, 1),
    _array(float32, 1),
    _array(uint8, 1),
)
"""keys, at, linear_at, rows, linear, found of a `Wanted`."""


@njit(cache=True)
def _find_again(
    line: Any, key: Any, rows_of_set: Any, stride: Any, row_to: Any, weight_to: Any, width: Any, kind: Any, tick: Any
) -> Any:
    """One id whose set was written while it was read: a few more tries. 0: not there, 1: copied, 2: copied, and old.

    All places are addresses; `weight_to` 0: there are no weights.
    """
    lock_at = line + np.uint64(4 * _LOCK_WORD)
    for _ in range(TRIES):
        lock = load_acquire(lock_at)
        if lock & _BUSY_FLAG:
            continue
        ways = match_keys(line, key) & lock & _TAKEN_MASK
        if ways == 0:
            break
        way = first_bit(ways)
        source = rows_of_set + way * stride
        _read_row(kind, source, row_to, width)
        if weight_to != 0:
            _copy_weight(weight_to, source + stride - np.uint64(4), np.float32(0.0))
        old = _is_old(line, way, tick)
        fence_acquire()
        if load_acquire(lock_at) == lock:
            return 2 if old else 1
    return 0


@njit(types.void(*_WANTED, int64, int64, uint8, int64, *_CACHE), nogil=True, cache=True)
def find_rows(
    keys: I64,
    at: I64,
    linear_at: I64,
    rows: F32,
    linear: F32,
    found: U8,
    width: int,
    kind: int,
    mark: int,
    tick: int,
    head: U64,
    sets: I64,
    locks: U32,
    state: U8,
    stored: U8,
    floats: F32,
    sketch: U64,
) -> None:
    """Rows and weights of what is open and held, each copied, marked and stamped in one pass.

    Args:
        keys, at, linear_at, rows, linear, found: of a `Wanted`.
        width, kind: d, and the format of the stored rows.
        mark: written into `found`, with `STALE_STATUS` where the row is older than `FRESH_TICKS`.
        tick: the time in ticks; -1: rows do not age.
        head, sets, locks, state, stored, floats, sketch: the cache.
    """
    size, total = np.uint64(sets.shape[0]), np.uint64(len(keys))
    lines = np.uint64(len(sketch) // LINE_WORDS)
    weighted = len(linear) > 0
    set_at, row_at = np.uint64(sets.ctypes.data), np.uint64(stored.ctypes.data)
    sketch_at = np.uint64(sketch.ctypes.data)
    rows_at, linear_to = np.uint64(rows.ctypes.data), np.uint64(linear.ctypes.data)
    stride = np.uint64(stored.shape[1])
    hashes, homes = np.empty(2 * BLOCK_IDS, np.uint64), np.empty(2 * BLOCK_IDS, np.uint64)
    ways, locked = np.empty(BLOCK_IDS, np.uint64), np.empty(BLOCK_IDS, np.uint32)
    # A cache with room to spare has nothing to choose, and need not count.
    counting = np.uint64(2) * head[HELD] >= size * np.uint64(WAYS)
    # A new phase for each call, or requests of one length would always count the same fields.
    phase = splitmix64(head[CALLS]) & np.uint64(SAMPLE_LOOKUPS - 1)
    head[CALLS] += np.uint64(1)
    counted = np.uint64(0)
    now = np.uint8(head[NOW])
    for p in range(min(_BLOCK_U64, total)):
        hashes[p] = splitmix64(keys[p])
        homes[p] = _set_of(hashes[p], size)
        prefetch(set_at + homes[p] * np.uint64(LINE_BYTES))
    half = np.uint64(0)
    for start in range(np.uint64(0), total, _BLOCK_U64):
        block = min(_BLOCK_U64, total - start)
        ahead = min(_BLOCK_U64, total - start - block)
        other = _BLOCK_U64 - half
        sampled = block if counting else np.uint64(0)
        for p in range(phase, sampled, np.uint64(SAMPLE_LOOKUPS)):
            prefetch(sketch_at + line_of(hashes[half + p], lines) * np.uint64(8))
        for p in range(block):
            # The sets of the next block travel while the rows of this one do.
            if p < ahead:
                mixed = splitmix64(keys[start + block + p])
                hashes[other + p] = mixed
                homes[other + p] = _set_of(mixed, size)
                prefetch(set_at + homes[other + p] * np.uint64(LINE_BYTES))
            ways[p] = _NONE_U64
            q, home = start + p, homes[half + p]
            if found[q] != PENDING_STATUS and found[q] < STALE_STATUS:
                continue
            line = set_at + home * np.uint64(LINE_BYTES)
            lock = load_acquire(line + np.uint64(4 * _LOCK_WORD))
            locked[p] = lock & ~_BUSY_FLAG  # so that one under way is never what it was
            held = match_keys(line, keys[q]) & lock & _TAKEN_MASK
            if held != 0:
                ways[p] = first_bit(held)
                source = row_at + (home * np.uint64(WAYS) + ways[p]) * stride
                prefetch(source)
                if stride > np.uint64(LINE_BYTES):
                    prefetch(source + np.uint64(LINE_BYTES))
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
                # Once per tick at most: a line written on each read would travel between cores.
                if load_u8(line + np.uint64(_STAMPS_BYTE) + way) != now:
                    store_u8(line + np.uint64(_STAMPS_BYTE) + way, now)
            else:
                result = _find_again(line, keys[q], source - way * stride, stride, row_to, weight_to, width, kind, tick)
                found[q] = PENDING_STATUS if result == 0 else mark if result == 1 else mark | STALE_STATUS
        half = other
    _advance(head, sketch, total, counted, size, lines)


@njit(types.void(*_WANTED, int64, int64, uint8, int64, boolean, *_CACHE), nogil=True, cache=True)
def keep_rows(
    keys: I64,
    at: I64,
    linear_at: I64,
    rows: F32,
    linear: F32,
    found: U8,
    width: int,
    kind: int,
    mark: int,
    tick: int,
    overwrite: bool,
    head: U64,
    sets: I64,
    locks: U32,
    state: U8,
    stored: U8,
    floats: F32,
    sketch: U64,
) -> None:
    """Rows that lower tiers found (`mark < found < DEFAULT`) into the cache.

    A row that is held is written anew where it is too old, or with `overwrite`. A new one takes a free place, or that of
    the least recently used row of its set if it is asked for more often than that (TinyLFU). Arguments as `find_rows`.
    """
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
                mixed = splitmix64(keys[start])
                chosen[block], asked[block] = start, mixed
                block += 1
                prefetch(set_at + _set_of(mixed, size) * np.uint64(LINE_BYTES))
                prefetch(sketch_at + line_of(mixed, lines) * np.uint64(8))
            start += 1
        # Most of what is offered was hardly ever asked for and goes at once. For what may enter, see who would leave.
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
            # The lock says what it said before all this was read, or someone else was faster.
            if not compare_and_swap(line + np.uint64(4 * _LOCK_WORD), lock, lock | _BUSY_FLAG):
                head[CONTENDED] += np.uint64(1)
                continue
            fence_release()
            slot = np.int64(h) * WAYS + way
            sets[h, way] = keys[q]
            _write_row(kind, stored, floats, slot, rows, at[q], width)
            if weighted:
                floats[slot, last] = linear[linear_at[q]]
            state[h, _STAMPS_BYTE + way] = now
            state[h, _BORN_BYTE + way] = np.uint8(tick)
            store_release(line + np.uint64(4 * _LOCK_WORD), (lock | (np.uint32(1) << np.uint32(way))) + _WRITE_MASK)
            if not held:
                head[ENTERED] += np.uint64(1)
                if taken != _TAKEN_MASK:
                    head[HELD] += np.uint64(1)


@njit(types.void(int64, boolean, *_CACHE), nogil=True, cache=True)
def sweep_rows(
    tick: int, everything: bool, head: U64, sets: I64, locks: U32, state: U8, stored: U8, floats: F32, sketch: U64
) -> None:
    """Let go of rows that are too old, or of all, before their births come round again."""
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


@njit(int64(_array(int64, 1), *_CACHE), nogil=True, cache=True)
def held_keys(out: I64, head: U64, sets: I64, locks: U32, state: U8, stored: U8, floats: F32, sketch: U64) -> int:
    """Keys held into `out`, at most `len(out)`: the most recently used of every set first, then the next of every set,
    and so on; their number. Exact while nobody writes."""
    now = np.uint8(head[NOW])
    used = 0
    for rank in range(WAYS):
        for h in range(sets.shape[0]):
            line = np.uint64(sets.ctypes.data) + np.uint64(h) * np.uint64(LINE_BYTES)
            for w in range(WAYS):
                if not (locks[h, _LOCK_WORD] >> np.uint32(w)) & np.uint32(1):
                    continue
                before = 0
                for v in range(WAYS):
                    if (locks[h, _LOCK_WORD] >> np.uint32(v)) & np.uint32(1):
                        mine, other = _age(line, w, now), _age(line, v, now)
                        before += other < mine or (other == mine and v < w)
                if before == rank:
                    if used == len(out):
                        return used
                    out[used] = sets[h, w]
                    used += 1
    return used
