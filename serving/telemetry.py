"""What every process counts, in Prometheus' terms: seconds, `_total`, labels endpoint, arm, version, stage.

Each process writes its figures to `<home>/run/metrics/<process>.prom` every second, under a label `process`; the one
that answers `/metrics` puts the files together with `merged`. So a scrape costs a lane nothing, and a process that died
leaves the answer when its file grows old. Never a label by user, request or candidate.
"""

from __future__ import annotations

import os
import time
from collections import Counter as Tally
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

# One more sample per series that says when it began: of no use to anyone here.
disable_created_metrics()  # type: ignore[no-untyped-call]

__all__ = ["METRICS_DIR", "Telemetry", "merged"]

METRICS_DIR = Path("run") / "metrics"
STALE_AFTER = 10.0
KEPT_VERSIONS = 4
_LATENCY = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
_STAGE = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0)


@dataclass(slots=True)
class _Series:
    """Series of one version, found once."""

    latency: Histogram
    rows: Counter
    stages: dict[str, Histogram] = field(default_factory=dict)


class Telemetry:
    """The figures of one process.

    Args:
        process: its name, `lane-0` or `shadow`, in the label `process` of every sample.
    """

    def __init__(self, process: str) -> None:
        self.process = process
        self.registry = CollectorRegistry()
        self._series: dict[tuple[str, str, str], _Series] = {}
        self._shadow_versions: deque[tuple[str, str, str]] = deque()
        arm = ("process", "endpoint", "arm", "version")
        self._latency = Histogram(
            "baton_request_seconds",
            "From the request's arrival to its answer",
            arm,
            registry=self.registry,
            buckets=_LATENCY,
        )
        self._rows = Counter("baton_rows", "Candidates scored for clients", arm, registry=self.registry)
        self._stage = Histogram(
            "baton_stage_seconds", "Work by stage; `queue` is waiting", ("process", "endpoint", "arm", "version", "stage"),
            registry=self.registry, buckets=_STAGE,
        )  # fmt: skip
        self._failed = Counter(
            "baton_request_failures", "Requests not answered with scores", ("process", "endpoint", "code"), registry=self.registry
        )  # fmt: skip
        self._degraded = Counter(
            "baton_degraded", "Answers that could have been better", ("process", "endpoint", "reason"), registry=self.registry
        )  # fmt: skip
        self._feedback = Counter(
            "baton_feedback", "Exposures and outcomes by what became of them", ("process", "status"), registry=self.registry
        )  # fmt: skip
        self._loaded = Gauge("baton_model_ready", "1 where a version answers for an arm", arm, registry=self.registry)
        self._pending = Gauge(
            "baton_pending_requests", "Requests waiting or at work", ("process",), registry=self.registry
        )
        self._shadow_seconds = Histogram(
            "baton_shadow_seconds",
            "Scoring one prediction by the other arm",
            arm,
            registry=self.registry,
            buckets=_LATENCY,
        )

    def answered(
        self, endpoint: str, arm: str, version: str, seconds: float, rows: int, stages: Mapping[str, float]
    ) -> None:
        """A request answered with scores."""
        series = self._series.get((endpoint, arm, version)) or self._begin(endpoint, arm, version)
        series.latency.observe(seconds)
        series.rows.inc(rows)
        for stage, spent in stages.items():
            child = series.stages.get(stage)
            if child is None:
                child = series.stages[stage] = self._stage.labels(self.process, endpoint, arm, version, stage)
            child.observe(spent)

    def _begin(self, endpoint: str, arm: str, version: str) -> _Series:
        """The series of a version; those of the oldest make room, for versions come and go without end."""
        place = [key for key in self._series if key[:2] == (endpoint, arm)]
        for old in place[: max(0, len(place) - KEPT_VERSIONS + 1)]:
            labels = (self.process, *old)
            self._latency.remove(*labels)
            self._rows.remove(*labels)
            for stage in self._series.pop(old).stages:
                self._stage.remove(*labels, stage)
        labels = (self.process, endpoint, arm, version)
        series = _Series(self._latency.labels(*labels), self._rows.labels(*labels))
        self._series[endpoint, arm, version] = series
        return series

    def failed(self, endpoint: str, code: str) -> None:
        """A request that ended with a gRPC code other than OK. `endpoint` is "" when there is none of that name."""
        self._failed.labels(self.process, endpoint, code).inc()

    def degraded(self, endpoint: str, reason: str) -> None:
        self._degraded.labels(self.process, endpoint, reason).inc()

    def feedback(self, status: str, count: int = 1) -> None:
        self._feedback.labels(self.process, status).inc(count)

    def pending(self, count: int) -> None:
        self._pending.labels(self.process).set(count)

    def shadowed(self, endpoint: str, arm: str, version: str, seconds: float) -> None:
        """A prediction scored by the arm that did not answer."""
        if (endpoint, arm, version) not in self._shadow_versions:
            self._shadow_versions.append((endpoint, arm, version))
            if len(self._shadow_versions) > 4 * KEPT_VERSIONS:
                self._shadow_seconds.remove(self.process, *self._shadow_versions.popleft())
        self._shadow_seconds.labels(self.process, endpoint, arm, version).observe(seconds)

    def ready(self, arms: Mapping[tuple[str, str], str]) -> None:
        """The versions that answer now: (endpoint, arm) -> version."""
        self._loaded.clear()
        for (endpoint, arm), version in arms.items():
            self._loaded.labels(self.process, endpoint, arm, version).set(1)

    def tally(self, name: str, text: str, label: str, read: Callable[[], Mapping[str, int]]) -> None:
        """Publish counters that someone else keeps, by one label; `read` is called when the figures are written."""
        self.registry.register(_Tally(self.process, name, text, label, read))

    def write(self, folder: Path) -> None:
        """Write the figures for `merged`; a reader sees them whole."""
        folder.mkdir(parents=True, exist_ok=True)
        staging = folder / f".{self.process}.{os.getpid()}"
        staging.write_bytes(generate_latest(self.registry))
        staging.replace(folder / f"{self.process}.prom")


class _Tally(Collector):
    def __init__(self, process: str, name: str, text: str, label: str, read: Callable[[], Mapping[str, int]]) -> None:
        self._head = (process, name, text, label)
        self._read = read

    def collect(self) -> Iterator[Metric]:
        process, name, text, label = self._head
        family = CounterMetricFamily(name, text, labels=["process", label])
        for value, count in Tally(dict(self._read())).items():
            family.add_metric([process, value], count)
        yield family

    def describe(self) -> list[Metric]:
        return []


def merged(folder: Path, *, now: Callable[[], float] = time.time, stale_after: float = STALE_AFTER) -> bytes:
    """All processes' figures as one Prometheus text; files older than `stale_after` seconds are left out."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.prom")) if folder.is_dir() else []:
        try:
            if now() - path.stat().st_mtime > stale_after:
                continue
            text = path.read_text()
        except FileNotFoundError:
            continue
        family = ""
        for line in text.splitlines():
            if line.startswith("# HELP "):
                family = line.split(" ", 3)[2]
                heads.setdefault(family, [line])
            elif line.startswith("# TYPE "):
                if len(heads.setdefault(family, [])) < 2:
                    heads[family].append(line)
            elif line:
                samples.setdefault(family, []).append(line)
    lines = [line for family in heads if samples.get(family) for line in (*heads[family], *samples[family])]
    return ("\n".join(lines) + "\n").encode() if lines else b""
