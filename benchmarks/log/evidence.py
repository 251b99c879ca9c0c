"""`log/restart`, `log/explain`: how soon control has its evidence back, and how soon it explains a verdict."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks.log.controlled import SAVED_AFTER_MS, controlled, rollout
from benchmarks.log.settings import Settings
from benchmarks.report import Progress, Report
from pipeline.errors import BatonError
from serving.rollout.controller import ACTOR

__all__ = ["explain", "restart"]

ROWS = 10
RESTART_S, EXPLAIN_S = 5.0, 5.0


def restart(report: Report, settings: Settings, progress: Progress) -> None:
    """Add `log/restart`: from the start of a new controller until it has all rows that the last one had read."""
    count = settings.restart
    progress(f"log/restart: {count:,} labelled predictions")
    with (
        tempfile.TemporaryDirectory(prefix="baton-bench-log-") as name,
        controlled(Path(name), [rollout("ranker", held=True)]) as world,
    ):
        world.label(count, ROWS, small=True)
        world.read()
        before = world.exposed()
        world.clock.now_ms += SAVED_AFTER_MS
        world.step()
        started = time.perf_counter()
        world.controller = world.new_controller()
        world.step()
        while world.exposed() < before:
            world.step()
        took = time.perf_counter() - started
    if before != count * ROWS:
        raise BatonError(f"log/restart: {before} of {count * ROWS} labelled rows were read")
    report.add(f"log/restart/labelled={count}", "evidence back", took, "s", at_most=RESTART_S)


def explain(report: Report, settings: Settings, progress: Progress) -> None:
    """Add `log/explain`: the figures of an advance that rests on many predictions, worked out again."""
    count = settings.explain
    progress(f"log/explain: {count:,} labelled predictions")
    with (
        tempfile.TemporaryDirectory(prefix="baton-bench-log-") as name,
        controlled(Path(name), [rollout("ranker", held=False)]) as world,
    ):
        world.label(count, ROWS, small=True)
        world.read(lambda decisions: any(decision.event is not None for _, decision in decisions))
        entry = next(entry for entry in world.store.latest_audit("ranker") if entry.actor == ACTOR)
        world.controller = world.new_controller()  # a verdict is explained when its figures are not in memory
        started = time.perf_counter()
        told = world.controller.explain(entry.seq)
        took = time.perf_counter() - started
    if not told.same:
        raise BatonError(f"log/explain: the figures are not those of the verdict: {told.note}")
    report.add(f"log/explain/labelled={count}", "time", took, "s", at_most=EXPLAIN_S)
