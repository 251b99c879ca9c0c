"""`baton bench swap`: p99 and errors at half load while versions are swapped every two seconds, against none.

A process with the worker's priority publishes a delta (some rows and all dense weights changed) at each interval. The
lanes find it, load and warm it, and answer with it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.load.run import run as run_load
from benchmarks.report import Progress, Report, interleaved, median
from benchmarks.site import ENDPOINT, Site, Workload, must_be_good
from pipeline.bundle.bundle import Table
from pipeline.bundle.versions import Repository
from pipeline.errors import BatonError
from transfer.bundles.export import DenseGraph
from transfer.bundles.publish import load, save
from transfer.click_model.model import ClickModel

__all__ = ["run"]

MOST = 2.0
"""p99 while versions are swapped against none."""
HALF = 0.5
TOUCHED_ROWS = 5_000
NICE = 15
COMPACT_AFTER = 16
"""Deltas on one base, as the worker's."""
SETTLE_S = 20.0


def run(
    workload: Workload,
    seconds: float = 20.0,
    rounds: int = 5,
    interval: float = 2.0,
    progress: Progress = lambda _: None,
) -> Report:
    """Medians over the turns, by an open loop; errors are those of all turns.

    Args:
        workload: requests.
        seconds: of each half of a turn.
        rounds: turns, still and swapping in changing order.
        interval: seconds between two versions.
    """
    model = workload.model
    with workload.opened() as site:
        rate = HALF * workload.capacity(site, seconds)
        progress(f"swap: {rounds} turns of 2 x {seconds:.0f} s at {rate:.0f} requests/s")
        p50: dict[str, list[float]] = {"still": [], "swapping": []}
        failed = {"still": 0, "swapping": 0}
        start = len(site.server.repository.versions(model))

        def case(name: str) -> Callable[[int], float]:
            def measure(turn: int) -> float:
                spec = workload.spec(site, phases=[(seconds, rate)], seed=turn)
                if name == "swapping":
                    with _Publisher(site, model, interval):
                        outcome = run_load(spec)
                    _settle(site, model)
                else:
                    outcome = run_load(spec)
                    must_be_good(outcome, "without swaps")
                failed[name] += outcome.failed
                p50[name].append(outcome.quantile_ms(0.5))
                progress(f"swap: {name}, p99 {outcome.quantile_ms(0.99):.1f} ms, {outcome.failed} failed")
                return outcome.quantile_ms(0.99)

            return measure

        p99 = interleaved({name: case(name) for name in p50}, rounds)
        versions = len(site.server.repository.versions(model)) - start
    report = Report("swap")
    report.add("swap/p50", "latency", median(p50["swapping"]), "ms", limit=median(p50["still"]))
    report.add("swap/p99", "latency", median(p99["swapping"]), "ms", limit=median(p99["still"]), at_most=MOST)
    report.add("swap/failed", "errors", failed["swapping"], "requests", at_most=0)
    report.add("swap/versions", "published", versions, "versions", at_least=rounds)
    report.add("swap/rate", "throughput", rate, "requests/s")
    return report


class _Publisher:
    """Process that publishes versions until the block ends."""

    def __init__(self, site: Site, model: str, interval: float) -> None:
        argv = [sys.executable, "-m", "benchmarks.swap", str(site.server.repository.root), model, str(interval)]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> _Publisher:
        assert self._process.stdout is not None
        if not self._process.stdout.readline():  # its model is loaded, which must not disturb the measurement
            raise BatonError("the publisher did not start; its message is above")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # the end of its input ends it, after the version it is writing
        if self._process.returncode:
            raise BatonError("the publisher failed; its message is above")


def _settle(site: Site, model: str) -> None:
    newest = site.server.repository.latest(model)
    site.server.wait(lambda: site.server.serves(ENDPOINT, newest), f"version {newest} is not served", SETTLE_S)


def _publish(repository: Repository, name: str, interval: float) -> None:
    """Publish deltas, and bases as often as the worker does, until stdin ends."""
    import select

    import torch

    os.nice(NICE)
    torch.set_num_threads(1)
    latest = repository.open(name)
    model = load(repository.chain(latest))
    chain = [bundle.manifest.version for bundle in repository.chain(latest)]
    graphs: dict[str, DenseGraph] = {}
    rng = np.random.default_rng(int(latest.manifest.version))
    print("ready", flush=True)
    due = time.monotonic()
    while True:
        due += interval
        if select.select([sys.stdin], [], [], max(0.0, due - time.monotonic()))[0]:
            return
        _touch(model, rng)
        if len(chain) > COMPACT_AFTER:
            chain = []
        chain.append(save(model, repository, name, chain=chain, training=False, graphs=graphs).manifest.version)


def _touch(model: ClickModel, rng: np.random.Generator) -> None:
    """Change some rows of every table and all dense weights a little."""
    import torch

    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.mul_(1.0 + 1e-4 * float(rng.normal()))
    for table in model.tables.names:
        slots = rng.choice(model.tables.slots_of(table), TOUCHED_ROWS // len(model.tables.names), replace=True)
        slots = np.unique(slots)
        rows = model.tables.rows[slots] * np.float32(1.001)
        linear = model.tables.weights[slots] if model.network.uses_linear else None
        model.tables.set_rows(table, Table(model.tables.ids[slots], rows, model.tables.counts[slots], linear))


if __name__ == "__main__":
    _publish(Repository(Path(sys.argv[1])), sys.argv[2], float(sys.argv[3]))
