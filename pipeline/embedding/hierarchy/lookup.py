"""Compiled loops around the tiers: from columns of ids to `Wanted`, and from found rows to the network's inputs.

Before the tiers, ids become keys and places. After them, ids that no tier found get their default row, context is copied
to the candidates, bags are pooled, and every id is counted by table and tier. Functions are serial and release the GIL.
`pipeline.embedding.hierarchy.store` calls them; nothing here knows a tier.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numba import float32, int32, int64, types, uint8

from pipeline.arrays import F32, I32, I64, U8
from pipeline.compiled import njit
from pipeline.embedding.kernels import array_type, tuple_type
from pipeline.embedding.tier import DEFAULT_STATUS, PENDING_STATUS

__all__ = ["OFFSET", "PLACE", "SALT", "TABLE", "pool_bag", "settle_bag", "settle_ids", "want_bag", "want_ids"]


_read, _write = partial(array_type, readonly=True), array_type

OFFSET, PLACE, TABLE, SALT = range(4)
"""Rows of an array int64 `[4, fields]` that describes fields: first column of `embeddings` (-1: the field belongs to
another width or block), column of `linear`, table within the group, and the salt of the table."""


@njit(
    int64(_read(int64, 2), _read(int32), _read(int64, 2), int64, int64, _write(int64, 2), _write(uint8)),
    nogil=True,
    cache=True,
)
def want_ids(values: I64, columns: I32, fields: I64, width: int, places: int, out: I64, found: U8) -> int:
    """Keys and places of id columns of one width group, all marked pending. Returns their number.

    Args:
        values: `[r, k]`.
        columns: `[k]`, the field of each column, an index into `fields`.
        fields: `[4, fields]`, see `OFFSET`.
        width, places: columns of `embeddings` and `linear`.
        out: `[3, m]`, m at least r k: `keys`, `at` and `linear_at` of a `Wanted`.
        found: `[m]`, of the same.
    """
    keys, at, linear_at = out[0], out[1], out[2]
    r: int = values.shape[0]
    mine, salt, offset, place = np.empty((4, len(columns)), np.int64)
    count = 0
    for j in range(len(columns)):
        column = columns[j]
        if fields[OFFSET, column] >= 0:
            mine[count], salt[count] = j, fields[SALT, column]
            offset[count], place[count] = fields[OFFSET, column], fields[PLACE, column]
            count += 1
    # A loop per array, without branches: the compiler vectorizes them.
    for i in range(r):
        first = i * count
        if count == len(columns):
            for c in range(count):
                keys[first + c] = values[i, c] ^ salt[c]
        else:
            for c in range(count):
                keys[first + c] = values[i, mine[c]] ^ salt[c]
        for c in range(count):
            at[first + c] = i * width + offset[c]
        for c in range(count):
            linear_at[first + c] = i * places + place[c]
    found[: r * count] = PENDING_STATUS
    return r * count


@njit(
    types.void(
        int64, _read(int32), _read(int64, 2), tuple_type(_read(float32, 2), _read(float32)),
        _write(float32, 2), _write(float32, 2), _write(uint8), _write(int64, 2),
    ),
    nogil=True,
    cache=True,
)  # fmt: skip
def settle_ids(
    r: int, columns: I32, fields: I64, defaults: tuple[F32, F32], embeddings: F32, linear: F32, found: U8, counts: I64
) -> None:
    """Fill default rows for pending ids, count all ids, and copy one row of context (`r` is 1) to every candidate.

    Args:
        columns, fields: as `want_ids`; a field's table is its row of `defaults` and of `counts`.
        defaults: rows `[T, d]` and weights `[T]`.
        embeddings, linear: `[n, W]`, `[n, F]` or no rows.
        found: as the tiers left it; pending ids get `DEFAULT_STATUS`.
        counts: `[T, 256]`, added to, by `found`.
    """
    rows, weights = defaults
    offsets, places, tables = fields[OFFSET], fields[PLACE], fields[TABLE]
    width = rows.shape[1]
    weighted = linear.shape[0] > 0
    used = 0
    for i in range(r):
        for j in range(len(columns)):
            column = columns[j]
            if offsets[column] < 0:
                continue
            table = tables[column]
            if found[used] == PENDING_STATUS:
                found[used] = DEFAULT_STATUS
                for c in range(width):
                    embeddings[i, offsets[column] + c] = rows[table, c]
                if weighted:
                    linear[i, places[column]] = weights[table]
            counts[table, found[used]] += 1
            used += 1
    if r == 1:
        for i in range(1, embeddings.shape[0]):
            for j in range(len(columns)):
                offset = offsets[columns[j]]
                if offset >= 0:
                    for c in range(width):
                        embeddings[i, offset + c] = embeddings[0, offset + c]
                    if weighted:
                        linear[i, places[columns[j]]] = linear[0, places[columns[j]]]


@njit(
    types.void(_read(int64), int64, int64, _write(int64), _write(int64), _write(int64), _write(uint8)),
    nogil=True,
    cache=True,
)
def want_bag(values: I64, salt: int, width: int, keys: I64, at: I64, linear_at: I64, found: U8) -> None:
    """Keys and places of a bag's elements `[m]`, whose rows go into `[m, width]`."""
    for i in range(len(values)):
        keys[i] = values[i] ^ salt
        at[i] = i * width
        linear_at[i] = i
        found[i] = PENDING_STATUS


@njit(
    types.void(int64, _read(float32), float32, _write(float32), _write(float32), _write(uint8), _write(int64, 2)),
    nogil=True,
    cache=True,
)
def settle_bag(
    table: int, default: F32, default_weight: float, rows: F32, weights: F32, found: U8, counts: I64
) -> None:
    """Fill default rows for pending elements and count all. Arguments as `settle_ids`, of one table."""
    width = len(default)
    for i in range(len(found)):
        if found[i] == PENDING_STATUS:
            found[i] = DEFAULT_STATUS
            for c in range(width):
                rows[i * width + c] = default[c]
            if len(weights):
                weights[i] = default_weight
        counts[table, found[i]] += 1


@njit(
    types.void(
        _read(int32), int64, int64, int64, _read(float32), _read(float32), _write(float32, 2),
        _write(float32, 2),
    ),
    nogil=True,
    cache=True,
)  # fmt: skip
def pool_bag(
    bounds: I32, width: int, offset: int, place: int, rows: F32, weights: F32, embeddings: F32, linear: F32
) -> None:
    """Write mean rows and weights of ragged bags (`bounds` `[r + 1]`) into one field's columns; an empty bag gives zeros."""
    weighted = linear.shape[0] > 0
    for i in range(len(bounds) - 1):
        for c in range(width):
            embeddings[i, offset + c] = 0.0
        weight = np.float32(0.0)
        first, last = np.int64(bounds[i]), np.int64(bounds[i + 1])
        for e in range(first, last):
            for c in range(width):
                embeddings[i, offset + c] += rows[e * width + c]
            if weighted:
                weight += weights[e]
        if last > first:
            part = np.float32(1.0) / np.float32(last - first)
            for c in range(width):
                embeddings[i, offset + c] *= part
            weight *= part
        if weighted:
            linear[i, place] = weight
    if len(bounds) == 2:
        for i in range(1, embeddings.shape[0]):
            for c in range(width):
                embeddings[i, offset + c] = embeddings[0, offset + c]
            if weighted:
                linear[i, place] = linear[0, place]
