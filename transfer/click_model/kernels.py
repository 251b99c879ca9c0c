"""Compiled loops over the rows of embedding tables: create, gather, collect gradients, update.

Arrays in, arrays out; no state. All cost follows the rows touched. Serial on purpose: sums are then the same on every
run, and resuming is exact to the bit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pipeline.arrays import F32, I32, I64
from pipeline.compiled import njit
from pipeline.embedding.kernels import splitmix64

__all__ = [
    "GradientSums",
    "Values",
    "adagrad",
    "adam",
    "collect_bag",
    "collect_ids",
    "gather_bag",
    "gather_ids",
    "initialise",
    "label_new",
    "salted",
]


class Values(NamedTuple):
    """Rows and weights by slot, and by table those of unknown ids.

    `rows` float32 `[slots, d]`, `weights` float32 `[slots]` (not read where no weights are asked for), `default` float32
    `[tables, d]`, `default_weight` float32 `[tables]`.
    """

    rows: F32
    weights: F32
    default: F32
    default_weight: F32


class GradientSums(NamedTuple):
    """Gradient sums of the slots touched since the last step, and the counters of all slots.

    `place` int32 `[slots]` is a slot's place in the sums (-1: none), `batch` int64 the slot of each place, `vectors` float32
    `[places, d]`, `weights` float32 `[places]`; `counts` and `seen` int64 `[slots]`: how often and when ids came last.
    """

    place: I32
    batch: I64
    vectors: F32
    weights: F32
    counts: I64
    seen: I64


@njit(nogil=True, cache=True)
def salted(ids: I64, salts: I64, out: I64) -> None:
    """Keys of ids int64 `[n, k]` in columns with `salts` int64 `[k]`: equal ids of different tables get different keys.

    Padding stays 0.
    """
    for i in range(ids.shape[0]):
        for j in range(ids.shape[1]):
            out[i, j] = ids[i, j] ^ salts[j] if ids[i, j] != 0 else 0


@njit(nogil=True, cache=True)
def label_new(ids: I64, slots: I64, tables: I32, first: int, row_ids: I64, row_tables: I32) -> None:
    """Store id and table of every slot from `first` on; `ids`, `slots` are `[n, k]`, `tables` `[k]`."""
    for i in range(slots.shape[0]):
        for j in range(slots.shape[1]):
            slot = slots[i, j]
            if slot >= first:
                row_ids[slot] = ids[i, j]
                row_tables[slot] = tables[j]


@njit(nogil=True, cache=True)
def initialise(
    first: int, last: int, row_ids: I64, row_tables: I32, seed: int, scale: float, default: F32, rows: F32
) -> None:
    """Rows first..last at their table's default row plus noise of deviation `scale` that depends on id and seed alone."""
    span = np.float32(scale * np.sqrt(3.0))
    for slot in range(first, last):
        table = row_tables[slot]
        key = splitmix64(np.uint64(row_ids[slot]) ^ splitmix64(np.uint64(seed + 1000003 * (table + 1))))
        for j in range(rows.shape[1]):
            unit = np.float32(splitmix64(key + np.uint64(j + 1)) >> np.uint64(40)) / np.float32(8388608.0)
            rows[slot, j] = default[table, j] + span * (unit - np.float32(1.0))


@njit(nogil=True, cache=True)
def gather_ids(slots: I64, tables: I32, columns: I32, values: Values, out: F32, linear: F32) -> None:
    """Vectors of slots `[n, k]` into columns of `out` `[n, F, d]`, weights into `linear` `[n, F]` (no rows: not used)."""
    rows, weights, default, default_weight = values
    wide = linear.shape[0] > 0
    for i in range(slots.shape[0]):
        for j in range(slots.shape[1]):
            slot, column = slots[i, j], columns[j]
            if slot >= 0:
                for c in range(rows.shape[1]):
                    out[i, column, c] = rows[slot, c]
            else:
                for c in range(rows.shape[1]):
                    out[i, column, c] = default[tables[j], c]
            if wide:
                linear[i, column] = weights[slot] if slot >= 0 else default_weight[tables[j]]


@njit(nogil=True, cache=True)
def gather_bag(slots: I64, offsets: I32, table: int, column: int, values: Values, out: F32, linear: F32) -> None:
    """Mean vectors and weights of ragged bags into one column; an empty bag gives zeros."""
    rows, weights, default, default_weight = values
    wide = linear.shape[0] > 0
    for i in range(len(offsets) - 1):
        for c in range(rows.shape[1]):
            out[i, column, c] = 0.0
        if wide:
            linear[i, column] = 0.0
        start, stop = offsets[i], offsets[i + 1]
        if start == stop:
            continue
        fraction = np.float32(1.0) / np.float32(stop - start)
        for e in range(start, stop):
            slot = slots[e]
            for c in range(rows.shape[1]):
                out[i, column, c] += rows[slot, c] if slot >= 0 else default[table, c]
            if wide:
                linear[i, column] += weights[slot] if slot >= 0 else default_weight[table]
        for c in range(rows.shape[1]):
            out[i, column, c] *= fraction
        if wide:
            linear[i, column] *= fraction


@njit(inline="always", cache=True)
def _place(slot: Any, place: Any, batch: Any, used: Any, sums: Any, linear_sums: Any) -> Any:
    """The slot's place in this batch's sums, a new zeroed one on first sight; and the number of places used."""
    at = place[slot]
    if at < 0:
        at = used
        place[slot] = used
        batch[used] = slot
        for c in range(sums.shape[1]):
            sums[used, c] = 0.0
        linear_sums[used] = 0.0
        used += 1
    return at, used


@njit(nogil=True, cache=True)
def collect_ids(slots: I64, columns: I32, grad: F32, linear_grad: F32, into: GradientSums, used: int, now: int) -> int:
    """Add gradients `[n, F, d]` of id columns up per slot; the new number of places used."""
    place, batch, sums, linear_sums, counts, seen = into
    vectors, wide = grad.shape[0] > 0, linear_grad.shape[0] > 0
    for i in range(slots.shape[0]):
        for j in range(slots.shape[1]):
            slot = slots[i, j]
            if slot < 0:
                continue
            at, used = _place(slot, place, batch, used, sums, linear_sums)
            counts[slot] += 1
            seen[slot] = now
            column = columns[j]
            if vectors:
                for c in range(sums.shape[1]):
                    sums[at, c] += grad[i, column, c]
            if wide:
                linear_sums[at] += linear_grad[i, column]
    return used


@njit(nogil=True, cache=True)
def collect_bag(
    slots: I64, offsets: I32, column: int, grad: F32, linear_grad: F32, into: GradientSums, used: int, now: int
) -> int:
    """The same for one bag column: the bag's gradient is divided evenly among its elements."""
    place, batch, sums, linear_sums, counts, seen = into
    vectors, wide = grad.shape[0] > 0, linear_grad.shape[0] > 0
    for i in range(len(offsets) - 1):
        start, stop = offsets[i], offsets[i + 1]
        if start == stop:
            continue
        fraction = np.float32(1.0) / np.float32(stop - start)
        for e in range(start, stop):
            slot = slots[e]
            if slot < 0:
                continue
            at, used = _place(slot, place, batch, used, sums, linear_sums)
            counts[slot] += 1
            seen[slot] = now
            if vectors:
                for c in range(sums.shape[1]):
                    sums[at, c] += fraction * grad[i, column, c]
            if wide:
                linear_sums[at] += fraction * linear_grad[i, column]
    return used


@njit(nogil=True, cache=True)
def adagrad(batch: I64, sums: F32, scale: float, rate: float, rows: F32, squares: F32) -> None:
    """Row-wise Adagrad: one accumulated mean square per row (Duchi et al. 2011; row-wise as in DLRM, arXiv 1906.00091)."""
    factor, step = np.float32(scale), np.float32(rate)
    width = rows.shape[1]
    for at in range(len(batch)):
        slot = batch[at]
        square = np.float32(0.0)
        for c in range(width):
            g = sums[at, c] * factor
            square += g * g
        squares[slot] += square / np.float32(width)
        pace = step / (np.sqrt(squares[slot]) + np.float32(1e-10))
        for c in range(width):
            rows[slot, c] -= pace * (sums[at, c] * factor)


@njit(nogil=True, cache=True)
def adam(batch: I64, sums: F32, scale: float, rate: float, rows: F32, squares: F32, momentum: F32, steps: I64) -> None:
    """Row-wise lazy Adam: a momentum per number, a second moment and a step count per row (Kingma, Ba, arXiv 1412.6980)."""
    factor = np.float32(scale)
    b1, b2 = np.float32(0.9), np.float32(0.999)
    width = rows.shape[1]
    for at in range(len(batch)):
        slot = batch[at]
        steps[slot] += 1
        square = np.float32(0.0)
        for c in range(width):
            g = sums[at, c] * factor
            square += g * g
            momentum[slot, c] = b1 * momentum[slot, c] + (np.float32(1.0) - b1) * g
        squares[slot] = b2 * squares[slot] + (np.float32(1.0) - b2) * square / np.float32(width)
        t = np.float64(steps[slot])
        first, second = 1.0 - 0.9**t, 1.0 - 0.999**t
        pace = np.float32(rate / first / (np.sqrt(squares[slot] / second) + 1e-8))
        for c in range(width):
            rows[slot, c] -= pace * momentum[slot, c]
