"""The compiled loops of the request path: find an id in mapped segments and copy its row to where the network reads it.

One segment is a pair of arrays: `cells` int64 `[C, 2]` (key; slot plus one in the low half and the linear weight's bits
in the high half of the second word) and `rows` float32 `[V, d]`. Key and weight share a cache line, so an id costs two
misses, and both are prefetched for a block of ids at a time. Functions are serial and release the GIL.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import float32, int32, int64, njit, types, uint32
from numba.core import cgutils
from numba.extending import intrinsic

from pipeline.embedding.kernels import splitmix64

__all__ = ["gather_bag", "gather_ids", "place"]

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
U32 = npt.NDArray[np.uint32]
F32 = npt.NDArray[np.float32]

BLOCK = 64
SLOT, WEIGHT = 2, 3  # 32-bit words of a cell


def _emit_prefetch(typing_context: Any, address: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        declare: Any = cgutils.get_or_insert_function
        pointer = builder.inttoptr(arguments[0], byte)
        builder.call(declare(builder.module, kind, "llvm.prefetch.p0"), [pointer, word(0), word(3), word(1)])
        return context.get_dummy_value()

    return types.void(types.uintp), emit


_prefetch: Any = intrinsic(_emit_prefetch)
"""Asks the processor for the cache line at an address."""


@njit(inline="always", cache=True)
def _cell(mixed: Any, cells: Any) -> Any:
    # The high half of the hash scaled to the number of cells (Lemire 2019), so tables need not be powers of two.
    return ((mixed >> np.uint64(32)) * np.uint64(cells)) >> np.uint64(32)


@njit(inline="always", cache=True)
def _probe(key: Any, mixed: Any, cells: Any, words: Any) -> Any:
    """The cell that holds a key, or -1."""
    size = np.uint64(cells.shape[0])
    if size == 0:
        return np.int64(-1)
    at = _cell(mixed, size)
    while words[at, SLOT] != 0:
        if cells[at, 0] == key:
            return np.int64(at)
        at += np.uint64(1)
        if at == size:
            at = np.uint64(0)
    return np.int64(-1)


@njit(inline="always", cache=True)
def _copy(source: Any, slot: Any, out: Any, row: Any, offset: Any) -> None:
    width = source.shape[1]
    # Widths that are constants to the compiler become a few vector moves.
    if width == 16:
        for c in range(16):
            out[row, offset + c] = source[slot, c]
    elif width == 8:
        for c in range(8):
            out[row, offset + c] = source[slot, c]
    else:
        for c in range(width):
            out[row, offset + c] = source[slot, c]


@njit(inline="always", cache=True)
def _add(source: Any, slot: Any, out: Any, row: Any, offset: Any) -> None:
    for c in range(source.shape[1]):
        out[row, offset + c] += source[slot, c]


@njit(inline="always", cache=True)
def _copy_within(out: Any, row: Any, offset: Any, width: Any) -> None:
    if width == 16:
        for c in range(16):
            out[row, offset + c] = out[0, offset + c]
    else:
        for c in range(width):
            out[row, offset + c] = out[0, offset + c]


def _read(dtype: Any, dimensions: int) -> Any:
    return types.Array(dtype, dimensions, "C", readonly=True)


_SEGMENT = (_read(int64, 2), _read(uint32, 2), _read(float32, 2), _read(float32, 2))
_OUT = (types.Array(float32, 2, "C"), types.Array(float32, 2, "C"), types.Array(int64, 1, "C"))
_DEFAULT = (_read(float32, 2), _read(float32, 1))


@njit(
    types.void(
        _read(int64, 2), _read(int32, 1), _read(int64, 1), _read(int64, 1), _read(int64, 1), _read(int64, 1),
        *_DEFAULT, *_SEGMENT, *_SEGMENT, *_OUT,
    ),
    nogil=True,
    cache=True,
)  # fmt: skip
def gather_ids(
    values: I64,
    columns: I32,
    salts: I64,
    offsets: I64,
    places: I64,
    tables: I64,
    defaults: F32,
    default_weights: F32,
    over_cells: I64,
    over_words: U32,
    over_weights: F32,
    over_rows: F32,
    base_cells: I64,
    base_words: U32,
    base_weights: F32,
    base_rows: F32,
    out: F32,
    linear: F32,
    counts: I64,
) -> None:
    """Rows of id columns into `out` `[n, W]`, their weights into `linear` `[n, F]` (no rows: not used).

    Args:
        values: `[r, k]`; one row (context) is looked up once and written to all n.
        columns: `[k]`, into the arrays by field: salts (xor-ed into the id), offsets (first column of `out`, -1: the
            field belongs to another width), places (column of `linear`), tables (row of `defaults`).
        defaults, default_weights: `[T, d]`, `[T]`, for ids that neither segment holds.
        over_*, base_*: the two segments, newest first, each as cells and its views by 32-bit word, and rows.
        counts: `[3]`, added to: ids found in the first segment, in the second, in none.
    """
    r, k = values.shape
    weighted = linear.shape[0] > 0
    width = defaults.shape[1]
    overlaid = over_cells.shape[0] > 0
    over_size, base_size = np.uint64(over_cells.shape[0]), np.uint64(base_cells.shape[0])
    over_at, base_at = np.uint64(over_cells.ctypes.data), np.uint64(base_cells.ctypes.data)
    over_first, base_first = np.uint64(over_rows.ctypes.data), np.uint64(base_rows.ctypes.data)
    stride = np.uint64(4 * width)
    mixed = np.empty(BLOCK, np.uint64)
    tier = np.empty(BLOCK, np.int64)
    slot = np.empty(BLOCK, np.int64)
    total = r * k
    i0, j0 = 0, 0
    for start in range(0, total, BLOCK):
        size = min(BLOCK, total - start)
        i, j = i0, j0
        for p in range(size):
            mixed[p] = splitmix64(values[i, j] ^ salts[columns[j]])
            if overlaid:
                _prefetch(over_at + _cell(mixed[p], over_size) * np.uint64(16))
            _prefetch(base_at + _cell(mixed[p], base_size) * np.uint64(16))
            j += 1
            if j == k:
                i, j = i + 1, 0
        i, j = i0, j0
        for p in range(size):
            column = columns[j]
            if offsets[column] >= 0:
                key = values[i, j] ^ salts[column]
                cell = np.int64(-1)
                if overlaid:
                    cell = _probe(key, mixed[p], over_cells, over_words)
                if cell >= 0:
                    tier[p], slot[p] = 0, np.int64(over_words[cell, SLOT]) - 1
                    _prefetch(over_first + np.uint64(slot[p]) * stride)
                    if weighted:
                        linear[i, places[column]] = over_weights[cell, WEIGHT]
                else:
                    cell = _probe(key, mixed[p], base_cells, base_words)
                    if cell >= 0:
                        tier[p], slot[p] = 1, np.int64(base_words[cell, SLOT]) - 1
                        _prefetch(base_first + np.uint64(slot[p]) * stride)
                        if weighted:
                            linear[i, places[column]] = base_weights[cell, WEIGHT]
                    else:
                        tier[p], slot[p] = 2, tables[column]
                        if weighted:
                            linear[i, places[column]] = default_weights[tables[column]]
                counts[tier[p]] += 1
            j += 1
            if j == k:
                i, j = i + 1, 0
        i, j = i0, j0
        for p in range(size):
            offset = offsets[columns[j]]
            if offset >= 0:
                if tier[p] == 1:
                    _copy(base_rows, slot[p], out, i, offset)
                elif tier[p] == 0:
                    _copy(over_rows, slot[p], out, i, offset)
                else:
                    _copy(defaults, slot[p], out, i, offset)
            j += 1
            if j == k:
                i, j = i + 1, 0
        i0, j0 = i, j
    if r == 1:
        for i in range(1, out.shape[0]):
            for j in range(k):
                offset = offsets[columns[j]]
                if offset >= 0:
                    _copy_within(out, i, offset, width)
                    if weighted:
                        linear[i, places[columns[j]]] = linear[0, places[columns[j]]]


@njit(
    types.void(
        _read(int64, 1), _read(int32, 1), int64, int64, int64, int64,
        *_DEFAULT, *_SEGMENT, *_SEGMENT, *_OUT,
    ),
    nogil=True,
    cache=True,
)  # fmt: skip
def gather_bag(
    values: I64,
    bounds: I32,
    salt: int,
    offset: int,
    place_: int,
    table: int,
    defaults: F32,
    default_weights: F32,
    over_cells: I64,
    over_words: U32,
    over_weights: F32,
    over_rows: F32,
    base_cells: I64,
    base_words: U32,
    base_weights: F32,
    base_rows: F32,
    out: F32,
    linear: F32,
    counts: I64,
) -> None:
    """Mean rows of ragged bags (`bounds` `[r + 1]` into `values`) into one field's columns; an empty bag gives zeros.

    Unknown elements count with the default row. Weights are averaged in the same way. Other arguments as `gather_ids`.
    """
    weighted = linear.shape[0] > 0
    width = defaults.shape[1]
    for i in range(bounds.shape[0] - 1):
        for c in range(width):
            out[i, offset + c] = 0.0
        weight = np.float32(0.0)
        first, last = np.int64(bounds[i]), np.int64(bounds[i + 1])
        for e in range(first, last):
            key = values[e] ^ salt
            mixed = splitmix64(key)
            cell = _probe(key, mixed, over_cells, over_words)
            if cell >= 0:
                _add(over_rows, np.int64(over_words[cell, SLOT]) - 1, out, i, offset)
                weight += over_weights[cell, WEIGHT]
                counts[0] += 1
                continue
            cell = _probe(key, mixed, base_cells, base_words)
            if cell >= 0:
                _add(base_rows, np.int64(base_words[cell, SLOT]) - 1, out, i, offset)
                weight += base_weights[cell, WEIGHT]
                counts[1] += 1
                continue
            _add(defaults, table, out, i, offset)
            weight += default_weights[table]
            counts[2] += 1
        if last > first:
            share = np.float32(1.0) / np.float32(last - first)
            for c in range(width):
                out[i, offset + c] *= share
            weight *= share
        if weighted:
            linear[i, place_] = weight
    if bounds.shape[0] == 2:
        for i in range(1, out.shape[0]):
            _copy_within(out, i, offset, width)
            if weighted:
                linear[i, place_] = linear[0, place_]


@njit(nogil=True, cache=True)
def place(ids: I64, salt: int, weights: F32, cells: I64, words: U32, word_weights: F32, used: int, slots: I64) -> int:
    """Put ids into cells, a new one at slot `used`, `used + 1`, ...; slots into `slots`; the new number of slots used.

    An id that is there keeps its slot and takes the new weight. `weights` may be empty.
    """
    size = np.uint64(cells.shape[0])
    for i in range(len(ids)):
        key = ids[i] ^ salt
        at = _cell(splitmix64(key), size)
        while words[at, SLOT] != 0 and cells[at, 0] != key:
            at += np.uint64(1)
            if at == size:
                at = np.uint64(0)
        if words[at, SLOT] == 0:
            cells[at, 0] = key
            words[at, SLOT] = np.uint32(used + 1)
            used += 1
        if len(weights):
            word_weights[at, WEIGHT] = weights[i]
        slots[i] = np.int64(words[at, SLOT]) - 1
    return used
