"""Device tier: caches that the versions on one base share; their age, capacity and start.

A cache belongs to a generation, that is to the base of a bundle, and all versions on the base use it. Where local
segments are among the tiers, rows that deltas have touched never enter it (`pipeline.embedding.hierarchy.hierarchy`), so
its rows are the base's and right for every version on it. Only above a tier whose rows may change under one key (Redis)
do rows age: after `max_age` a row is stale, is looked up below, and is served as stale only if no tier below has it.

A new cache starts with the hot keys of the bundle, from a live cache of an earlier generation or from disk. Hot keys are
in one file per bundle and width: a magic line, a checksum and int64 keys, the most recently used first. Keys are salted by
table name and not by version, so they serve every generation. Several processes write the same file whole; the last wins.
Next stop: `pipeline.embedding.device.cache`, or `torch_cache` for caches on a GPU.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import xxhash

from pipeline.arrays import I64
from pipeline.bundle.row_format import RowFormat
from pipeline.clock import Clock
from pipeline.disk import replacing
from pipeline.embedding.device.cache import CacheShape, DeviceCache
from pipeline.embedding.device.sets import FRESH_TICKS
from pipeline.embedding.tier import PENDING_STATUS, Fault, Generation, Group, Tier, Wanted
from pipeline.errors import InvalidInput

__all__ = ["Backend", "DeviceSource", "DeviceTier", "RowCache", "cache_maker", "read_keys", "write_keys"]

Backend = Literal["auto", "cpu", "cuda"]

CHUNK_KEYS = 4096
MAGIC = b"baton-hot-keys 1\n"
PREFILL_BUDGET_S = 0.05
"""Seconds that a remote tier may take for one chunk of hot keys."""
CAPACITY_FACTOR = 2.0
"""Largest capacity per row of a table: sets fill unevenly, so a cache for all rows needs more places than rows."""

log = logging.getLogger(__name__)


class RowCache(Protocol):
    """Rows of one width by key, as `pipeline.embedding.device.cache.DeviceCache`."""

    @property
    def shape(self) -> CacheShape: ...

    @property
    def bytes(self) -> int: ...

    def find(self, wanted: Wanted, mark: int, tick: int = -1) -> None: ...

    def keep(self, wanted: Wanted, mark: int, tick: int = -1) -> None: ...

    def keys(self, limit: int | None = None) -> I64: ...

    def counts(self) -> dict[str, int]: ...


def cache_maker(backend: Backend) -> Callable[[CacheShape], RowCache]:
    """Constructor of caches on a backend. `auto` is the CPU: lookups end in arrays of the host, so rows on a GPU would be
    copied there and back.

    Raises:
        InvalidInput: there is no card.
    """
    if backend != "cuda":
        return DeviceCache
    from pipeline.embedding.device.torch_cache import TorchCache, has_card

    if not has_card():
        raise InvalidInput("embedding.device.backend is cuda, but torch sees no card here; use cpu", "backend")
    return TorchCache


class _Caches:
    """Caches of one generation, by width."""

    def __init__(
        self, generation: Generation, shapes: Sequence[CacheShape], make: Callable[[CacheShape], RowCache]
    ) -> None:
        self.bundle = generation.bundle
        self.base = int(generation.base)
        self.groups = {group.width: make(shape) for group, shape in zip(generation.groups, shapes, strict=True)}

    def hot_keys(self) -> dict[int, I64]:
        return {width: cache.keys() for width, cache in self.groups.items()}


class DeviceSource:
    """Device caches of one process.

    Args:
        clock: of ages.
        rows: capacity per generation in rows of all widths together; None: `bytes` decides.
        bytes: capacity per generation in bytes of all widths together.
        format: of stored rows.
        max_age: seconds after which a row is stale; None: rows do not age, as the rows of the tiers below never change.
        folder: of the files of hot keys; None: there are none.
        save_interval: seconds between two saves of them.
        backend: where the caches are.

    Raises:
        InvalidInput: there is no card.
    """

    name = "device"

    def __init__(
        self,
        clock: Clock,
        *,
        rows: int | None = None,
        bytes: int = 256 << 20,
        format: RowFormat = "float32",
        max_age: float | None = None,
        folder: Path | None = None,
        save_interval: float = 60.0,
        backend: Backend = "auto",
    ) -> None:
        self._make = cache_maker(backend)
        self._clock = clock
        self._rows, self._bytes, self._format, self._max_age = rows, bytes, format, max_age
        self._folder = folder
        self._save_interval = save_interval
        self._saved = clock.monotonic()
        self._lock = threading.Lock()
        self._live: weakref.WeakValueDictionary[tuple[str, str, tuple[Group, ...], bool], _Caches] = (
            weakref.WeakValueDictionary()
        )

    def tick(self) -> int:
        """The time in ticks, `FRESH_TICKS` per `max_age`; -1 where rows do not age."""
        if self._max_age is None:
            return -1
        return int(self._clock.monotonic() * FRESH_TICKS / self._max_age)

    def open(self, generation: Generation) -> DeviceTier:
        """The tier of one version; it shares the caches of the other versions on its base."""
        key = (generation.bundle, generation.base, generation.groups, generation.linear)
        with self._lock:
            caches = self._live.get(key)
            hot: Mapping[int, I64] = {}
            if caches is None:
                hot = self._hot(generation)
                shapes = self._shapes(generation)
                caches = self._live[key] = _Caches(generation, shapes, self._make)
        return DeviceTier(self, generation, caches, hot)

    def upkeep(self) -> None:
        """Save the hot keys when they are due."""
        if self._clock.monotonic() - self._saved >= self._save_interval:
            self._saved = self._clock.monotonic()
            self.save()

    def close(self) -> None:
        """Save the hot keys."""
        self.save()

    def save(self) -> None:
        """Write the hot keys of every bundle's newest generation. A failing disk is logged."""
        if self._folder is None:
            return
        for caches in self._newest().values():
            for width, keys in caches.hot_keys().items():
                path = self._path(self._folder, caches.bundle, width)
                try:
                    write_keys(path, keys)
                except OSError as error:
                    log.warning("hot keys %s cannot be written: %s", path, error)

    def _newest(self) -> dict[str, _Caches]:
        with self._lock:
            live = sorted(self._live.values(), key=lambda caches: caches.base)
        return {caches.bundle: caches for caches in live}

    def _hot(self, generation: Generation) -> dict[int, I64]:
        live = [caches for caches in self._live.values() if caches.bundle == generation.bundle]
        if live:
            return max(live, key=lambda caches: caches.base).hot_keys()
        if self._folder is None:
            return {}
        widths = [group.width for group in generation.groups]
        return {width: read_keys(self._path(self._folder, generation.bundle, width)) for width in widths}

    @staticmethod
    def _path(folder: Path, bundle: str, width: int) -> Path:
        return folder / bundle / f"{width}.keys"

    def _shapes(self, generation: Generation) -> list[CacheShape]:
        """Shape per width; the capacity is divided between widths in proportion to the rows of the base."""
        total = max(1, sum(group.rows for group in generation.groups))
        shapes = []
        for group in generation.groups:
            fraction = group.rows / total
            row_bytes = CacheShape(6, group.width, generation.linear, self._format).bytes_per_row
            wanted = self._rows * fraction if self._rows is not None else self._bytes * fraction / row_bytes
            rows = max(1, int(min(wanted, CAPACITY_FACTOR * group.rows)))
            shapes.append(CacheShape(rows, group.width, generation.linear, self._format))
        return shapes


class DeviceTier:
    """Device tier of one version."""

    name = "device"

    def __init__(self, source: DeviceSource, generation: Generation, caches: _Caches, hot: Mapping[int, I64]) -> None:
        self._source = source
        self._caches = caches  # the source knows them weakly: they live as long as a version uses them
        self._linear = generation.linear
        self._groups = [caches.groups[group.width] for group in generation.groups]
        self._hot = hot

    def find(self, wanted: Sequence[Wanted], mark: int, deadline: float) -> Fault | None:
        """Fill open ids that are held; never waits."""
        tick = self._source.tick()
        for want in wanted:
            self._groups[want.group].find(want, mark, tick)
        return None

    def offer(self, wanted: Sequence[Wanted], mark: int) -> None:
        """Keep rows found below that are requested more often than those they would replace."""
        tick = self._source.tick()
        for want in wanted:
            self._groups[want.group].keep(want, mark, tick)

    def prefill(self, below: Sequence[Tier], clock: Clock) -> int:
        """Fill a new cache with its hot keys from the tiers below; called once, before the first lookup. Returns rows held."""
        for g, cache in enumerate(self._groups):
            width = cache.shape.width
            keys = self._hot.get(width, np.empty(0, np.int64))[: cache.shape.rows]
            for start in range(0, len(keys), CHUNK_KEYS):
                chunk = np.ascontiguousarray(keys[start : start + CHUNK_KEYS])
                m = len(chunk)
                found = np.full(m, PENDING_STATUS, np.uint8)
                rows, linear = np.empty(m * width, np.float32), np.empty(m * self._linear, np.float32)
                places = np.arange(m, dtype=np.int64)
                wanted = Wanted(g, width, chunk, places * width, rows, places, linear, found)
                for mark, tier in enumerate(below, 2):
                    tier.find([wanted], mark, clock.monotonic() + PREFILL_BUDGET_S)
                cache.keep(wanted, 1, self._source.tick())
        self._hot = {}
        return sum(cache.counts()["rows"] for cache in self._groups)

    def describe(self) -> Mapping[str, float | str]:
        """Rows and bytes held, and counts of offered rows, all widths together."""
        total: dict[str, float | str] = {"bytes": sum(cache.bytes for cache in self._groups)}
        counts = [cache.counts() for cache in self._groups]
        return total | {name: sum(count[name] for count in counts) for name in counts[0]} if counts else total

    def close(self) -> None:
        """Nothing: the caches are freed with the last version that uses them."""


def write_keys(path: Path, keys: I64) -> None:
    """Write `[n]` keys.

    Raises:
        OSError: the disk is full or fails; what was there before stays.
    """
    body = np.ascontiguousarray(keys, "<i8").tobytes()
    with replacing(path) as staging:
        staging.write_bytes(MAGIC + xxhash.xxh3_64_digest(body) + body)


def read_keys(path: Path) -> I64:
    """The keys of a file, `[n]`; none, and a line in the log, when it is damaged."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return np.empty(0, np.int64)
    except OSError as error:
        log.warning("hot keys %s cannot be read, the cache starts cold: %s", path, error)
        return np.empty(0, np.int64)
    head = len(MAGIC) + 8
    body = raw[head:]
    if raw[: len(MAGIC)] != MAGIC or xxhash.xxh3_64_digest(body) != raw[len(MAGIC) : head] or len(body) % 8:
        log.warning("hot keys %s are damaged, the cache starts cold", path)
        return np.empty(0, np.int64)
    return np.frombuffer(body, "<i8").astype(np.int64)
