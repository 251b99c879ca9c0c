"""Facts of a machine: its processes, the state, the stores, the traffic log and the worker."""

from __future__ import annotations

from collections.abc import Iterator

from serving.health.facts import Fact, Level
from serving.health.reading import Reading
from serving.runtime.roster import ProcessState
from serving.runtime.status import LaneStatus, WorkerStatus

__all__ = ["log_facts", "process_facts", "state_facts", "store_facts", "worker_facts"]

RECENT_RESTART_S = 600.0
JOIN_LATE_S = 600.0
"""Time beyond the attribution window after which a prediction that still waits says that the join stands still."""
REFUSED_IN_A_ROW_COUNT = 5


def process_facts(reading: Reading) -> Iterator[Fact]:
    """Every process that is not well; one line of all where they are."""
    if not reading.runs:
        yield Fact("processes", "", Level.ATTENTION, "no process of this home runs", "baton serve")
        return
    sick = [process for process in reading.processes if not process.well]
    for process in sick:
        yield Fact("process", process.name, Level.ATTENTION, f"{process.state}: {process.why}", _remedy(process))
    lanes = reading.statuses.fresh().lanes
    for name, lane in lanes.items():
        if lane.status.blind:
            yield Fact("process", name, Level.ATTENTION, f"candidates get nothing: {lane.status.blind}", "baton doctor")
    for version in sorted({f"{key}: {why}" for lane in lanes.values() for key, why in lane.status.faults.items()}):
        yield Fact("version", "", Level.ATTENTION, f"it cannot be loaded: {version}", "baton model list")
    for process in reading.processes:
        if since_s := _restarted_s(reading, process.name):
            why = process.why.removeprefix("started again after: ")
            last = ": ".join(filter(None, (process.last_exit, why))) or "it ended"
            times = f"; {process.restarts} times in all" if process.restarts > 1 else ""
            says = f"started again {since_s:.0f} s ago ({last}){times}"
            yield Fact("process", process.name, Level.ATTENTION, says, "baton status")
    for damaged in reading.statuses.damaged:
        yield Fact("process", damaged.file, Level.UNKNOWN, f"its status file is damaged: {damaged.reason}", "")
    if not sick:
        starting = [process.name for process in reading.processes if process.state == "starting"]
        says = f"{len(reading.processes)} run" + (f"; {', '.join(starting)} still starting" if starting else "")
        yield Fact("processes", "", Level.OK, says)
    if reading.control_away and not any(process.name == "control" for process in sick):
        yield Fact("process", "control", Level.ATTENTION, reading.control_away, "baton status")


def _remedy(process: ProcessState) -> str:
    if process.state in ("silent", "stopped"):  # a hung control process takes no order but by the home
        return f"baton process restart {process.name}" + (" --home HOME" if process.name == "control" else "")
    return "baton serve" if process.name == "supervisor" else "baton doctor"


def _restarted_s(reading: Reading, name: str) -> float | None:
    """How long ago a process was started again, where that is news."""
    for report in reading.statuses.supervisors.values():
        child = report.status.children.get(name)
        asked = 0 if child is None else child.causes.get("asked", 0)
        if child is not None and child.restarts > asked and child.started_ms:
            since_s = (reading.now_ms - child.started_ms) / 1000
            return since_s if 0 <= since_s < RECENT_RESTART_S else None
    return None


def state_facts(reading: Reading) -> Iterator[Fact]:
    """Whether the state answers, and since when it does not answer whom."""
    fresh = reading.statuses.fresh()
    away = {name: lane.status.state_away for name, lane in fresh.lanes.items()}
    away |= {name: shadow.status.state_away for name, shadow in fresh.shadows.items()}
    waiting = {name: since for name, since in away.items() if since is not None}
    if waiting:
        longest = min(waiting.values(), key=lambda since: since.since_ms)
        says = f"in {', '.join(waiting)} {longest.told(reading.now_ms)}"
        yield Fact("state", "", Level.ATTENTION, says, "baton doctor")
    elif reading.state is None:
        yield Fact("state", "", Level.ATTENTION, f"it cannot be read: {reading.state_fault}", "baton doctor")
    else:
        yield Fact("state", "", Level.OK, "it answers")


def store_facts(reading: Reading) -> Iterator[Fact]:
    """Every disk and Redis with its figures."""
    for store in reading.stores:
        bad = bool(store.reason) or store.full
        advice = "" if not bad else "baton doctor" if store.reason else "free or add room; shorten traffic.retention"
        yield Fact("store", store.name, Level.ATTENTION if bad else Level.OK, str(store), advice)


def log_facts(reading: Reading) -> Iterator[Fact]:
    """Whether predictions and labels are written, and whether the join keeps up."""
    lanes = reading.statuses.fresh().lanes
    well = True
    for name, lane in lanes.items():
        if lane.status.writer.away:
            well = False
            yield Fact("log", name, Level.ATTENTION, f"it cannot write: {lane.status.writer.away}", "baton doctor")
    control = reading.statuses.control
    if control is None or not control.fresh:
        yield Fact("log", "", Level.UNKNOWN, "whether labels are joined is not known: control does not report", "")
        return
    backlog = control.status.backlog
    if backlog.predictions and backlog.oldest_s > backlog.window_s + JOIN_LATE_S:
        yield Fact("log", "", Level.ATTENTION, f"the join is behind: {backlog}", "baton status")
    elif well:
        dropped = sum(_dropped(lane.status) for lane in lanes.values())
        said = f"; {dropped:,} predictions were dropped since the lanes began" if dropped else ""
        yield Fact("log", "", Level.OK, f"it is written and joined{said}")


def _dropped(lane: LaneStatus) -> int:
    return sum(lane.writer.dropped.values())


def worker_facts(reading: Reading) -> Iterator[Fact]:
    """What the worker does, and whether its gate refuses everything. Its process is among the others."""
    report = reading.statuses.learner
    if report is None or not report.fresh:
        return
    worker = report.status
    for bundle, versions in worker.refused.items():
        row = _in_a_row(worker, bundle, versions)
        if row >= REFUSED_IN_A_ROW_COUNT:
            yield Fact(
                "worker", bundle, Level.ATTENTION, f"its gate has refused {row} versions in a row", "baton status"
            )
    doing = f"{worker.state}: {worker.waiting}" if worker.waiting else worker.state
    yield Fact("worker", "", Level.OK, doing)


def _in_a_row(worker: WorkerStatus, bundle: str, versions: object) -> int:
    newest = int(worker.versions.get(bundle, 0) or 0)
    return sum(int(version) > newest for version in versions if str(version).isdecimal())  # type: ignore[attr-defined]
