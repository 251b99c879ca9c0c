"""`baton bench embedding`: embedding tiers and their stacks, against `torch.index_select(out=)` of the same rows by dense index.

The limit is one thread, or two of them for two threads that look up, measured in the same turns. Tables are written as
bundles and mapped as segments, Redis is a real server, and every request of a case is new to it: a cache that saw the
same ids before would look better than it is. `baton bench embedding` runs the case that the budgets are for, and with
`--full` all sizes, widths, distributions and numbers of ids and threads.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch

from benchmarks.hierarchy.gpu import measure_card
from benchmarks.hierarchy.hit_rate import hit_rates
from benchmarks.hierarchy.loading import measure_loads
from benchmarks.hierarchy.peers import PEERS, installed
from benchmarks.hierarchy.redis_server import PrivateRedis
from benchmarks.hierarchy.stacks import (
    CacheLevel,
    Level,
    Lookup,
    Request,
    Stack,
    filled_redis,
    redis_tier,
    segment_tier,
    warm,
)
from benchmarks.hierarchy.store import store_lookup
from benchmarks.hierarchy.tables import Distribution, IdStream, Tables
from benchmarks.hierarchy.timing import Lookers
from benchmarks.report import Progress, Report, interleaved, median
from pipeline.arrays import F32
from pipeline.clock import SystemClock
from pipeline.embedding.device.cache import CacheShape
from pipeline.embedding.device.tier import DeviceSource
from pipeline.embedding.device.torch_cache import TorchCache
from pipeline.embedding.redis.tier import RedisTier
from pipeline.embedding.tier import PENDING_STATUS

__all__ = ["FULL", "QUICK", "Settings", "run"]


CAPACITY = 0.1
"""Of the caches above a slower tier, of the table's rows."""
ROOM = 1.5
"""Places per row of a cache that should hold all that is asked for."""
REDIS_BYTES = 120
"""Of a Redis key and its value, beside the row."""
WARM_PER_ROW = 10
"""Ids that pass a cache per row of its capacity before it is measured."""
MOST_PEER_ROWS = 5_000_000
HITS = 1_000_000
SEGMENT_BYTES = 1.7
"""Budget: bytes of a segment, of the raw bytes of ids and rows."""
LIMIT = "limit"

BUDGETS = {
    ("device", 3_900): 1.25,
    ("device", 62_400): 1.0,
    (f"device:{CAPACITY:g}+segment", 3_900): 2.5,
    (f"device:{CAPACITY:g}+redis", 3_900): 11.0,
}
"""Times the limit, for one thread on Zipf ids over 5M x 16."""
OF_BUDGETS = (5_000_000, 16)


@dataclass(frozen=True)
class Settings:
    """Settings of the bench; every combination is measured."""

    rows: Sequence[int] = (1_000_000, 5_000_000, 20_000_000)
    widths: Sequence[int] = (8, 16, 64)
    distributions: Sequence[Distribution] = ("uniform", "zipf")
    ids: Sequence[int] = (3_900, 15_600, 62_400)
    threads: Sequence[int] = (1, 2)
    redis: bool = True
    peers: bool = True
    hits: int = HITS

    def budget(self, name: str, rows: int, width: int, distribution: str, ids: int, threads: int) -> float | None:
        if (rows, width) != OF_BUDGETS or distribution != "zipf" or threads != 1:
            return None
        return BUDGETS.get((name, ids))


FULL = Settings()
QUICK = Settings(rows=(5_000_000,), widths=(16,), distributions=("zipf",), ids=(3_900, 62_400))


def run(settings: Settings = QUICK, progress: Progress = lambda _: None, folder: Path | None = None) -> Report:
    """Time per lookup, ids found by tier, bytes per row, and hit rates by policy.

    Args:
        folder: where tables are written and removed again; None: the system's folder for such things.
    """
    torch.set_num_threads(1)
    report = Report("embedding")
    for rows in settings.rows:
        for width in settings.widths:
            with tempfile.TemporaryDirectory(prefix="baton-bench-", dir=folder) as place:
                _measure(report, settings, rows, width, Path(place), progress)
            if torch.cuda.is_available():
                for distribution in settings.distributions:
                    measure_card(report, rows, width, distribution, list(settings.ids), progress)
    hit_rates(report, settings.hits, progress)
    return report


def _measure(report: Report, settings: Settings, count: int, width: int, folder: Path, progress: Progress) -> None:
    """Measure everything on one table."""
    progress(f"embedding: writing a table of {count:,} x {width}")
    tables = Tables(folder, count, width)
    measure_loads(report, tables, progress)
    with ExitStack() as stack:
        stacks = _Stacks(tables, settings, report, stack, progress)
        for distribution in settings.distributions:
            cases = stacks.over(distribution)
            for ids in settings.ids:
                for threads in settings.threads:
                    progress(f"embedding: {distribution}, {ids:,} ids, {threads} thread{'s' if threads > 1 else ''}")
                    setting = f"{distribution}/rows={count}/width={width}/ids={ids}"
                    setting += f"/threads={threads}" if threads > 1 else ""
                    stream = IdStream.over(count, distribution, ids + threads)
                    found = _timed(cases, stream, tables, ids, threads)
                    limit = found[LIMIT][0]
                    for case in cases:
                        seconds, shares = found[case.name]
                        report.add(
                            f"{case.name}/{setting}",
                            "time",
                            1e6 * seconds,
                            "us",
                            limit=None if case.name == LIMIT else 1e6 * limit,
                            at_most=settings.budget(case.name, count, width, distribution, ids, threads),
                        )
                        for tier, share in zip(case.tiers, shares, strict=True):
                            report.add(f"{case.name}/{setting}", f"hit_rate_{tier}", share, "share")


@dataclass(frozen=True)
class _Case:
    """Case: one way to look up rows.

    Attributes:
        tiers: names, in order.
        version: whose rows it should find.
        prepare: called with the requests to come, before they are timed.
    """

    name: str
    lookup: Lookup
    tiers: tuple[str, ...] = ()
    prepare: Callable[[Sequence[Request]], None] | None = None
    version: int = 0


class _Stacks:
    """Cases on one table. The content of caches depends on the stream, so caches are new for every distribution."""

    def __init__(
        self, tables: Tables, settings: Settings, report: Report, stack: ExitStack, progress: Progress
    ) -> None:
        self._tables, self._stack, self._progress = tables, stack, progress
        count, width = tables.count, tables.width
        self._rows = tables.rows()
        self._room = CacheShape(int(ROOM * count), width)
        segment, overlay = segment_tier(tables, 0), segment_tier(tables, 1)
        self._segment = segment
        self._fixed = [
            _Case("segment", Stack(segment), ("segment",)),
            _Case("overlay+segment", Stack(overlay), ("segment",), version=1),
            _Case("store/segment", stack.enter_context(store_lookup(tables, ["segment"]))),
        ]
        self._redis: RedisTier | None = None
        sizes = {"device": self._room.bytes / self._room.rows, "segment": float(segment.describe()["bytes"]) / count}
        if settings.redis and self._fits("redis", count * (REDIS_BYTES + 4 * width)):
            if PrivateRedis.installed():
                progress(f"embedding: filling Redis with {count:,} rows")
                server, rate = stack.enter_context(filled_redis(tables))
                report.add(f"redis/rows={count}/width={width}", "fill", rate, "rows/s")
                sizes["redis"] = server.used_bytes() / count
                self._redis = stack.enter_context(redis_tier(tables, server))
                self._fixed.append(_Case("redis", Stack(self._redis), ("redis",)))
            else:
                progress("embedding: Redis is left out: redis-server is not installed")
        for tier, size in sizes.items():
            report.add(
                f"{tier}/rows={count}/width={width}",
                "bytes_per_row",
                size,
                "bytes",
                limit=tables.raw_bytes / count,
                at_most=SEGMENT_BYTES if tier == "segment" else None,
            )
        for peer in PEERS if settings.peers and count <= MOST_PEER_ROWS else ():
            if peer in installed():
                progress(f"embedding: filling {peer}")
                self._fixed.append(_Case(peer, stack.enter_context(PEERS[peer](tables, self._rows))))
            else:
                progress(f"embedding: {peer} is left out: it is not installed (pip install 'baton[bench]')")

    def over(self, distribution: Distribution) -> list[_Case]:
        """All cases, the limit first, with caches that have processed a stream of that distribution."""
        tables, capacity = self._tables, int(CAPACITY * self._tables.count)
        rows = torch.from_numpy(self._rows)

        def limit(request: Request, out: F32) -> None:
            torch.index_select(rows, 0, request.index, out=torch.from_numpy(out))

        cases = [_Case(LIMIT, limit), *self._fixed]
        if self._fits("the device tier with all rows", self._room.bytes):
            cases.insert(1, self._warm("device", CacheLevel(self._room)))
        if torch.cuda.is_available():
            # From the host and back to it, as lookups for a network on the CPU go.
            cases.append(self._warm("device-cuda", CacheLevel(self._room, TorchCache)))
        below: dict[str, Level] = {"segment": self._segment}
        if self._redis is not None:
            below["redis"] = self._redis
        for name, tier in below.items():
            self._progress(f"embedding: warming a cache of {capacity:,} rows over {name}")
            over = Stack(CacheLevel(CacheShape(capacity, tables.width)), tier)
            warm(over, tables, IdStream.over(tables.count, distribution, 1), WARM_PER_ROW * capacity)
            cases.append(_Case(f"device:{CAPACITY:g}+{name}", over, ("device", name)))
        cache = DeviceSource(SystemClock(), rows=capacity)
        whole = self._stack.enter_context(store_lookup(tables, [cache, "segment"]))
        warm(whole, tables, IdStream.over(tables.count, distribution, 1), WARM_PER_ROW * capacity)
        cases.append(_Case(f"store/device:{CAPACITY:g}+segment", whole))
        return cases

    def _warm(self, name: str, level: CacheLevel) -> _Case:
        """Cache that holds all requested rows."""

        def fill(requests: Sequence[Request]) -> None:
            level.clear()
            level.fill(self._tables, np.unique(np.concatenate([r.places for r in requests])), self._rows)

        return _Case(name, Stack(level), ("device",), fill)

    def _fits(self, what: str, size: int) -> bool:
        free = psutil.virtual_memory().available
        if size > 0.8 * free:
            self._progress(
                f"embedding: {what} is left out: it needs {size >> 20:,} MiB of {free >> 20:,} that are free"
            )
            return False
        return True


def _timed(
    cases: Sequence[_Case], stream: IdStream, tables: Tables, ids: int, threads: int
) -> dict[str, tuple[float, list[float]]]:
    """Median seconds per lookup, and the fraction of ids that each tier found, by case."""
    rounds, repeat = max(15, 160_000 // ids), max(1, 16_000 // ids)
    marks = {case.name: np.zeros(len(case.tiers) + 1, np.int64) for case in cases}
    with Lookers(threads, repeat, ids, tables.width) as lookers:
        requests = [Request.of(tables, stream.draw(ids)) for _ in range(rounds * lookers.per_turn)]
        for case in cases:
            if case.prepare is not None:
                case.prepare(requests)
            _check(case, tables, Request.of(tables, stream.draw(ids)))

        def turn_of(case: _Case, shift: int) -> Callable[[int], float]:
            def turn(number: int) -> float:
                # Cases over the same segment would find each other's rows in the processor's caches.
                first = (number + shift) % rounds * lookers.per_turn
                return lookers.timed(case.lookup, requests[first : first + lookers.per_turn], marks[case.name])

            return turn

        seconds = interleaved({case.name: turn_of(case, shift) for shift, case in enumerate(cases)}, rounds)
    shares = {name: (counts / max(1, counts.sum()))[1:].tolist() for name, counts in marks.items()}
    return {name: (median(values), shares[name]) for name, values in seconds.items()}


def _check(case: _Case, tables: Tables, request: Request) -> None:
    """Check the rows that a case returns: a figure for wrong rows is worthless."""
    out = np.zeros((len(request.places), tables.width), np.float32)
    marks = case.lookup(request, out)
    held = slice(None) if marks is None else marks != PENDING_STATUS
    if not np.array_equal(out[held], tables.rows_at(request.places, case.version)[held]):
        raise RuntimeError(f"{case.name} gave other rows than the table holds")
