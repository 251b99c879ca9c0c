"""Versions swapped in several processes while others publish, merge, sweep and prune: every row is the one that the
version in hand has for that id, whole.

A row tells table, id and the version that wrote it. Which version must have written it follows from the chain in hand,
so an older or newer row, half of one, or another id's is told from the right one.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import SCHEMA, WIDTH, write_bundle

from pipeline.arrays import F32, I64, Mask
from pipeline.bundle.bundle import Table
from pipeline.bundle.versions import Repository
from pipeline.clock import SystemClock
from pipeline.embedding.device.tier import DeviceSource
from pipeline.embedding.hierarchy.hierarchy import SEGMENT, Hierarchy
from pipeline.embedding.segment.generations import compact, sweep
from pipeline.errors import BatonError
from pipeline.model.model import Model

pytestmark = pytest.mark.long


SECONDS = 60.0
IDS = 3000
KEPT = 4
"""Newest versions that stay, whoever serves older ones."""
DELTAS = 11
"""Of a base, before the next base."""
TABLES = tuple(field.name for field in SCHEMA.embedded)


def ids_of(table: int) -> I64:
    drawn = np.random.default_rng(table).integers(-(2**63), 2**63 - 1, IDS, np.int64)
    return np.unique(drawn[drawn != 0])


def touched(version: int, ids: I64) -> Mask:
    """Which ids the delta of a version holds: a seventh of them."""
    mixed = (ids.view(np.uint64) ^ np.uint64(version)) * np.uint64(0x9E3779B97F4A7C15)
    return (mixed >> np.uint64(40)) % np.uint64(7) == 0


def rows_of(table: int, ids: I64, versions: I64) -> F32:
    """What these versions wrote for these ids, float32 `[n, WIDTH + 1]`, the weight last."""
    mixed = (ids.view(np.uint64) + versions.view(np.uint64) * np.uint64(31)) * np.uint64(0xD6E8FEB86659FD93)
    check = ((mixed >> np.uint64(44)) + np.uint64(table)).astype(np.float32)
    places = np.arange(len(ids), dtype=np.float32)
    return np.stack([versions.astype(np.float32), check, places, -check, check + versions], 1).astype(np.float32)


def table_of(table: int, version: int, *, delta: bool) -> Table:
    ids = ids_of(table)
    rows = rows_of(table, ids, np.full(len(ids), version))
    held = touched(version, ids) if delta else np.ones(len(ids), np.bool_)
    return Table(ids[held], rows[held, :WIDTH], np.ones(int(held.sum()), np.int64), rows[held, WIDTH])


def expected(table: int, base: int, deltas: list[int]) -> F32:
    ids = ids_of(table)
    versions = np.full(len(ids), base)
    for delta in deltas:
        versions[touched(delta, ids)] = delta
    return rows_of(table, ids, versions)


def publish(repository: Repository) -> None:
    """The next version: a delta over the newest one, or a base where that has many."""
    version = int((repository.versions("ranker") or ["0"])[-1]) + 1
    manifest = repository.open("ranker").manifest if version > 1 else None
    delta = manifest is not None and len(manifest.deltas) < DELTAS
    tables = {name: table_of(t, version, delta=delta) for t, name in enumerate(TABLES)}
    base = (manifest.base or manifest.version) if manifest is not None and delta else None
    made = write_bundle(repository, tables, base=base, deltas=manifest.deltas if manifest is not None and delta else ())
    assert int(made.manifest.version) == version


def run(folder: Path, until: float, role: str, results: Any) -> None:
    repository, segments = Repository(folder / "bundles"), folder / "segments"
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    try:
        work = {"publish": publisher, "tend": tender, "read": reader, "read-cached": reader}[role]
        work(repository, segments, lambda: time.monotonic() < until and not wrong, counts, wrong, role)
    except BaseException as error:
        wrong.append(f"{role}: {error!r}")
        raise
    finally:
        results.put((role, dict(counts), wrong[:5]))


def publisher(repository: Repository, segments: Path, going: Callable[[], bool], counts: Counter[str], *_: Any) -> None:
    while going():
        publish(repository)
        counts["published"] += 1


def tender(repository: Repository, segments: Path, going: Callable[[], bool], counts: Counter[str], *_: Any) -> None:
    """What housekeeping does, without regard for who serves what."""
    while going():
        keep = repository.versions("ranker")[-KEPT:]
        counts["pruned"] += len(repository.prune("ranker", keep, unfinished_before=0.0))
        chains = [repository.chain(repository.open("ranker", version)) for version in keep]
        counts["merged"] += compact(segments / "ranker", chains[-1], WIDTH)
        counts["swept"] += sweep(segments / "ranker", chains)


def reader(
    repository: Repository, segments: Path, going: Callable[[], bool], counts: Counter[str], wrong: list[str], role: str
) -> None:
    """One thread swaps versions, the newest or one before it; two look all ids up in what is there."""
    clock = SystemClock()
    sources = [DeviceSource(clock, rows=IDS), SEGMENT] if role == "read-cached" else [SEGMENT]
    hierarchy = Hierarchy(sources, clock=clock)
    dice = np.random.default_rng(1)
    held: list[Model] = []

    def swap() -> None:
        versions = repository.versions("ranker")
        version = versions[-1 - int(dice.integers(min(2, len(versions))))]
        if held and held[0].version == version:
            return
        try:
            held[:1] = [Model.load(repository, "ranker", version, segments=segments, hierarchy=hierarchy)]
            counts["loaded"] += 1
        except (BatonError, OSError):
            counts["gone"] += 1  # pruned or swept under our hands; the version in hand goes on

    def look(number: int) -> None:
        order = np.random.default_rng(number)
        while going():
            model = held[0]
            deltas = [int(v) for v in model.manifest.deltas]
            t = int(order.integers(len(TABLES)))
            picks = order.permutation(len(ids_of(t)))
            found = model.store.rows(TABLES[t], ids_of(t)[picks])
            truth = expected(t, int(model.manifest.base or model.version), deltas)[picks]
            same = (np.column_stack([found.rows, found.weights]) == truth).all(1)
            if not same.all():
                at = int(np.flatnonzero(~same)[0])
                wrong.append(f"version {model.version}: {found.rows[at]} from {found.tiers[at]} instead of {truth[at]}")
            counts[f"rows-{number}"] += len(picks)

    while not held:
        swap()
    threads = [threading.Thread(target=look, args=(number,), name=f"look-{number}") for number in range(2)]
    for thread in threads:
        thread.start()
    while going():
        swap()
    for thread in threads:
        thread.join()


def test_every_row_is_of_the_version_in_hand(tmp_path: Path) -> None:
    publish(Repository(tmp_path / "bundles"))
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    until = time.monotonic() + SECONDS
    roles = ("publish", "tend", "read", "read-cached")
    several = [context.Process(target=run, args=(tmp_path, until, role, results)) for role in roles]
    for process in several:
        process.start()
    results = {role: (counts, wrong) for role, counts, wrong in (results.get(timeout=SECONDS + 60) for _ in several)}
    for process in several:
        process.join(30)
        assert process.exitcode == 0
    assert [wrong for _, wrong in results.values()] == [[]] * len(roles)
    counts = {role: counts for role, (counts, _) in results.items()}
    assert counts["publish"]["published"] > 5 * DELTAS
    assert min(counts["tend"][what] for what in ("pruned", "merged", "swept")) > 20
    for role in roles[2:]:
        assert counts[role]["loaded"] > 20, counts
        assert min(counts[role]["rows-0"], counts[role]["rows-1"]) > 100_000
