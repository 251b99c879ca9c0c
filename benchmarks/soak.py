"""`baton bench soak`: memory after ten minutes at 80 % of the capacity; it must not grow."""

from __future__ import annotations

from benchmarks.load.run import run as run_load
from benchmarks.memory import MemoryWatch
from benchmarks.report import Progress, Report
from benchmarks.site import Workload

__all__ = ["run"]

MOST = 1.02
"""Memory at the end against after the start-up, for the lanes together."""


def run(
    workload: Workload,
    minutes: float = 10.0,
    load: float = 0.8,
    progress: Progress = lambda _: None,
) -> Report:
    """Memory in the last tenth against the second tenth, as medians; the first tenth fills the caches.

    Args:
        workload: requests.
        minutes: of load.
        load: fraction of the capacity of a closed loop with 8 in flight.
    """
    seconds = 60.0 * minutes
    with workload.opened() as site:
        rate = load * workload.capacity(site, seconds)
        progress(f"soak: {minutes:g} minutes at {rate:.0f} requests/s")
        with MemoryWatch(site.server, interval=min(1.0, seconds / 100)) as memory:
            outcome = run_load(workload.spec(site, phases=[(seconds, rate)]))
        begin, tenth = outcome.started, seconds / 10
        report = Report("soak")
        sums = [0.0, 0.0]
        for process in memory.processes():
            early = memory.megabytes(process, begin + tenth, begin + 2 * tenth)
            late = memory.megabytes(process, begin + 9 * tenth, begin + 10 * tenth)
            report.add(f"soak/memory/{process}", "rss", late, "MB", limit=early)
            if process.startswith("lane-"):
                sums = [sums[0] + early, sums[1] + late]
        report.add("soak/memory/lanes", "rss", sums[1], "MB", limit=sums[0], at_most=MOST)
        restarts = sum(child.restarts for child in site.server.children().values())
        report.add("soak/restarts", "processes", restarts, "times", at_most=0)
    report.add("soak/rate", "throughput", rate, "requests/s")
    report.add("soak/p50", "latency", outcome.quantile_ms(0.5), "ms")
    report.add("soak/p99", "latency", outcome.quantile_ms(0.99), "ms")
    report.add("soak/failed", "errors", outcome.failed, "requests")
    return report
