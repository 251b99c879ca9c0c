"""`baton bench ray`: cost of lanes that Ray places, against the same server started by `baton serve`, in turns.

A cluster of one node is started for the bench, in a network of its own, since Ray listens on all interfaces. Both servers
run at once and only one is called at a time, so the idle one costs both the same.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from benchmarks.load.run import run as run_load
from benchmarks.report import Progress, Report, interleaved, median
from benchmarks.server import SERVE, free_port
from benchmarks.site import Site, must_be_good, written
from pipeline.errors import BatonError, InvalidInput

__all__ = ["enter_own_network", "run"]

MODEL = "deepfm"
OWN_NETWORK = "BATON_OWN_NETWORK"
BUDGET_THROUGHPUT = 0.95
BUDGET_P50_MS = 0.3
START_LIMIT_S = 240.0
_START = "import ray.scripts.scripts; ray.scripts.scripts.main()"


def enter_own_network(arguments: Sequence[str]) -> None:
    """Run this command again in a network of its own, unless it runs in one already.

    Raises:
        InvalidInput: not by root, or without the commands that it takes.
    """
    if os.environ.get(OWN_NETWORK):
        return
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("ip"):
        raise InvalidInput("Ray listens on all interfaces: a network of its own needs root, unshare and ip", "ray")
    command = [sys.executable, "-m", "serving.cli.main", *arguments]
    inside = 'ip link set lo up && exec "$@"'
    os.environ[OWN_NETWORK] = "1"
    os.execvp(
        "unshare",
        ["unshare", "-n", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", inside, "sh", *command],
    )


def run(
    rows: int = 100,
    inflight: int = 8,
    seconds: float = 2.0,
    rounds: int = 7,
    table_rows: int = 400_000,
    progress: Progress = lambda _: None,
) -> Report:
    """Rows per second with `inflight` calls and the median latency of one call at a time, plain and under Ray.

    Args:
        rows: candidates per request.
        inflight: calls in flight for the throughput.
        seconds: of each measurement.
        rounds: turns; figures are their medians.
        table_rows: ids in all tables.
    """
    report = Report("ray")
    rates: dict[str, list[float]] = {"plain": [], "ray": []}
    halves: dict[str, list[float]] = {"plain": [], "ray": []}
    with written([MODEL], table_rows, {"ranker": MODEL}) as site, site.serving({"engine": {"lanes": 1}}) as server:
        progress("ray: starting a cluster of one node")
        with _on_ray(site) as port:
            ports = {"plain": server.port, "ray": port}

            def case(name: str) -> Callable[[int], float]:
                def measure(turn: int) -> float:
                    progress(f"ray: turn {turn + 1} of {rounds}, {name}")
                    for calls, found in ((inflight, rates), (1, halves)):
                        spec = site.spec("rank", "ranker", rows, inflight=calls, seconds=seconds)
                        spec = replace(spec, port=ports[name])
                        outcome = run_load(spec)
                        must_be_good(outcome, f"{name}, {calls} in flight")
                        found[name].append(outcome.throughput * rows if calls == inflight else outcome.quantile_ms(0.5))
                    return 0.0

                return measure

            interleaved({name: case(name) for name in ports}, rounds)
    name = f"rank/{MODEL}/rows={rows}"
    plain, ray = median(rates["plain"]), median(rates["ray"])
    report.add(f"plain/{name}/inflight={inflight}", "throughput", plain, "rows/s")
    report.add(f"ray/{name}/inflight={inflight}", "throughput", ray, "rows/s", limit=plain, at_least=BUDGET_THROUGHPUT)
    report.add(f"plain/{name}/inflight=1", "p50", median(halves["plain"]), "ms")
    report.add(f"ray/{name}/inflight=1", "p50", median(halves["ray"]), "ms", limit=median(halves["plain"]))
    more = median([ray - plain for ray, plain in zip(halves["ray"], halves["plain"], strict=True)])
    report.add(f"ray/{name}/inflight=1", "p50 more", more, "ms", at_most=BUDGET_P50_MS)
    return report


@contextmanager
def _on_ray(site: Site) -> Iterator[int]:
    """Ray cluster that serves the same bundles by one replica of one lane; gives its port."""
    home = site.folder / "ray-home"
    gcs, port = free_port(), free_port()
    config: dict[str, Any] = {
        "home": str(home),
        "bundles": str(site.server.home / "bundles"),
        "listen": {"grpc_port": port, "http_port": free_port(), "admin_port": free_port()},
        "engine": {"lanes": 1},
        "endpoints": {"ranker": {"stable": {"bundle": MODEL}}},
        "log_level": "warning",
        "ray": {"min_replicas": 1, "max_replicas": 1},
    }
    path = site.folder / "ray.yaml"
    path.write_text(yaml.safe_dump(config))
    head = [
        "start", "--head", "--block", f"--port={gcs}", "--node-ip-address=127.0.0.1", "--num-cpus=3",
        f"--object-store-memory={80 << 20}", "--include-dashboard=false", "--disable-usage-stats",
        f"--dashboard-agent-listen-port={free_port()}", f"--temp-dir={site.folder / 'ray'}",
    ]  # fmt: skip
    with ExitStack() as stack:
        log = stack.enter_context((site.folder / "ray.log").open("wb"))
        process = subprocess.Popen([sys.executable, "-c", _START, *head], stdout=log, stderr=log)
        stack.callback(_end, process)
        deploy = [sys.executable, "-c", SERVE, "serve", "--config", str(path), "--ray", f"127.0.0.1:{gcs}"]
        site.server.wait(lambda: _deployed(deploy, process, log), "Ray does not start", START_LIMIT_S)
        yield _port(path)


def _deployed(command: Sequence[str], head: subprocess.Popen[bytes], log: Any) -> bool:
    if head.poll() is not None:
        raise BatonError(f"ray start ended with {head.returncode}; its log is ray.log")
    return subprocess.run(command, stdout=log, stderr=log, check=False).returncode == 0


def _port(config: Path) -> int:
    command = [sys.executable, "-c", SERVE, "service", "list", "--config", str(config), "-o", "json"]
    told = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    (record,) = told["replicas"]
    return int(record["address"].rpartition(":")[2])


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
