"""`baton bench shadow`: cost of the shadow lane for clients, as p50 and p99 at half load with and without it.

One server has two endpoints with the same stable arm; one of them has a candidate of weight 0, which the shadow lane
scores. Turning the shadow on is calling the other endpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from benchmarks.load.run import run as run_load
from benchmarks.report import Progress, Report, interleaved, median
from benchmarks.server import Arms
from benchmarks.site import Site, must_be_good, opened

__all__ = ["run"]

MOST = 1.10
"""p99 with the shadow lane against without."""
COVERAGE = 0.95
"""Fraction of the predictions that must be scored; a shadow lane that drops them costs nothing."""
HALF = 0.5
QUIET_S = 2.5
SETTLE_S = 60.0
ENDPOINTS = {"off": "plain", "on": "shadowed"}


def run(
    seconds: float = 60.0,
    pairs: int = 5,
    rows: int = 100,
    stable: str = "deepfm",
    candidate: str = "dcnv2",
    table_rows: int = 400_000,
    progress: Progress = lambda _: None,
) -> Report:
    """Medians over the pairs, by an open loop.

    Args:
        seconds: of each half of a pair.
        pairs: off and on, in changing order.
        rows: candidates per request.
        stable, candidate: architectures of the arms.
        table_rows: ids in all tables of a model.
    """
    endpoints: dict[str, Arms] = {"plain": stable, "shadowed": (stable, candidate)}
    with opened([stable, candidate], table_rows, endpoints) as site:
        rate = HALF * site.capacity("plain", rows, seconds)
        progress(f"shadow: {pairs} pairs of {seconds:.0f} s at {rate:.0f} requests/s")
        p50: dict[str, list[float]] = {"off": [], "on": []}
        calls = 0

        def case(name: str) -> Callable[[int], float]:
            def measure(turn: int) -> float:
                nonlocal calls
                outcome = run_load(site.spec("rank", ENDPOINTS[name], rows, phases=[(seconds, rate)], seed=turn))
                must_be_good(outcome, f"shadow {name}")
                if name == "on":
                    calls += outcome.calls
                    _settle(site)  # or the next half without a shadow would still have one
                p50[name].append(outcome.quantile_ms(0.5))
                progress(f"shadow: {name}, p99 {outcome.quantile_ms(0.99):.1f} ms")
                return outcome.quantile_ms(0.99)

            return measure

        p99 = interleaved({name: case(name) for name in ENDPOINTS}, pairs)
        scored = _scored(site)
    report = Report("shadow")
    report.add("shadow/p50", "latency", median(p50["on"]), "ms", limit=median(p50["off"]))
    report.add("shadow/p99", "latency", median(p99["on"]), "ms", limit=median(p99["off"]), at_most=MOST)
    report.add("shadow/rate", "throughput", rate, "requests/s")
    report.add("shadow/coverage", "predictions", scored / calls, "share", at_least=COVERAGE)
    return report


def _scored(site: Site) -> int:
    """Predictions that the shadow lane has scored, at once or later."""
    shadow = site.server.shadow()
    return shadow.scored + shadow.caught_up


def _settle(site: Site) -> None:
    """Wait until nothing waits for the shadow lane and it has scored nothing for a while."""
    seen = (-1, 0.0)

    def still() -> bool:
        nonlocal seen
        now, scored = time.monotonic(), _scored(site)
        if scored != seen[0]:
            seen = (scored, now)
        return now - seen[1] > QUIET_S and not site.server.shadow().queue

    site.server.wait(still, f"the shadow lane is not through after {SETTLE_S:.0f} s", SETTLE_S)
