"""`baton bench overload`: goodput, latency, memory and recovery under three times the peak load, for a minute.

One open loop in three phases: half load, three times the peak, half load again. The peak is that of closed loops before,
with the same requests. Client and server share the machine, and at three times the load the client takes more of it
than at the peak: see `client cores`. A refusal is not free either: on few cores most of the difference between goodput
and peak comes from these two.
"""

from __future__ import annotations

import numpy as np

from benchmarks.load.run import Outcome
from benchmarks.load.run import run as run_load
from benchmarks.memory import MemoryWatch
from benchmarks.report import Progress, Report
from benchmarks.site import Workload
from pipeline.arrays import Mask

__all__ = ["recovery_of", "run"]

OVERLOAD_TIMES = 3.0
HALF = 0.5
GOODPUT = 0.8
"""Good answers in time per second of the overload, against the peak."""
RECOVERY_S = 2.0
"""Seconds after the load ends."""
FLAT = 1.05
"""Memory at the end of the overload against after its first quarter."""
PEAK_INFLIGHT = (8, 32)
WINDOW_S = 0.25
LEAST_AROUND_S = 5.0
"""Seconds that are watched before and after, at least."""
LIKE_BEFORE = 2.0


def run(
    workload: Workload,
    seconds: float = 60.0,
    around: float = 10.0,
    deadline: float = 1.0,
    progress: Progress = lambda _: None,
) -> Report:
    """Figures of the overload, against the peak.

    Args:
        workload: requests.
        seconds: of the overload; `around` before and after it.
        deadline: of each call, seconds.
    """
    around = max(LEAST_AROUND_S, around)
    with (
        workload.opened() as site,
        MemoryWatch(site.server, interval=min(1.0, seconds / 40)) as memory,
    ):
        peak = max(
            run_load(workload.spec(site, inflight=c, seconds=min(around, 5.0))).throughput for c in PEAK_INFLIGHT
        )
        progress(f"overload: peak {peak:.0f} requests/s, now {OVERLOAD_TIMES * peak:.0f} for {seconds:.0f} s")
        phases = [(around, HALF * peak), (seconds, OVERLOAD_TIMES * peak), (around, HALF * peak)]
        outcome = run_load(workload.spec(site, phases=phases, deadline=deadline))
        processes = memory.processes()
    begin, end = outcome.started + around, outcome.started + around + seconds
    during = (outcome.intended >= begin) & (outcome.intended < end)
    accepted = outcome.latency[during & outcome.good]
    in_time = int((accepted <= deadline).sum())
    report = Report("overload")
    report.add("overload/goodput", "throughput", in_time / seconds, "requests/s", limit=peak, at_least=GOODPUT)
    if len(accepted):  # without any, goodput is 0
        p99 = 1e3 * float(np.quantile(accepted, 0.99))
        report.add("overload/p99", "latency", p99, "ms", limit=1e3 * deadline, at_most=1.0)
    report.add("overload/recovery", "time", recovery_of(outcome, begin, end), "s", at_most=RECOVERY_S)
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
        fraction = float((outcome.status[during] == code).mean())
        report.add(f"overload/refused/code={code}", "requests", fraction, "share")
    sent = float(during.sum()) / seconds
    report.add("overload/client", "offered", sent, "requests/s", limit=OVERLOAD_TIMES * peak)
    report.add("overload/client", "cores", sent * outcome.cpu_seconds / outcome.calls, "cores")
    # A generator that is late offers less than its rate.
    report.add("overload/client", "late p99", 1e3 * float(np.quantile(outcome.late, 0.99)), "ms")
    report.add("overload/client", "cpu", 1e6 * outcome.cpu_seconds / outcome.calls, "us/request")
    return report


def recovery_of(outcome: Outcome, begin: float, end: float) -> float:
    """Seconds from `end` of the overload until a quarter of a second went by without an error and with a median latency
    at most twice that of before `begin`; all that was watched where there was none."""
    usual = float(np.median(outcome.latency[outcome.good & (outcome.intended < begin)]))
    last = outcome.started + outcome.seconds
    for start in np.arange(end, last - WINDOW_S, WINDOW_S):
        inside: Mask = (outcome.intended >= start) & (outcome.intended < start + WINDOW_S)
        if not inside.any():
            continue
        if outcome.good[inside].all() and float(np.median(outcome.latency[inside])) <= LIKE_BEFORE * usual:
            return float(start + WINDOW_S - end)
    return last - end
