"""Roster of a machine's processes: the state of each, from its status file, its supervisor and its last ending.

A status file alone tells little: its process may have died since, or hang. So the supervisor's word on whether a process
runs comes first, then the age of its report. `baton status`, `baton doctor` and the console show this one list.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

import psutil

from serving.config import Config
from serving.runtime import status
from serving.runtime.claims import process_of
from serving.runtime.endings import ending_path, read_ending
from serving.runtime.status import (
    ChildStatus,
    ControlStatus,
    LaneStatus,
    Report,
    ShadowStatus,
    Status,
    Statuses,
    WorkerStatus,
)

__all__ = [
    "ALIVE",
    "STARTING",
    "ProcessState",
    "State",
    "expected_processes",
    "last_endings",
    "process_state",
    "roster",
    "roster_of",
]

ALIVE, STARTING = "alive", "starting"
State = Literal["alive", "starting", "silent", "stopped", "restarting", "gone"]
"""silent: it runs and does not report; stopped: by a signal, until SIGCONT; restarting: its supervisor starts it again."""
START_LIMIT_S = 120.0
"""Time in which a process has reported for the first time."""
KILLED_SOON = "after hang_limit without a sign of life it is killed and started again"
ORPHANED_MS = -1
"""Start of a child whose supervisor has ended."""
GOING_ON = frozenset({ALIVE, STARTING})


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessState:
    """State of one process.

    Args:
        doing: what it says of itself, for example `ready` or `learning`.
        why: the cause, where it is not alive or was started again.
        age_s: since its last report; None: it has not reported.
        restarts, last_exit: by its supervisor.
    """

    name: str
    state: State
    doing: str = ""
    why: str = ""
    pid: int | None = None
    age_s: float | None = None
    restarts: int = 0
    last_exit: str = ""

    @property
    def well(self) -> bool:
        """Whether nothing has to be done about it."""
        return self.state in GOING_ON


def expected_processes(config: Config) -> list[str]:
    """Names of the processes that `baton serve` runs for a configuration, its supervisor included."""
    lanes = [f"lane-{index}" for index in range(config.engine.lanes)]
    return ["supervisor", "control", *lanes, "shadow", *(["worker"] if config.worker is not None else [])]


def roster_of(config: Config, now_ms: int) -> list[ProcessState]:
    """The roster of an installation on this machine, from the files in its home."""
    found = status.read(config.status, now_ms)
    return roster(found, expected_processes(config), now_ms, last_endings(config), process_state)


def last_endings(config: Config) -> dict[str, str]:
    """Why processes that do not run now have ended, by name; only of those that ended by an error."""
    reasons = {}
    for name in expected_processes(config):
        ended = read_ending(ending_path(config.home, name))
        if ended is not None and process_of(config.home, name) is None:
            when = datetime.fromtimestamp(ended.time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
            reasons[name] = f"{ended.reason} (ended {when})"
    return reasons


def roster(
    statuses: Statuses,
    expected: Collection[str],
    now_ms: int,
    reasons: Mapping[str, str],
    look: Callable[[int], State],
) -> list[ProcessState]:
    """State of every process that reports, has a supervisor, or should be there.

    Args:
        reasons: why processes that do not run now have ended, by name.
        look: state of a process of this machine by pid: alive, stopped or gone.
    """
    children: dict[str, ChildStatus] = {}
    for report in statuses.supervisors.values():
        ended = bool(report.status.pid) and look(report.status.pid) == "gone"  # then its word is of the past
        for name, child in report.status.children.items():
            children[name] = replace(child, pid=None, started_ms=ORPHANED_MS) if ended else child
    reports = statuses.all()
    lanes = [name for name in reports if name.startswith("lane-") and "@" not in name]
    known = {*children, *reports}
    named = [name for name in expected if not (name.startswith("lane-") and lanes and name not in known)]
    if not statuses.supervisor:  # replicas have supervisors of other names, and processes may run without one
        named = [name for name in named if name != "supervisor" and not (statuses.supervisors and name not in reports)]
    names = dict.fromkeys([*named, *children, *reports])
    return [_state(name, reports.get(name), children.get(name), now_ms, reasons.get(name, ""), look) for name in names]


def process_state(pid: int) -> State:
    """What the kernel says of a process."""
    try:
        found = psutil.Process(pid).status()
    except psutil.Error:
        return "gone"
    if found in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
        return "gone"
    return "stopped" if found in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP) else "alive"


def _state(
    name: str,
    report: Report[Status] | None,
    child: ChildStatus | None,
    now_ms: int,
    ended: str,
    look: Callable[[int], State],
) -> ProcessState:
    orphaned = child is not None and child.started_ms == ORPHANED_MS
    pid, age_s = _pid(report, None if orphaned else child), None if report is None else report.age_s
    seen: State | None = None if pid is None or "@" in name else look(pid)
    state, why = _judged(report, None if orphaned else child, now_ms, seen)
    reason = ended or ("" if child is None else child.reason)
    if state in ("restarting", "gone") and reason:
        why = reason
    elif state in GOING_ON and child is not None and child.restarts and child.reason:
        why = f"started again after: {child.reason}"
    return ProcessState(
        name=name,
        state=state,
        doing=_doing(report, now_ms) if state == ALIVE else "",
        why=why,
        pid=None if state in ("restarting", "gone") else pid,
        age_s=age_s,
        restarts=0 if child is None else child.restarts,
        last_exit="" if child is None else child.last_end,
    )


def _judged(
    report: Report[Status] | None, child: ChildStatus | None, now_ms: int, seen: State | None
) -> tuple[State, str]:
    """State, and what it is judged by where it is not alive."""
    if seen == "stopped":
        then = "end it" if child is None else KILLED_SOON
        return "stopped", f"it was stopped by a signal: kill -CONT its pid, or {then}"
    fresh = report is not None and report.fresh
    if child is not None and (child.pid is None or seen == "gone"):
        return "restarting", "" if child.last_end else "it cannot be started"
    if child is not None and not (fresh and _is_of(report, child)):
        started_s = abs(now_ms - child.started_ms) / 1000 if child.started_ms else None
        if started_s is not None and started_s < START_LIMIT_S and (report is None or not _is_of(report, child)):
            return "starting", ""
        return "silent", f"it runs and has not reported {_since(report)}: it hangs, or is busy; {KILLED_SOON}"
    if fresh:
        return "alive", ""
    if report is None:
        return "gone", "it has not reported"
    if seen == "alive":
        return "silent", f"it runs and has not reported {_since(report)}: it hangs, or is busy"
    return "gone", f"it has not reported {_since(report)}"


def _is_of(report: Report[Status] | None, child: ChildStatus) -> bool:
    """Whether a report is by the child that runs now, not by one before it."""
    pid = _pid(report, None)
    return report is not None and (pid is None or pid == child.pid)


def _since(report: Report[Status] | None) -> str:
    return "yet" if report is None or report.age_s is None else f"for {report.age_s:.0f} s"


def _pid(report: Report[Status] | None, child: ChildStatus | None) -> int | None:
    if child is not None:
        return child.pid
    return None if report is None else getattr(report.status, "pid", 0) or None


def _doing(report: Report[Status] | None, now_ms: int) -> str:
    if report is None:
        return ""
    known = report.status
    if isinstance(known, WorkerStatus):
        return f"{known.state}: {known.waiting}" if known.waiting else known.state
    if isinstance(known, ControlStatus):
        if known.state_away is not None:
            return f"doing nothing: {known.state_away.told(now_ms)}"
        if not known.leads:
            return f"standing by: {known.leader} leads" if known.leader else "standing by: who leads is not known"
        return f"leading; {known.backlog}" if known.backlog.predictions else "leading"
    if isinstance(known, LaneStatus | ShadowStatus):
        away = known.state_away.told(now_ms) if known.state_away is not None else ""
        return ", ".join(part for part in (*_lane(known), away) if part)
    return ""


def _lane(lane: LaneStatus | ShadowStatus) -> tuple[str, ...]:
    if isinstance(lane, ShadowStatus):
        return ()
    loading = f"loading {', '.join(lane.loading)}" if lane.loading else ""
    blind = f"candidates get nothing: {lane.blind}" if lane.blind else ""
    return lane.state, loading, blind
