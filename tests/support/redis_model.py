"""Small model versions in a repository and in Redis, lookups in their rows, and the expected results."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from handmade import random_table, write_bundle

from pipeline.arrays import F32, I64, U8
from pipeline.bundle.bundle import Bundle, Table
from pipeline.bundle.versions import Repository
from pipeline.clock import SystemClock
from pipeline.embedding.redis.breaker import CircuitBreaker
from pipeline.embedding.redis.tier import RedisSource, RedisTier
from pipeline.embedding.redis.updates import RedisUpdater
from pipeline.embedding.tier import STALE_STATUS, Fault, Generation, Group, Wanted, salt_of
from pipeline.redis.address import RedisAddress
from pipeline.schema import FieldSpec, Schema

SCHEMA = Schema(
    fields=(
        FieldSpec(name="user", role="context", kind="id", width=4),
        FieldSpec(name="item", role="candidate", kind="id", width=4),
        FieldSpec(name="shop", role="candidate", kind="id", width=2),
    )
)
WIDTHS = {"user": 4, "item": 4, "shop": 2}
UNTOUCHED = 7.0
MARK = 2
FAR = 5.0
"""Budget in seconds of tests that do not test time."""


@dataclass
class Looked:
    """Result of a lookup: rows by table, `[ids, d]`, weights `[ids]`, marks `[ids]`, and the fault."""

    rows: dict[str, F32] = field(default_factory=dict)
    weights: dict[str, F32] = field(default_factory=dict)
    found: dict[str, U8] = field(default_factory=dict)
    fault: Fault | None = None


class Versions:
    """Versions of one bundle in a folder: a base, and deltas that change some of its rows and add others."""

    def __init__(self, folder: Path, rows: int = 100) -> None:
        self.repository = Repository(folder / "bundles")
        self._rng = np.random.default_rng(5)
        if self.repository.versions("ranker"):
            self.base = self.repository.open("ranker", "1")
        else:
            self.base = self._write({t: random_table(self._rng, rows, w, linear=True) for t, w in WIDTHS.items()})

    def delta(self, *deltas: str, touched: int = 30) -> Bundle:
        """The next version, on the base and `deltas`."""
        tables = {}
        for name, width in WIDTHS.items():
            fresh = random_table(self._rng, touched // 3, width, linear=True, extreme=False)
            old = self._rng.choice(self.base.table(name).ids, touched, replace=False)
            ids = np.unique(np.concatenate([fresh.ids, old]))
            rows = self._rng.normal(size=(len(ids), width)).astype(np.float32)
            weights = self._rng.normal(size=len(ids)).astype(np.float32)
            tables[name] = Table(ids, rows, np.ones(len(ids), np.int64), weights)
        return self._write(tables, base=self.base.manifest.version, deltas=deltas)

    def _write(self, tables: dict[str, Table], **more: Any) -> Bundle:
        number = len(self.repository.versions("ranker")) + 1
        return write_bundle(self.repository, tables, schema=SCHEMA, created_ms=1_000_000 * number, **more)

    def truth(self, version: str) -> dict[str, dict[int, tuple[tuple[float, ...], float]]]:
        """Row and weight of a version, by table and id."""
        held: dict[str, dict[int, tuple[tuple[float, ...], float]]] = {name: {} for name in WIDTHS}
        for link in self.repository.chain(self.repository.open("ranker", version)):
            for name, rows in held.items():
                table = link.table(name)
                assert table.linear is not None
                values = zip(map(tuple, table.rows.tolist()), table.linear.tolist(), strict=True)
                rows.update(zip(table.ids.tolist(), values, strict=True))
        return held

    def every_id(self) -> dict[str, I64]:
        """All ids of all versions by table, and some unknown ones, some of them twice."""
        found = {}
        for name in WIDTHS:
            versions = [self.repository.open("ranker", v) for v in self.repository.versions("ranker")]
            known = np.unique(np.concatenate([v.table(name).ids for v in versions]))
            found[name] = np.concatenate([known, known[:5], [12345, 12345]]).astype(np.int64)
        return found


def updater(address: RedisAddress, versions: Versions, token: str = "a", **more: Any) -> RedisUpdater:
    return RedisUpdater(address, versions.repository, **{"format": "float32", "token": token, **more})


def source(address: RedisAddress, versions: Versions, longest_pause: float = 2.0, **more: Any) -> RedisSource:
    breaker = CircuitBreaker(SystemClock(), random.Random(0), longest_pause=longest_pause)
    return RedisSource(address, versions.repository, SystemClock(), breaker, **more)


def open_tier(made: RedisSource, versions: Versions, version: str) -> RedisTier:
    groups = (Group(2, ("shop",), 0), Group(4, ("item", "user"), 0))
    return made.open(Generation("ranker", versions.base.manifest.version, version, groups, True))


def look(tier: RedisTier, ids: dict[str, I64], budget: float = FAR) -> Looked:
    """Look ids up by table; rows that the tier does not fill stay at `UNTOUCHED`."""
    wanted, parts = [], {}
    for group, tables in ((0, ["shop"]), (1, ["item"]), (1, ["user"])):
        (name,) = tables
        m, width = len(ids[name]), WIDTHS[name]
        at = np.arange(m, dtype=np.int64)
        part = Wanted(
            group, width, ids[name] ^ np.int64(salt_of(name)), at * width, np.full(m * width, UNTOUCHED, np.float32),
            at, np.full(m, UNTOUCHED, np.float32), np.zeros(m, np.uint8),
        )  # fmt: skip
        wanted.append(part)
        parts[name] = part
    looked = Looked(fault=tier.find(wanted, MARK, time.monotonic() + budget))
    for name, part in parts.items():
        looked.rows[name] = part.rows.reshape(-1, WIDTHS[name])
        looked.weights[name] = part.linear
        looked.found[name] = part.found
    return looked


def check(looked: Looked, ids: dict[str, I64], truth: dict[str, Any], *, stale: bool = False) -> None:
    """Assert that the ids of a version have their row and weight, and that all others are unchanged."""
    for name, wanted in ids.items():
        for i, key in enumerate(wanted.tolist()):
            row, weight = truth[name].get(key, ((UNTOUCHED,) * WIDTHS[name], UNTOUCHED))
            mark = (MARK | STALE_STATUS if stale else MARK) if key in truth[name] else 0
            assert (tuple(looked.rows[name][i].tolist()), looked.weights[name][i], looked.found[name][i]) == (
                row,
                weight,
                mark,
            ), (name, i)


def eventually(condition: Any, what: str, limit: float = 10.0) -> None:
    until = time.monotonic() + limit
    while not condition():
        if time.monotonic() > until:
            raise AssertionError(f"not within {limit} s: {what}")
        time.sleep(0.005)
