"""Format of rows in Redis, and the compiled loops between arrays and Redis' wire format.

Key: `PREFIX_BYTES` bytes of the generation, then the eight bytes of the salted id. Value:

    check u32 | scale f32, int8 only | weight f32, where the architecture has one | the row, d numbers of the format

`check` is a hash of generation, key and the rest of the value. A value of another id, generation, width or format, a
truncated or a foreign one fails it and is never served. All numbers are little-endian.

A lookup's ids are sent as one MGET and its values received as one array of strings; neither becomes Python objects.
Functions are serial, hold no state and release the GIL. `pipeline.embedding.redis.tier` calls them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import uint8, uint16, uint32, uint64

from pipeline.arrays import F32, I32, I64, U8
from pipeline.bundle.row_format import RowFormat, encode_rows
from pipeline.compiled import njit
from pipeline.embedding.kernels import splitmix64
from pipeline.embedding.memory import copy_bytes, loader
from pipeline.embedding.tier import PENDING_STATUS, STALE_STATUS, WantedArrays

__all__ = [
    "KEY_BYTES",
    "PREFIX_BYTES",
    "RedisRowLayout",
    "collect",
    "encode",
    "keys_of",
    "scan",
    "scatter",
    "write_mget",
]


PREFIX_BYTES = 6
KEY_BYTES = PREFIX_BYTES + 8
CHECK_BYTES = 4

CRLF_MASK = np.uint64(0x0A0D)
MORE_STATUS, DONE_STATUS, REFUSED_STATUS, GARBAGE_STATUS = 0, 1, 2, 3
"""Results of `scan`: the reply is incomplete, complete, an error of the server, or not in Redis' format."""

Reply = tuple[U8, I64, I32]
"""A reply's bytes; start and size of each value."""
KernelLayout = tuple[int, int, bool]

_KINDS: dict[RowFormat, int] = {"float32": 0, "float16": 1, "int8": 2}
_ITEM = {"float32": 4, "float16": 2, "int8": 1}


@dataclass(frozen=True, slots=True)
class RedisRowLayout:
    """Layout of the values of one width group.

    Args:
        width: d.
        linear: whether a value carries a weight.
        format: of the row's numbers.
    """

    width: int
    linear: bool
    format: RowFormat

    @property
    def numbers(self) -> KernelLayout:
        """Format, width and whether there is a weight, as `scatter` takes them."""
        return _KINDS[self.format], self.width, self.linear

    @property
    def row_at(self) -> int:
        """Offset of the row in a value."""
        return CHECK_BYTES + 4 * (self.format == "int8") + 4 * self.linear

    @property
    def bytes(self) -> int:
        """Bytes of one value."""
        return self.row_at + _ITEM[self.format] * self.width


def encode(layout: RedisRowLayout, seed: int, keys: I64, rows: F32, weights: F32 | None) -> U8:
    """Values uint8 `[n, layout.bytes]` of salted ids `[n]`, rows `[n, d]` and, where the layout has them, weights `[n]`.

    Raises:
        InvalidInput: a row is not finite, or too large for float16.
    """
    values = np.zeros((len(keys), layout.bytes), np.uint8)
    numbers, scales = encode_rows(rows, layout.format)
    at = CHECK_BYTES
    if scales is not None:
        values[:, at : at + 4] = scales.view(np.uint8).reshape(-1, 4)
        at += 4
    if layout.linear:
        assert weights is not None
        values[:, at : at + 4] = np.ascontiguousarray(weights).view(np.uint8).reshape(-1, 4)
    values[:, layout.row_at :] = np.ascontiguousarray(numbers).view(np.uint8).reshape(len(keys), -1)
    _seal(np.ascontiguousarray(keys), np.uint64(seed), values)
    return values


def keys_of(prefix: bytes, keys: I64) -> list[bytes]:
    """Keys of salted ids `[n]` in Redis. `prefix`: of the generation."""
    raw = np.empty((len(keys), KEY_BYTES), np.uint8)
    raw[:, :PREFIX_BYTES] = np.frombuffer(prefix, np.uint8)
    raw[:, PREFIX_BYTES:] = keys.astype("<i8").view(np.uint8).reshape(-1, 8)
    flat = raw.tobytes()
    return [flat[at : at + KEY_BYTES] for at in range(0, len(flat), KEY_BYTES)]


_load64, _load32, _load16, _load8 = (loader(kind, 1) for kind in (uint64, uint32, uint16, uint8))


@njit(inline="always", cache=True)
def _check(key: Any, seed: Any, start: Any, size: Any) -> Any:
    """32 bits of a multiplicative hash over the bytes at an address."""
    mixed = splitmix64(np.uint64(key) ^ seed)
    at = np.uint64(start)
    for _ in range(size >> 3):
        mixed = (mixed ^ _load64(at)) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(32)
        at += np.uint64(8)
    for _ in range(size & 7):
        mixed = (mixed ^ np.uint64(_load8(at))) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(32)
        at += np.uint64(1)
    return np.uint32(splitmix64(mixed ^ np.uint64(size)) & np.uint64(0xFFFFFFFF))


@njit(nogil=True, cache=True)
def _seal(keys: I64, seed: Any, values: U8) -> None:
    size = values.shape[1] - CHECK_BYTES
    for i in range(values.shape[0]):
        check = _check(keys[i], seed, np.uint64(values[i].ctypes.data) + np.uint64(CHECK_BYTES), size)
        for b in range(CHECK_BYTES):
            values[i, b] = np.uint8((check >> np.uint32(8 * b)) & np.uint32(255))


@njit(nogil=True, cache=True)
def collect(keys: I64, found: U8, cells: I32, unique: I64, used: int, places: I32) -> int:
    """Append the distinct open keys to `unique`. Returns the new number of keys in it.

    Args:
        keys, found: `[m]`, as in `Wanted`.
        cells: scratch of the lookup: a power of two of zeros at first, more than twice its ids.
        unique, used: `[u]`, of which earlier groups have used the first `used`.
        places: int32 `[m]`, gets each key's place in `unique`, -1 where it is not open.
    """
    mask = np.uint64(len(cells) - 1)
    for i in range(len(keys)):
        places[i] = -1
        if found[i] != PENDING_STATUS and found[i] < STALE_STATUS:
            continue
        cell = splitmix64(keys[i]) & mask
        while cells[cell] != 0 and unique[cells[cell] - 1] != keys[i]:
            cell = (cell + np.uint64(1)) & mask
        if cells[cell] == 0:
            unique[used] = keys[i]
            used += 1
            cells[cell] = used
        places[i] = cells[cell] - 1
    return used


@njit(nogil=True, cache=True)
def write_mget(keys: I64, head: U8, prefix: U8, out: U8) -> int:
    """Write `head`, then every key as `$14 CRLF prefix id CRLF`, into `out`. Returns the bytes written."""
    at = 0
    for b in range(len(head)):
        out[at] = head[b]
        at += 1
    for i in range(len(keys)):
        out[at], out[at + 1], out[at + 2], out[at + 3], out[at + 4] = 36, 49, 52, 13, 10  # "$14\r\n"
        at += 5
        for b in range(PREFIX_BYTES):
            out[at + b] = prefix[b]
        at += PREFIX_BYTES
        key = np.uint64(keys[i])
        for b in range(8):
            out[at + b] = np.uint8((key >> np.uint64(8 * b)) & np.uint64(255))
        out[at + 8], out[at + 9] = 13, 10
        at += 10
    return at


@njit(inline="always", cache=True)
def _number(data: Any, at: Any, end: Any) -> Any:
    """Decimal number and CRLF at `at`: (value, end), (0, -1) when it is incomplete, (0, -2) when it is not a number."""
    negative = at < end and data[at] == 45
    if negative:
        at += 1
    value: Any = 0
    digits = 0
    while at < end and 48 <= data[at] <= 57 and digits < 10:
        value = value * 10 + (np.int64(data[at]) - 48)
        at += 1
        digits += 1
    if at + 2 > end:
        if at < end and (digits == 0 or data[at] != 13):
            return 0, -2
        return 0, -1
    if digits == 0 or data[at] != 13 or data[at + 1] != 10:
        return 0, -2
    return (-value if negative else value), at + 2


@njit(inline="always", cache=True)
def _size(data: Any, base: Any, at: Any, end: Any) -> Any:
    """`_number` after a "$" at `at`; sizes of two and three digits, and -1, take only a few instructions."""
    word = _load64(base + np.uint64(at))
    if end - at >= 5 and word & np.uint64(0xFFFF0000FF) == np.uint64(0x0A0D000024):  # "$", two bytes, CRLF
        ten, one = (
            np.int64(word >> np.uint64(8) & np.uint64(255)) - 48,
            np.int64(word >> np.uint64(16) & np.uint64(255)) - 48,
        )
        if 0 <= ten <= 9 and 0 <= one <= 9:
            return ten * 10 + one, at + 5
        if ten == -3 and one == 1:
            return -1, at + 5
    if end - at >= 6 and word & np.uint64(0xFFFF000000FF) == np.uint64(0x0A0D00000024):  # "$", three bytes, CRLF
        hundred = np.int64(word >> np.uint64(8) & np.uint64(255)) - 48
        ten, one = (
            np.int64(word >> np.uint64(16) & np.uint64(255)) - 48,
            np.int64(word >> np.uint64(24) & np.uint64(255)) - 48,
        )
        if 0 <= hundred <= 9 and 0 <= ten <= 9 and 0 <= one <= 9:
            return hundred * 100 + ten * 10 + one, at + 6
    if data[at] != 36:
        return 0, -2
    return _number(data, at + 1, end)


@njit(nogil=True, cache=True)
def scan(data: U8, filled: int, state: I64, starts: I64, sizes: I32) -> int:
    """Continue parsing the reply to an MGET of `len(starts)` keys: the place of each value in `data[:filled]`.

    Args:
        data: longer than `filled` by at least 8.
        state: int64 `[2]`, zeros before the first call: bytes read, values read plus one.
        starts, sizes: `[n]`; size -1: the key does not exist.

    Returns:
        `MORE_STATUS`, `DONE_STATUS`, `REFUSED_STATUS` or `GARBAGE_STATUS`.
    """
    at, index = state[0], state[1]
    if index == 0:
        if filled == 0:
            return MORE_STATUS
        if data[0] == 45:  # "-"
            return REFUSED_STATUS
        if data[0] != 42:  # "*"
            return GARBAGE_STATUS
        count, end = _number(data, 1, filled)
        if end < 0:
            return MORE_STATUS if end == -1 else GARBAGE_STATUS
        if count != len(starts):
            return GARBAGE_STATUS
        at, index = end, 1
    result = MORE_STATUS
    base = np.uint64(data.ctypes.data)
    while index <= len(starts):
        if at >= filled:
            break
        size, end = _size(data, base, at, filled)
        if end == -2 or size < -1 or size > len(data):
            result = GARBAGE_STATUS
            break
        if end == -1:
            break
        if size == -1:
            starts[index - 1], sizes[index - 1] = 0, -1
            at = end
        else:
            if end + size + 2 > filled:
                break
            if _load64(base + np.uint64(end + size)) & np.uint64(0xFFFF) != CRLF_MASK:
                result = GARBAGE_STATUS
                break
            starts[index - 1], sizes[index - 1] = end, size
            at = end + size + 2
        index += 1
    state[0], state[1] = at, index
    if index <= len(starts):
        return result
    return DONE_STATUS if at == filled else GARBAGE_STATUS


@njit(nogil=True, cache=True)
def scatter(
    reply: Reply,
    unique: I64,
    places: I32,
    seed: Any,
    layout: KernelLayout,
    wanted: WantedArrays,
    mark: int,
    counts: I64,
) -> None:
    """Copy rows and weights of one width group to their places in a `Wanted`; each value is checked first.

    float16 becomes float32 by its bits, as numba has no half type on the CPU.

    Args:
        reply: as `scan` left it, without the mark's value.
        unique: `[u]`, the keys sent; places: `[m]`, place of each wanted key in `unique`, -1: it was not sent.
        seed: of the generation's checks.
        layout: `RedisRowLayout.numbers`.
        wanted: `Wanted.arrays`; found ids get `mark`.
        counts: int64 `[3]`, increased by ids found, missing, damaged.
    """
    data, starts, sizes = reply
    kind, width, weighted = layout
    _, row_at, rows, linear_at, weights, found = wanted
    checked = np.zeros(len(unique), np.uint8)
    bits = rows.view(np.uint32)
    head = CHECK_BYTES + (4 if kind == 2 else 0) + (4 if weighted else 0)
    size = head + (4 if kind == 0 else 2 if kind == 1 else 1) * width
    base = np.uint64(data.ctypes.data)
    rows_base, weights_base = np.uint64(rows.ctypes.data), np.uint64(weights.ctypes.data)
    scale = np.zeros(1, np.float32)
    for i in range(len(places)):
        place = places[i]
        if place < 0:
            continue
        if sizes[place] < 0:
            counts[1] += 1
            continue
        at = base + np.uint64(starts[place])
        if checked[place] == 0:
            good = sizes[place] == size and _load32(at) == _check(
                unique[place], np.uint64(seed), at + np.uint64(CHECK_BYTES), size - CHECK_BYTES
            )
            checked[place] = 1 if good else 2
        if checked[place] == 2:
            counts[2] += 1
            continue
        to = row_at[i]
        start = at + np.uint64(head)
        if kind == 0:
            copy_bytes(rows_base + np.uint64(4 * to), start, 4 * width)
        elif kind == 1:
            for c in range(width):
                half = np.uint32(_load16(start + np.uint64(2 * c)))
                # Move exponent and fraction to their float32 places, then correct for the other exponent bias.
                bits[to + c] = (half & np.uint32(0x7FFF)) << np.uint32(13)
                rows[to + c] *= np.float32(5.192296858534828e33)  # 2^112
                bits[to + c] |= (half & np.uint32(0x8000)) << np.uint32(16)
        else:
            copy_bytes(np.uint64(scale.ctypes.data), at + np.uint64(CHECK_BYTES), 4)
            for c in range(width):
                rows[to + c] = np.float32(np.int8(_load8(start + np.uint64(c)))) * scale[0]
        if weighted:
            copy_bytes(weights_base + np.uint64(4 * linear_at[i]), start - np.uint64(4), 4)
        found[i] = mark
        counts[0] += 1
