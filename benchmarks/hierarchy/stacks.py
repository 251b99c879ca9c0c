"""Lookups that the bench times: ids in, rows in an array out, through a stack of tiers.

Tiers are driven as `pipeline.embedding.hierarchy.store` drives them, on keys that lie ready: what hashing and features cost is the
engine's bench to tell.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
import torch

from benchmarks.hierarchy.redis_server import PrivateRedis
from benchmarks.hierarchy.tables import BUNDLE, TABLE, IdStream, Tables, chunks_of
from pipeline.arrays import F32, I64, U8
from pipeline.clock import SystemClock
from pipeline.embedding.device.cache import CacheShape, DeviceCache
from pipeline.embedding.device.torch_cache import TorchCache
from pipeline.embedding.redis.breaker import CircuitBreaker
from pipeline.embedding.redis.tier import RedisSource, RedisTier
from pipeline.embedding.redis.updates import RedisUpdater
from pipeline.embedding.segment.generations import open_stack
from pipeline.embedding.segment.tier import SegmentTier
from pipeline.embedding.tier import Generation, Group, Wanted, salt_of

__all__ = [
    "PATIENCE_S",
    "CacheLevel",
    "Level",
    "Lookup",
    "Request",
    "Stack",
    "filled_redis",
    "redis_tier",
    "segment_tier",
    "warm",
]


PATIENCE_S = 5.0
"""Seconds of budget: the bench measures what a lookup takes, not what it gives up."""
WARMING = 3_900
"""Ids per lookup while caches are warmed: the device tier counts how often ids are asked for by lookup."""


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One lookup's ids, int64 `[m]`. `places`: of the rows in the table, and `index` the same for torch; `keys`: as tiers
    know them."""

    places: I64
    ids: I64
    keys: I64
    index: torch.Tensor

    @classmethod
    def of(cls, tables: Tables, places: I64) -> Request:
        ids = tables.ids[places]
        return cls(places, ids, ids ^ np.int64(salt_of(TABLE)), torch.from_numpy(places))


Lookup = Callable[[Request, F32], U8 | None]
"""Rows of a request into float32 `[m, d]`; marks uint8 `[m]` by the tier that held them (1 is the first, 0: none), where
there are tiers."""


class Level(Protocol):
    """Part of `pipeline.embedding.tier.Tier` that a lookup calls."""

    def find(self, wanted: Sequence[Wanted], mark: int, deadline: float) -> object: ...

    def offer(self, wanted: Sequence[Wanted], mark: int) -> None: ...


class CacheLevel:
    """Cache of the device tier for a table's width, on the CPU unless `make` makes another."""

    def __init__(self, shape: CacheShape, make: Callable[[CacheShape], DeviceCache | TorchCache] = DeviceCache) -> None:
        self._shape, self._make = shape, make
        self._cache = make(shape)

    def clear(self) -> None:
        self._cache = self._make(self._shape)

    def find(self, wanted: Sequence[Wanted], mark: int, deadline: float) -> None:
        self._cache.find(wanted[0], mark)

    def offer(self, wanted: Sequence[Wanted], mark: int) -> None:
        self._cache.keep(wanted[0], mark)

    def fill(self, tables: Tables, places: I64, rows: F32) -> None:
        """Offer rows of the table, float32 `[V, d]`, by their places."""
        for part in chunks_of(len(places)):
            some = places[part]
            wanted = _wanted(Request.of(tables, some), rows[some])
            wanted.found[:] = 2
            self.offer([wanted], 1)


class Stack:
    """Stack of tiers, in order. Safe for several threads."""

    def __init__(self, *levels: Level) -> None:
        self._marked = tuple(enumerate(levels, 1))

    def __call__(self, request: Request, out: F32) -> U8:
        wanted = (_wanted(request, out),)
        deadline = time.monotonic() + PATIENCE_S
        for mark, level in self._marked:
            level.find(wanted, mark, deadline)
        for mark, level in self._marked[-2::-1]:
            level.offer(wanted, mark)
        return wanted[0].found


def warm(lookup: Lookup, tables: Tables, stream: IdStream, ids: int) -> None:
    """Look up a stream of so many ids, so that caches have the content of a longer run."""
    out = np.empty((WARMING, tables.width), np.float32)
    for _ in range(max(1, ids // WARMING)):
        lookup(Request.of(tables, stream.draw(WARMING)), out)


def segment_tier(tables: Tables, version: int) -> SegmentTier:
    """Segment of the base, or with version 1 of the delta over it; built at the first call."""
    stack = open_stack(tables.folder / "segments" / BUNDLE, tables.chain(version), tables.width)
    return SegmentTier([(*stack.deltas, stack.base)])


@contextmanager
def filled_redis(tables: Tables, token: str = "bench") -> Iterator[tuple[PrivateRedis, float]]:
    """Private Redis with all rows of the base, and the rows per second at which it was filled."""
    with PrivateRedis(tables.folder / "redis") as server:
        updater = RedisUpdater(server.address, tables.repository, format="float32", token=token)
        start = time.perf_counter()
        rows = updater.bring(tables.chain(0)).rows
        rate = rows / (time.perf_counter() - start)
        updater.close()
        yield server, rate


@contextmanager
def redis_tier(tables: Tables, server: PrivateRedis) -> Iterator[RedisTier]:
    """Tier on a filled Redis."""
    clock = SystemClock()
    source = RedisSource(server.address, tables.repository, clock, CircuitBreaker(clock, random.Random(0)))
    version = tables.base.manifest.version
    group = Group(tables.width, (TABLE,), tables.count)
    tier = source.open(Generation(BUNDLE, version, version, (group,), False))
    try:
        yield tier
    finally:
        tier.close()
        source.close()


def _wanted(request: Request, out: F32) -> Wanted:
    m, width = out.shape
    return Wanted(
        group=0,
        width=width,
        keys=request.keys,
        at=_starts(m, width),
        rows=out.reshape(-1),
        linear_at=_starts(0, 1),
        linear=_NO_WEIGHTS,
        found=np.zeros(m, np.uint8),
    )


_NO_WEIGHTS: F32 = np.zeros(0, np.float32)


@cache
def _starts(m: int, width: int) -> I64:
    return np.arange(m, dtype=np.int64) * width
