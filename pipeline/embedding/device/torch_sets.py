"""Loops of the device cache as torch operations, for a cache in the memory of a GPU.

The cache works as in `sets` and `tinylfu`: a key's set is found by hash, a bit marks taken places since every 64-bit key
is legal, least recent use decides what leaves and TinyLFU what enters. A set has eight places here, as no cache line
bounds it. The other difference is how a batch runs. On the CPU, threads take ids one after another and may race; here, a
batch is a fixed sequence of gathers, compares and masked scatters over all ids at once, the same on every run. No shape
depends on data and the host reads nothing back, so that a CUDA graph can capture `find_rows` and `keep_rows`. Masked-out
writes go to one spare place behind the last set, which no lookup reads.

Calls on one cache run one after another on one CUDA stream, which `pipeline.embedding.device.torch_cache` ensures.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.bundle.row_format import RowFormat
from pipeline.embedding.device.sets import FRESH_TICKS
from pipeline.embedding.device.tinylfu import PERIOD_COUNTS, SAMPLE_LOOKUPS

__all__ = ["ENTERED", "HELD", "LONGEST_TICKS", "REFUSED", "Found", "Sets", "find_rows", "keep_rows", "splitmix64"]

WAYS = 8
LINE_COUNTERS = 128
"""Counters of a line, of which an id has one in each quarter. There is a line per set."""
MAX_COUNT = 15
"""Highest count."""
LONGEST_TICKS = 128
"""Ticks after which a row counts as not held."""
HELD, ENTERED, REFUSED = range(3)
"""Places of `Sets.tally`."""

_DTYPES: dict[RowFormat, torch.dtype] = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}
_LOW_MASK = 0xFFFFFFFF
_M1, _M2, _M3 = (m - (1 << 64) for m in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0x9E3779B97F4A7C15))


def _shift(x: Tensor, bits: int) -> Tensor:
    # torch shifts signed numbers arithmetically: the sign bits that come in at the top are masked out.
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def splitmix64(keys: Tensor) -> Tensor:
    """`pipeline.embedding.kernels.splitmix64`, its bits as int64: products of int64 wrap."""
    x = (keys ^ _shift(keys, 30)) * _M1
    x = (x ^ _shift(x, 27)) * _M2
    return x ^ _shift(x, 31)


@dataclass(frozen=True, slots=True, eq=False)
class Sets:
    """Arrays of a cache of one width: P = 8 * sets places and a spare one, all on one device.

    Attributes:
        keys: int64 `[P + 1]`; place p of set s is `8 s + p`.
        taken: bool `[P + 1]`.
        stamps: int32 `[P + 1]`, `now` at the last use.
        born: int32 `[P + 1]`, tick at which the row came.
        rows: float32, float16 or int8 `[P + 1, d]`.
        scales: float32 `[P + 1]` of int8 rows, else `[0]`.
        weights: float32 `[P + 1]` where ids have a weight, else `[0]`.
        counts: uint8 `[128 lines + 1]`, 0 to 15.
        now, seen: int32 `[1]`, the clock of last use, and ids looked up since it last advanced. It advances 64 times in
            as many lookups as there are rows, and may wrap: ages are differences modulo 2^32.
        calls, counted, hand: int64 `[1]`, lookups, counts since the last halving, the line that is halved next.
        tally: int64 `[3]`: rows held, entered, refused.
    """

    keys: Tensor
    taken: Tensor
    stamps: Tensor
    born: Tensor
    rows: Tensor
    scales: Tensor
    weights: Tensor
    counts: Tensor
    now: Tensor
    seen: Tensor
    calls: Tensor
    counted: Tensor
    hand: Tensor
    tally: Tensor

    @classmethod
    def empty(
        cls, sets: int, width: int, stored: RowFormat = "float32", *, linear: bool = False, device: torch.device
    ) -> Sets:
        """A cache of `8 * sets` rows that holds none."""
        places = WAYS * sets + 1

        def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        return cls(
            keys=zeros(places, dtype=torch.int64),
            taken=zeros(places, dtype=torch.bool),
            stamps=zeros(places, dtype=torch.int32),
            born=zeros(places, dtype=torch.int32),
            rows=zeros(places, width, dtype=_DTYPES[stored]),
            scales=zeros(places if stored == "int8" else 0, dtype=torch.float32),
            weights=zeros(places if linear else 0, dtype=torch.float32),
            counts=zeros(sets * LINE_COUNTERS + 1, dtype=torch.uint8),
            now=zeros(1, dtype=torch.int32) + 1,
            seen=zeros(1, dtype=torch.int32),
            calls=zeros(1, dtype=torch.int64),
            counted=zeros(1, dtype=torch.int64),
            hand=zeros(1, dtype=torch.int64),
            tally=zeros(3, dtype=torch.int64),
        )

    @property
    def sets(self) -> int:
        """Number of sets. The sketch has as many lines."""
        return len(self.keys) // WAYS

    @property
    def spare(self) -> int:
        """The place that no lookup reads."""
        return len(self.keys) - 1

    @property
    def bytes(self) -> int:
        """Of device memory: per row its numbers, 17 bytes of place, 16 of the sketch, and its weight and scale."""
        tensors: list[Tensor] = [getattr(self, field.name) for field in fields(self)]
        return sum(tensor.nbytes for tensor in tensors)


class Found(NamedTuple):
    """Result of a lookup: `held` bool `[m]`; `old` bool `[m]`, held but not fresh; `rows` float32 `[m, d]` and `weights`
    float32 `[m]` or `[0]`, undefined where not held."""

    held: Tensor
    old: Tensor
    rows: Tensor
    weights: Tensor


def find_rows(sets: Sets, keys: Tensor, wanted: Tensor, tick: Tensor) -> Found:
    """Look ids up, stamp those that are held, count the lookup.

    Args:
        keys: int64 `[m]` on the cache's device; may repeat.
        wanted: bool `[m]`; the others are counted, and not held.
        tick: int32 `[1]`, the time; -1: rows do not age.
    """
    mixed = splitmix64(keys)
    place, held = _find(sets, keys, mixed)
    age = _age(sets, place, tick)
    held = held & wanted & (age <= LONGEST_TICKS)
    place = torch.where(held, place, sets.spare)
    rows = sets.rows[place].to(torch.float32)
    if len(sets.scales):
        rows = rows * sets.scales[place][:, None]
    weights = sets.weights[place] if len(sets.weights) else sets.weights
    sets.stamps.index_copy_(0, place, sets.now.expand(len(keys)))
    _count(sets, mixed)
    _advance(sets, len(keys))
    return Found(held, held & (age > FRESH_TICKS), rows, weights)


def keep_rows(
    sets: Sets, keys: Tensor, rows: Tensor, weights: Tensor, wanted: Tensor, tick: Tensor, *, overwrite: bool = False
) -> None:
    """Take rows that were found elsewhere.

    Of an id that repeats, the first wanted row counts. A row that is held is replaced where it is no longer fresh, or with
    `overwrite`. New ids of a set are taken in the order of their keys, as signed numbers: the k-th gets the set's k-th
    place, free places first, then the least recently used. A row is replaced if the new id is requested more often
    (TinyLFU); a set takes at most eight new ids of a batch, the rest are refused.

    Args:
        keys: int64 `[m]`; rows: float32 `[m, d]`; weights: float32 `[m]`, or `[0]` where ids have none.
        wanted: bool `[m]`; the others are skipped.
        tick: int32 `[1]`, the time; -1: rows do not age.
    """
    order = keys.argsort(stable=True)
    order = order[(~wanted[order]).to(torch.uint8).argsort(stable=True)]  # what is wanted first, by key
    keys, rows, wanted = keys[order], rows[order], wanted[order]
    weights = weights[order] if len(weights) else weights
    once = wanted & ~_repeats(keys)
    mixed = splitmix64(keys)
    place, held = _find(sets, keys, mixed)
    new = once & ~held
    again = once & held
    if not overwrite:
        again = again & (_age(sets, place, tick) > FRESH_TICKS)
    places = _places(sets, mixed)
    idle = (sets.now - sets.stamps[places]).to(torch.int64)  # wraps in int32, on purpose
    ways = torch.where(sets.taken[places], idle, 1 << 40).argsort(dim=1, descending=True, stable=True)
    rank = _rank(torch.where(new, places[:, 0], -1))
    victim = places.gather(1, ways.gather(1, rank.clamp(max=WAYS - 1)[:, None]))[:, 0]
    free = ~sets.taken[victim]
    wins = _estimate(sets, mixed) > _estimate(sets, splitmix64(sets.keys[victim]))
    enters = new & (rank < WAYS) & (free | wins)
    sets.tally.add_(torch.stack([(enters & free).sum(), enters.sum(), (new & ~enters).sum()]))
    _write(sets, torch.where(enters, victim, torch.where(again, place, sets.spare)), keys, rows, weights, tick)


def _places(sets: Sets, mixed: Tensor) -> Tensor:
    """The eight places of ids, int64 `[m, 8]`: the high half of the hash scaled to the number of sets (Lemire 2019)."""
    first = ((_shift(mixed, 32) * sets.sets) >> 32) * WAYS
    return first[:, None] + torch.arange(WAYS, device=mixed.device)


def _find(sets: Sets, keys: Tensor, mixed: Tensor) -> tuple[Tensor, Tensor]:
    """The place of ids int64 `[m]`, the spare one where not held, and whether they are held."""
    places = _places(sets, mixed)
    match = sets.taken[places] & (sets.keys[places] == keys[:, None])
    held = match.any(dim=1)
    place = places.gather(1, match.to(torch.uint8).argmax(dim=1, keepdim=True))[:, 0]
    return torch.where(held, place, sets.spare), held


def _age(sets: Sets, place: Tensor, tick: Tensor) -> Tensor:
    """Ticks since a row came, int32 `[m]`; 0 where rows do not age."""
    return torch.where(tick >= 0, tick - sets.born[place], 0)


def _write(sets: Sets, target: Tensor, keys: Tensor, rows: Tensor, weights: Tensor, tick: Tensor) -> None:
    """Write rows into places. No two ids have the same one, except the spare, which no lookup reads."""
    count = len(keys)
    if len(sets.scales):
        scales = rows.abs().amax(dim=1) / 127
        sets.scales.index_copy_(0, target, scales)
        rows = torch.where(scales[:, None] > 0, (rows / scales[:, None]).round(), 0.0)
    sets.rows.index_copy_(0, target, rows.to(sets.rows.dtype))
    if len(sets.weights):
        sets.weights.index_copy_(0, target, weights)
    sets.keys.index_copy_(0, target, keys)
    sets.stamps.index_copy_(0, target, sets.now.expand(count))
    sets.born.index_copy_(0, target, tick.expand(count))
    sets.taken.index_copy_(0, target, target != sets.spare)


def _counters(sets: Sets, mixed: Tensor) -> Tensor:
    """The four counters of ids, int64 `[m, 4]`: a line by the low half of the hash, one in each quarter of it."""
    line = ((mixed & _LOW_MASK) * sets.sets) >> 32
    chosen = (mixed ^ _shift(mixed, 29)) * _M3
    quarter = LINE_COUNTERS // 4
    within = (chosen[:, None] >> torch.arange(0, 64, 16, device=mixed.device)) & (quarter - 1)
    return line[:, None] * LINE_COUNTERS + torch.arange(0, LINE_COUNTERS, quarter, device=mixed.device) + within


def _estimate(sets: Sets, mixed: Tensor) -> Tensor:
    return sets.counts[_counters(sets, mixed)].amin(dim=1)


def _count(sets: Sets, mixed: Tensor) -> None:
    """Count every `SAMPLE_LOOKUPS`-th id, starting at another one each time, and halve the lines that are due.

    Ids that share a counter in one batch all write the same number, so an id that repeats counts once: no atomics, and
    every run gives the same counts.
    """
    m, unread = len(mixed), len(sets.counts) - 1
    at = torch.arange(m, device=mixed.device)
    turn = at % SAMPLE_LOOKUPS == splitmix64(sets.calls) & (SAMPLE_LOOKUPS - 1)
    counters = torch.where(turn[:, None], _counters(sets, mixed), unread).reshape(-1)
    sets.counts.index_copy_(0, counters, (sets.counts[counters] + 1).clamp(max=MAX_COUNT))
    sets.calls.add_(1)
    sets.counted.add_(turn.sum())
    due = sets.counted // PERIOD_COUNTS
    most = min(sets.sets, m // (SAMPLE_LOOKUPS * PERIOD_COUNTS) + 2)
    step = torch.arange(most, device=mixed.device)
    lines = (sets.hand + step) % sets.sets
    each = lines[:, None] * LINE_COUNTERS + torch.arange(LINE_COUNTERS, device=mixed.device)
    each = torch.where(step[:, None] < due, each, unread).reshape(-1)
    sets.counts.index_copy_(0, each, sets.counts[each] >> 1)
    sets.counted.remainder_(PERIOD_COUNTS)
    sets.hand.add_(due).remainder_(sets.sets)


def _advance(sets: Sets, count: int) -> None:
    every = max(1, sets.sets // 8)
    sets.seen.add_(count)
    sets.now.add_(sets.seen // every)
    sets.seen.remainder_(every)


def _repeats(ordered: Tensor) -> Tensor:
    """Whether an entry equals the one before."""
    return torch.cat([torch.zeros_like(ordered[:1], dtype=torch.bool), ordered[1:] == ordered[:-1]])


def _rank(groups: Tensor) -> Tensor:
    """How many entries before an entry have its group."""
    order = groups.argsort(stable=True)
    at = torch.arange(len(groups), device=groups.device)
    first = torch.where(_repeats(groups[order]), 0, at).cummax(0).values
    return torch.empty_like(at).scatter_(0, order, at - first)
