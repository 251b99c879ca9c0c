"""`baton bench engine`: cost of the engine around a model, and gain of running inline on the loop.

For each request size, with 1 and 8 requests in flight, in this process and without sockets: the model called directly (the
limit of one thread), through the engine inline, and through one and two workers. The first rows are the engine around a
stage that does nothing.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.models import Candidates, Vocabulary, write_model
from benchmarks.report import Progress, Report, interleaved, median
from pipeline.bundle.versions import Repository
from pipeline.engine.engine import Engine
from pipeline.engine.plan import Plan
from pipeline.event import Event
from pipeline.features import Features, Rows
from pipeline.model.model import Model
from pipeline.stages.decode import Decode
from pipeline.stages.embed import Embed
from pipeline.stages.infer import Infer

__all__ = ["run"]

INFLIGHT = (1, 8)
WAYS = {"inline": (1, True), "workers=1": (1, False), "workers=2": (2, False)}
"""Workers, and whether requests may run on the loop itself."""
EMPTY_REQUESTS = 5_000
ROWS_OF_A_TURN = 20_000
LEAST_REQUESTS = 40


class Nothing:
    """Stage that does nothing."""

    name = "nothing"
    consumes = ("request",)
    produces = ("scores",)

    def run(self, event: Event) -> None:
        pass


def run(
    rows: Sequence[int] = (1, 8, 32, 100, 500),
    model: str = "deepfm",
    rounds: int = 5,
    table_rows: int = 100_000,
    progress: Progress = lambda _: None,
) -> Report:
    """Microseconds per request, as medians of the turns.

    Args:
        rows: candidates per request.
        model: architecture.
        rounds: turns.
        table_rows: ids in all tables.
    """
    report = Report("engine")
    empty = {way: _through(Plan([Nothing()]), way, 1, EMPTY_REQUESTS, 1, {}) for way in WAYS}
    for way, seconds in interleaved(empty, rounds).items():
        report.add(f"empty/{way}", "time", 1e6 * median(seconds), "us/request")
    with tempfile.TemporaryDirectory() as folder:
        repository, vocabulary = Repository(Path(folder) / "bundles"), Vocabulary.make(table_rows)
        write_model(repository, vocabulary, model)
        loaded = Model.load(repository, model, segments=Path(folder) / "segments", device="cpu")
        plan = Plan([Decode(), Embed(), Infer()])
        for n in rows:
            progress(f"engine: {n} rows")
            ids = Candidates.draw(vocabulary, n, 1).hashed[0]
            features = Features.from_rows(Rows(ids, np.empty((n, 0), np.float32)))
            count = max(LEAST_REQUESTS, ROWS_OF_A_TURN // (n + 20))
            loaded.warm([features] * 20)
            cases: dict[str, Callable[[int], float]] = {"direct": _direct(loaded, features, count)}
            for c in INFLIGHT:
                for way in WAYS:
                    given = {"model": loaded, "features": features}
                    cases[f"{way}/inflight={c}"] = _through(plan, way, c, count, n, given)
            found = {name: 1e6 * median(seconds) for name, seconds in interleaved(cases, rounds).items()}
            for name, value in found.items():
                limit = None if name == "direct" else found["direct"]
                report.add(f"{name}/{model}/rows={n}", "time", value, "us/request", limit=limit)
    return report


def _direct(model: Model, features: Features, count: int) -> Callable[[int], float]:
    def measure(_: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            model.score(features)
        return (time.perf_counter() - start) / count

    return measure


def _through(
    plan: Plan, way: str, inflight: int, count: int, rows: int, given: dict[str, Any]
) -> Callable[[int], float]:
    workers, inline = WAYS[way]

    def measure(_: int) -> float:
        engine = Engine(plan, workers=workers, inline_rows=rows if inline else 0)
        asyncio.run(_closed_loop(engine, inflight, inflight, rows, given))
        seconds = asyncio.run(_closed_loop(engine, count, inflight, rows, given))
        engine.close()
        return seconds

    return measure


async def _closed_loop(engine: Engine, count: int, inflight: int, rows: int, given: dict[str, Any]) -> float:
    async def client(share: int) -> None:
        for _ in range(share):
            await engine.run(Event(rows=rows, **given))

    share = max(1, count // inflight)
    start = time.perf_counter()
    await asyncio.gather(*(client(share) for _ in range(inflight)))
    return (time.perf_counter() - start) / (share * inflight)
