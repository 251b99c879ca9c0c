"""`baton bench remote`: cost of a remote arm, as latency and throughput of calls through Baton against calls to the server.

The server is another Baton with one lane. In front of it stands one whose stable arm is that server's endpoint, with one
lane as well. Both get the same requests of the Open Inference Protocol, in turns.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.load.run import run as run_load
from benchmarks.report import Progress, Report, interleaved, median
from benchmarks.server import BatonServer, cpu_seconds
from benchmarks.site import ENDPOINT, INFER, Site, must_be_good, opened, spec_of
from transfer.bundles.remote.importing import RemoteFile, import_remote

__all__ = ["run"]

AWAY = "away"
ONE_LANE = {"engine": {"lanes": 1}}
TIMEOUT_MS = 5000.0


def run(
    seconds: float = 5.0,
    rounds: int = 5,
    rows: int = 100,
    inflight: int = 8,
    model: str = "deepfm",
    table_rows: int = 400_000,
    progress: Progress = lambda _: None,
) -> Report:
    """Medians over the turns.

    Args:
        seconds: of each measurement.
        rounds: turns.
        rows: candidates per request.
        inflight: calls in flight where throughput is measured; latency is of one.
    """
    report = Report("remote")
    with opened([model], table_rows, {ENDPOINT: model}, ONE_LANE) as site:
        front = BatonServer(site.folder / "front", {ENDPOINT: AWAY}, ONE_LANE)
        import_remote(_spec(site, model), front.repository, name=AWAY)
        with front:
            site.spec("oip", ENDPOINT, rows)  # writes the requests
            bodies = site.folder / f"oip-{ENDPOINT}-{rows}"
            latencies: dict[str, list[float]] = {"direct": [], "remote": []}
            cpu: dict[str, list[float]] = {"direct": [], "remote": []}

            def case(name: str, server: BatonServer) -> Callable[[int], float]:
                lane = [server.pids["lane-0"]]

                def measure(_: int) -> float:
                    before = cpu_seconds(lane)
                    one = run_load(spec_of(server.port, INFER, bodies, inflight=1, seconds=seconds))
                    must_be_good(one, f"remote {name}")
                    cpu[name].append(1e6 * (cpu_seconds(lane) - before) / one.calls)
                    latencies[name].append(one.quantile_ms(0.5))
                    several = run_load(spec_of(server.port, INFER, bodies, inflight=inflight, seconds=seconds))
                    must_be_good(several, f"remote {name}")
                    progress(f"remote: {name}, p50 {one.quantile_ms(0.5):.2f} ms, {several.throughput:.0f} requests/s")
                    return several.throughput

                return measure

            throughput = interleaved({"direct": case("direct", site.server), "remote": case("remote", front)}, rounds)
    head = f"rows={rows}"
    direct, remote = median(latencies["direct"]), median(latencies["remote"])
    report.add(f"remote/{head}/inflight=1", "p50", remote, "ms", limit=direct)
    report.add(f"remote/{head}/inflight=1", "p50 added", remote - direct, "ms")
    report.add(
        f"remote/{head}/inflight=1", "cpu of the lane", median(cpu["remote"]), "us/request", limit=median(cpu["direct"])
    )
    report.add(
        f"remote/{head}/inflight={inflight}", "throughput", median(throughput["remote"]), "requests/s",
        limit=median(throughput["direct"]),
    )  # fmt: skip
    return report


def _spec(site: Site, model: str) -> RemoteFile:
    fields = site.bundles[model].manifest.model_schema.fields
    said = {"name", "role", "kind", "separator", "missing", "transform"}
    return RemoteFile.model_validate(
        {
            "remote": {"address": f"grpc://127.0.0.1:{site.server.port}", "model": ENDPOINT, "timeout_ms": TIMEOUT_MS},
            "fields": [field.model_dump(include=said) for field in fields],
            "inputs": "packed",
            "outputs": {"click": "score"},
        }
    )
