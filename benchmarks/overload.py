"""`baton bench overload`: three times what the machine can do, for a minute: what is still answered, and how soon it is over.

One open loop in three phases: half load, three times the peak, half load again. The peak is that of closed loops before,
with the same requests. Client and server share the machine, and at three times the load the client takes more of it
than at the peak: `client cores` says how much. A refusal is not free either: on few cores what goodput lacks of the
peak is mostly these two.
"""

from __future__ import annotations

import numpy as np

from benchmarks.load.run import Outcome
from benchmarks.load.run import run as run_load
from benchmarks.memory import MemoryWatch
from benchmarks.report import Progress, Report
from benchmarks.site import opened
from pipeline.arrays import Mask

__all__ = ["recovery_of", "run"]

TIMES = 3.0
HALF = 0.5
GOODPUT = 0.8
"""Good answers in time per second of the overload, against the peak."""
RECOVERY = 2.0
"""Seconds after the load ends."""
FLAT = 1.05
"""Memory at the end of the overload against after its first quarter."""
PEAK_INFLIGHT = (8, 32)
WINDOW = 0.25
LEAST_AROUND = 5.0
"""Seconds that are watched before and after, at least."""
LIKE_BEFORE = 2.0


def run(
    seconds: float = 60.0,
    around: float = 10.0,
    deadline: float = 1.0,
    rows: int = 100,
    model: str = "deepfm",
    table_rows: int = 400_000,
    progress: Progress = lambda _: None,
) -> Report:
    """One run.

    Args:
        seconds: of the overload; `around` before and after it.
        deadline: of each call, seconds.
        rows: candidates per request, by `Rank`.
        model: architecture.
        table_rows: ids in all tables.
    """
    around = max(LEAST_AROUND, around)
    with (
        opened([model], table_rows, {"ranker": model}) as site,
        MemoryWatch(site.server, interval=min(1.0, seconds / 40)) as memory,
    ):
        peak = max(
            run_load(site.spec("rank", "ranker", rows, inflight=c, seconds=min(around, 5.0))).throughput
            for c in PEAK_INFLIGHT
        )
        progress(f"overload: peak {peak:.0f} requests/s, now {TIMES * peak:.0f} for {seconds:.0f} s")
        phases = [(around, HALF * peak), (seconds, TIMES * peak), (around, HALF * peak)]
        outcome = run_load(site.spec("rank", "ranker", rows, phases=phases, deadline=deadline))
        processes = memory.processes()
    begin, end = outcome.started + around, outcome.started + around + seconds
    during = (outcome.intended >= begin) & (outcome.intended < end)
    accepted = outcome.latency[during & outcome.good]
    in_time = int((accepted <= deadline).sum())
    report = Report("overload")
    report.add("overload/goodput", "throughput", in_time / seconds, "requests/s", limit=peak, at_least=GOODPUT)
    if len(accepted):  # where nothing was, goodput says it
        p99 = 1e3 * float(np.quantile(accepted, 0.99))
        report.add("overload/p99", "latency", p99, "ms", limit=1e3 * deadline, at_most=1.0)
    report.add("overload/recovery", "time", recovery_of(outcome, begin, end), "s", at_most=RECOVERY)
    for process in processes:
        report.add(
            f"overload/memory/{process}",
            "rss",
            memory.megabytes(process, end - seconds / 8, end),
            "MB",
            limit=memory.megabytes(process, begin + seconds / 8, begin + seconds / 4),
            at_most=FLAT,
        )
    for code in sorted(outcome.errors):
        share = float((outcome.status[during] == code).mean())
        report.add(f"overload/refused/code={code}", "requests", share, "share")
    sent = float(during.sum()) / seconds
    report.add("overload/client", "offered", sent, "requests/s", limit=TIMES * peak)
    report.add("overload/client", "cores", sent * outcome.cpu_seconds / outcome.calls, "cores")
    # A generator that is late itself offers less than it says.
    report.add("overload/client", "late p99", 1e3 * float(np.quantile(outcome.late, 0.99)), "ms")
    report.add("overload/client", "cpu", 1e6 * outcome.cpu_seconds / outcome.calls, "us/request")
    return report


def recovery_of(outcome: Outcome, begin: float, end: float) -> float:
    """Seconds from `end` of the overload until a quarter of a second went by without an error and with a median latency
    at most twice that of before `begin`; all that was watched where there was none."""
    usual = float(np.median(outcome.latency[outcome.good & (outcome.intended < begin)]))
    last = outcome.started + outcome.seconds
    for start in np.arange(end, last - WINDOW, WINDOW):
        inside: Mask = (outcome.intended >= start) & (outcome.intended < start + WINDOW)
        if not inside.any():
            continue
        if outcome.good[inside].all() and float(np.median(outcome.latency[inside])) <= LIKE_BEFORE * usual:
            return float(start + WINDOW - end)
    return last - end
