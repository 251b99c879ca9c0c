"""`log/rollouts`, `log/blocks`, `log/week`, `log/status`: cost of a pass of the controller as what it looks at grows."""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path

from benchmarks.log.controlled import BLOCK_S, Controlled, controlled, rollout
from benchmarks.log.settings import Settings
from benchmarks.log.store import exponent
from benchmarks.log.traffic import CONTEXT_FIELDS, config_of
from benchmarks.report import Progress, Report, median
from pipeline.errors import BatonError
from serving.rollout.sums.blocks import BlockTable
from serving.runtime import status
from serving.runtime.status import LaneArm, LaneStatus, RecentTotals
from serving.wiring.bundles import open_repository
from serving.wiring.observe import Observer
from serving.wiring.state import open_kill_switch

__all__ = ["blocks", "rollouts", "statuses", "week"]

ROWS = 20
SEGMENTS = [f"f{at}" for at in range(16)]
LINES_PER_BLOCK = 1 + len(SEGMENTS)
"""All rows of a block are in one slice of each field."""
MOST_LINES = 200_000
WEEK_SEGMENTS = [f"f{CONTEXT_FIELDS + at}" for at in range(16)]
WEEK_ROWS = 33
"""Of the prediction of a block; a row has other values than the next one, so each field has as many slices as are followed."""
WEEK_MOST_MIB = 64
PREDICTIONS_PER_BLOCK = 10
"""Of each rollout, whatever their number: a block costs, too, and sites have hundreds in one."""
READ_PREDICTIONS = 10_000
"""That a pass reads, or a few more."""
PASSES = 7
ROLLOUTS_AT_MOST, BLOCKS_AT_MOST, STATUS_AT_MOST = 0.1, 2.0, 1.1
BUCKETS = 40
"""Latencies of an arm that a status has."""


def rollouts(report: Report, settings: Settings, progress: Progress) -> None:
    """Add `log/rollouts`: processor time per labelled prediction, with few and with many active rollouts."""
    case, costs = "log/rollouts", []
    for count in settings.rollouts:
        progress(f"{case}: {settings.labelled:,} labelled predictions for {count} rollouts")
        with tempfile.TemporaryDirectory(prefix="baton-bench-log-") as name:
            specs = [rollout(f"endpoint-{number}", held=True) for number in range(count)]
            with controlled(Path(name), specs) as world:
                world.label(settings.labelled, ROWS, BLOCK_S * settings.labelled / (count * PREDICTIONS_PER_BLOCK))
                started = time.process_time()
                for _ in range(1 + settings.labelled // READ_PREDICTIONS):
                    world.controller.step()  # the clock stands, so no rollout looks at its labels yet
                world.read()
                costs.append((time.process_time() - started) / settings.labelled)
                if world.exposed() != settings.labelled * ROWS:
                    raise BatonError(f"{case}: {world.exposed()} of {settings.labelled * ROWS} labelled rows were read")
        report.add(f"{case}/active={count}", "processor", 1e6 * costs[-1], "us/prediction")
    power = exponent(settings.rollouts, (costs[0], costs[1]))
    report.add(case, "growth", power, "exponent of rollouts", at_most=ROLLOUTS_AT_MOST)


def blocks(report: Report, settings: Settings, progress: Progress) -> None:
    """Add `log/blocks`: a pass over a long table of blocks with 16 sliced fields, and its lines."""
    case, costs = "log/blocks", []
    with (
        tempfile.TemporaryDirectory(prefix="baton-bench-log-") as name,
        controlled(Path(name), [rollout("ranker", held=True, segments=SEGMENTS)]) as world,
    ):
        written = 0
        for lines in settings.lines:
            progress(f"{case}: {lines:,} lines")
            count = lines // LINES_PER_BLOCK - written
            written += count
            world.label(count, rows=2, span_s=count * BLOCK_S)
            world.read()
            costs.append(median([_pass(world) for _ in range(PASSES)]))
            report.add(f"{case}/lines={lines}", "pass", 1e3 * costs[-1], "ms")
        kept = _table(world).size
    report.add(case, "pass", 1e3 * costs[1], "ms", limit=1e3 * costs[0], at_most=BLOCKS_AT_MOST)
    report.add(case, "lines after it", kept, "lines", at_most=MOST_LINES)


def week(report: Report, settings: Settings, progress: Progress) -> None:
    """Add `log/week`: memory and time of a pass as blocks of 16 sliced fields come for a week, 2,880 a day."""
    case, costs = "log/week", []
    with (
        tempfile.TemporaryDirectory(prefix="baton-bench-log-") as name,
        controlled(Path(name), [rollout("ranker", held=True, segments=WEEK_SEGMENTS)]) as world,
    ):
        for day in range(1, settings.days[-1] + 1):
            progress(f"{case}: day {day} of {settings.days[-1]}")
            world.label(settings.day_blocks, WEEK_ROWS, settings.day_blocks * BLOCK_S)
            world.read()
            if day not in settings.days:
                continue
            costs.append(median([_pass(world) for _ in range(PASSES)]))
            table = _table(world)
            held = (table.sums.nbytes + table.parts.nbytes) / (1 << 20)
            report.add(f"{case}/day={day}", "pass", 1e3 * costs[-1], "ms")
            report.add(f"{case}/day={day}", "table", held, "MiB", at_most=WEEK_MOST_MIB)
            report.add(f"{case}/day={day}", "lines", table.size, "lines")
            report.add(f"{case}/day={day}", "process", _resident_bytes() / (1 << 20), "MiB")
        if world.exposed() != settings.days[-1] * settings.day_blocks * WEEK_ROWS:
            raise BatonError(f"{case}: {world.exposed()} labelled rows were read, which are not all")
    report.add(case, "pass", 1e3 * costs[-1], "ms", limit=1e3 * costs[0], at_most=BLOCKS_AT_MOST)


def statuses(report: Report, settings: Settings, progress: Progress) -> None:
    """Add `log/status`: a pass over rollouts of endpoints on which many lanes report."""
    case, costs = "log/status", []
    for count in settings.endpoints:
        progress(f"{case}: {count} endpoints, {settings.lanes} lanes")
        with tempfile.TemporaryDirectory(prefix="baton-bench-log-") as name:
            home = Path(name)
            config = config_of(home)
            names = [f"endpoint-{number}" for number in range(count)]
            with controlled(home, [rollout(endpoint, held=True) for endpoint in names]) as world:
                config.status.mkdir(parents=True, exist_ok=True)
                for lane in range(settings.lanes):
                    status.write(config.status, f"lane-{lane}", _lane(f"lane-{lane}", world.clock.now_ms, names))
                kill = open_kill_switch(config)
                kill.prepare()
                observer = Observer(config.status, open_repository(config), kill, world.clock)
                world.controller = world.new_controller(observer)
                world.step()
                costs.append(median([_pass(world) for _ in range(PASSES)]))
        report.add(f"{case}/endpoints={count}", "pass", 1e3 * costs[-1], "ms")
    power = exponent(settings.endpoints, (costs[0], costs[1]))
    report.add(case, "growth", power, "exponent of endpoints", at_most=STATUS_AT_MOST)


def _pass(world: Controlled) -> float:
    """Processor time of one pass, seconds."""
    started = time.process_time()
    world.step()
    return time.process_time() - started


def _table(world: Controlled) -> BlockTable:
    """The table in memory; no verb tells its size, for that concerns nobody but this bench."""
    return world.controller._runners[world.rollouts[0]].analysis.table


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _lane(name: str, now_ms: int, endpoints: list[str]) -> LaneStatus:
    recent = RecentTotals(seconds=60, requests=1000, p99_ms=9.0, counts=dict.fromkeys(range(BUCKETS), 25))
    arms = {
        arm: LaneArm(bundle=bundle, version="1", wanted="1", state="READY", requests=1000, recent=recent)
        for arm, bundle in (("stable", "old"), ("candidate", "new"))
    }
    return LaneStatus(process=name, time_ms=now_ms, state="ready", endpoints=dict.fromkeys(endpoints, arms))
