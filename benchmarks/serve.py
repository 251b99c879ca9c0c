"""`baton bench serve`: throughput and latency of Baton, of the network alone, and of a bare server around the network.

    in-process    the limit: ONNX Runtime on all cores, fed from memory (`limit.py`)
    bare          grpc.aio with the model and nothing else, a process per core (`bare.py`)
    oip           Baton by Open Inference, raw tensors of hashed ids; rows share their context, as those of one request do
    mixed         the same with a context of its own in every row: nothing is computed once
    rank          Baton by `Rank`: 60 % of the fields sent once per request instead of once per candidate
    rankstream    the same messages on long streams
    direct        oip by the bundle's own name, which the traffic log does not record: what recording costs

All are up at once and measured in turns by closed loops; then latency by open loops at one rate for all, half of what the
slowest can do. Each has its CPU time per request beside it, which tells more than its speed while something else runs
on the machine; Baton's is that of all its processes. The models are the zoo's, so that a bundle is what training writes; Baton runs as `baton serve` with its
traffic log on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.bare import BareServer
from benchmarks.limit import Limit
from benchmarks.load.generator import Spec, write_bodies
from benchmarks.load.run import run as run_load
from benchmarks.models import gathered_graph
from benchmarks.onnx_session import session
from benchmarks.report import Progress, Report, cores, interleaved, median
from benchmarks.server import cpu_seconds, free_port
from benchmarks.site import INFER, MIXED, WAYS, Site, must_be_good, opened, spec_of

__all__ = ["run"]

OF_LIMIT = 0.58
"""OIP, DeepFM, 100 rows, 8 in flight against in-process, in rows/s."""
OF_MIXED = 1.3
"""`Rank` against rows that share nothing, 100 rows, 8 in flight: the gain of computing the context once."""
OF_BARE = {1: 0.85, 100: 0.95}
"""OIP against the bare server, by rows, 8 in flight."""
AT = 8
HALF = 0.5
LATENCY_TIMES = 2
"""How much longer an open loop takes than a closed one."""


def run(
    models: Sequence[str] = ("deepfm", "dcnv2"),
    rows: Sequence[int] = (1, 100, 500),
    inflight: Sequence[int] = (1, 8, 32),
    seconds: float = 1.0,
    rounds: int = 3,
    table_rows: int = 400_000,
    settings: Mapping[str, Any] | None = None,
    progress: Progress = lambda _: None,
) -> Report:
    """Figures of every model, one after the other.

    Args:
        models: architectures of the zoo.
        rows: candidates per request.
        inflight: calls in flight.
        seconds: of each closed loop in each turn; open loops take twice as long.
        rounds: turns; figures are their medians.
        table_rows: ids in all tables of a model together.
        settings: sections of baton.yaml over the defaults.
    """
    report = Report("serve")
    for model in models:
        progress(f"serve: {model}, writing and starting")
        with opened([model], table_rows, {"ranker": model}, settings) as site:
            graph = site.folder / "whole.onnx"
            gathered_graph(site.bundles[model], site.vocabulary, graph)
            with BareServer(graph, free_port(), cores()) as bare:
                _Serve(report, site, bare, model, seconds, rounds, progress).measure(rows, inflight)
    return report


class _Serve:
    """Bench of one model: cases by name, each a figure in rows/s."""

    def __init__(
        self, report: Report, site: Site, bare: BareServer, model: str, seconds: float, rounds: int, progress: Progress
    ) -> None:
        self._report, self._site, self._model, self._bare = report, site, model, bare
        self._seconds, self._rounds, self._progress = seconds, rounds, progress
        self._limit = Limit(site.folder / "whole.onnx", site.bundles[model], site.vocabulary, cores())
        self._cpu: dict[str, list[float]] = {}
        """CPU seconds per request of client and server, by case."""

    def measure(self, rows: Sequence[int], inflight: Sequence[int]) -> None:
        """Check the scores, measure in turns, add the figures."""
        self._check(min(rows))
        cases: dict[str, Callable[[int], float]] = {}
        for n in rows:
            for way in self._limit.ways:
                cases[f"{way}/rows={n}"] = self._in_process(way, n)
            for c in inflight:
                for way in self._ways(c):
                    cases[f"{way}/rows={n}/inflight={c}"] = self._closed(way, n, c)
        self._progress(f"serve: {self._model}, {len(cases)} cases in {self._rounds} turns")
        found = {name: median(values) for name, values in interleaved(cases, self._rounds).items()}
        limits = {}
        for n in rows:
            best = max((f"{way}/rows={n}" for way in self._limit.ways), key=lambda name: found[name])
            limits[n] = found[best]
            self._report.add(f"in-process/{self._model}/rows={n}", "throughput", found[best], "rows/s")
            self._report.add(f"in-process/{self._model}/rows={n}", "cpu", 1e6 * median(self._cpu[best]), "us/request")
        for n in rows:
            for c in inflight:
                self._note(found, limits[n], n, c)
        for n in rows:
            slowest = min(found[f"{way}/rows={n}/inflight={max(inflight)}"] for way in ("bare", *WAYS))
            self._latency(n, HALF * slowest / n)
        self._report.add(f"client/{self._model}", "cpu", 1e6 * median(self._cpu["client"]), "us/request")
        self._log()

    def _ways(self, c: int) -> list[str]:
        return ["bare", *WAYS, *(["direct", MIXED] if c == AT else [])]

    def _check(self, n: int) -> None:
        drawn = self._site.candidates(n)
        whole = session(self._site.folder / "whole.onnx", 1)
        expected = whole.run(["score"], {"index": np.ascontiguousarray(drawn.dense[0])})[0]
        for way in WAYS:
            self._site.check(way, "ranker", expected)

    def _in_process(self, way: str, n: int) -> Callable[[int], float]:
        index = self._site.candidates(n).dense

        def measure(_: int) -> float:
            rate, cpu = self._limit.measure(way, index, self._seconds / 2)
            self._cpu.setdefault(f"{way}/rows={n}", []).append(cpu)
            return rate

        return measure

    def _closed(self, way: str, n: int, c: int) -> Callable[[int], float]:
        spec = self._spec(way, n, inflight=c, seconds=self._seconds)

        name = f"{way}/rows={n}/inflight={c}"
        server = self._bare.pids if way == "bare" else self._site.server.pids.values()

        def measure(_: int) -> float:
            before = cpu_seconds(server)
            outcome = run_load(spec)
            must_be_good(outcome, name)
            self._cpu.setdefault(name, []).append((cpu_seconds(server) - before) / outcome.calls)
            self._cpu.setdefault("client", []).append(outcome.cpu_seconds / outcome.calls)
            return outcome.throughput * n

        return measure

    def _spec(self, way: str, n: int, **load: Any) -> Spec:
        if way == "direct":
            return self._site.spec("oip", self._model, n, **load)
        if way != "bare":
            return self._site.spec(way, "ranker", n, **load)
        path = self._site.folder / f"bare-{n}"
        if not path.exists():
            drawn = self._site.candidates(n)
            write_bodies(path, drawn.infer_bodies("ranker", drawn.dense, "index"))
        return spec_of(self._bare.port, INFER, path, **load)

    def _note(self, found: Mapping[str, float], limit: float, n: int, c: int) -> None:
        model, place = self._model, f"rows={n}/inflight={c}"
        budget = OF_LIMIT if (model, n, c) == ("deepfm", 100, AT) else None
        for way in self._ways(c):
            self._report.add(
                f"{way}/{model}/{place}",
                "throughput",
                found[f"{way}/{place}"],
                "rows/s",
                limit=limit,
                at_least=budget if way == "oip" else None,
            )
            cpu = 1e6 * median(self._cpu[f"{way}/{place}"])
            self._report.add(f"{way}/{model}/{place}", "cpu", cpu, "us/request")
        self._report.add(
            f"oip/{model}/{place}",
            "throughput against bare",
            found[f"oip/{place}"],
            "rows/s",
            limit=found[f"bare/{place}"],
            at_least=OF_BARE.get(n) if c == AT else None,
        )
        for way in ("rank", "rankstream", *(["direct"] if c == AT else [])):
            self._report.add(
                f"{way}/{model}/{place}",
                "throughput against oip",
                found[f"{way}/{place}"],
                "rows/s",
                limit=found[f"oip/{place}"],
            )
        if c == AT:
            self._report.add(
                f"rank/{model}/{place}",
                "throughput against mixed",
                found[f"rank/{place}"],
                "rows/s",
                limit=found[f"{MIXED}/{place}"],
                at_least=OF_MIXED if n == 100 else None,
            )

    def _latency(self, n: int, rate: float) -> None:
        """Quantiles of open loops at one rate (requests/s) for all that answer single calls."""
        ways = ("bare", "oip", "rank")
        self._progress(f"serve: {self._model}, latency of {n} rows at {rate:.0f} requests/s")
        quantiles: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}

        def case(way: str) -> Callable[[int], float]:
            def measure(turn: int) -> float:
                outcome = run_load(self._spec(way, n, phases=[(LATENCY_TIMES * self._seconds, rate)], seed=turn))
                must_be_good(outcome, f"{way} at {rate:.0f} requests/s")
                quantiles[way].append((outcome.quantile_ms(0.5), outcome.quantile_ms(0.99)))
                return outcome.quantile_ms(0.5)

            return measure

        interleaved({way: case(way) for way in ways}, self._rounds)
        for place, metric in enumerate(("p50", "p99")):
            bare = median([pair[place] for pair in quantiles["bare"]])
            for way in ways:
                value = median([pair[place] for pair in quantiles[way]])
                limit = None if way == "bare" else bare
                self._report.add(f"{way}/{self._model}/rows={n}/half-load", metric, value, "ms", limit=limit)

    def _log(self) -> None:
        """Add the fraction of answers that the traffic log could take."""
        writers = [lane.writer for lane in self._site.server.lanes()]
        offered = sum(writer.offered for writer in writers)
        dropped = sum(sum(writer.dropped.values()) for writer in writers)
        self._report.add(f"log/{self._model}", "dropped", dropped / max(1, offered), "share")
