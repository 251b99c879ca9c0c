"""`baton bench log`: the traffic log and the evidence read from it, against the targets of their design.

Every case goes through what the processes of an installation use (`open_traffic_log`, `TrafficWriter`, `RolloutController`),
so it measures whatever store is wired. Sizes are in `settings`; what a case does is in the file that it is imported from.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from benchmarks.log.control import blocks, rollouts, statuses, week
from benchmarks.log.evidence import explain, restart
from benchmarks.log.recording import recording
from benchmarks.log.settings import QUICK, Settings
from benchmarks.log.store import forgotten, grown
from benchmarks.log.writers import writers
from benchmarks.report import Progress, Report
from pipeline.errors import InvalidInput

__all__ = ["CASES", "run"]

CASES: dict[str, Callable[[Report, Settings, Progress], None]] = {
    "recording": recording,
    "writers": writers,
    "rollouts": rollouts,
    "blocks": blocks,
    "week": week,
    "status": statuses,
    "forgotten": forgotten,
    "forget": grown,
    "stats": grown,
    "restart": restart,
    "explain": explain,
}
"""Rows of the table of targets by name, without their `log/`. Two share a log that takes long to write, and are told together."""


def run(settings: Settings = QUICK, cases: Collection[str] = (), progress: Progress = lambda _: None) -> Report:
    """Figures of the cases, each against its target.

    Args:
        cases: names with or without `log/`; empty: all.

    Raises:
        InvalidInput: there is no such case.
    """
    wanted = [name.removeprefix("log/") for name in cases] or list(CASES)
    if unknown := [name for name in wanted if name not in CASES]:
        raise InvalidInput(f"there is no case {unknown[0]!r}; there are {', '.join(CASES)}", "case")
    report = Report("log")
    for measure in dict.fromkeys(CASES[name] for name in wanted):
        measure(report, settings, progress)
    return report
