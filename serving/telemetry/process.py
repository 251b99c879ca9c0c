"""Figures of a process, by Prometheus' conventions: seconds, `_total`, labels endpoint, arm, version, stage.

Each process writes its figures to `<home>/run/metrics/<process>.prom` every second, under a label `process`; the control
process merges the files for `/metrics` with `exposition.merged`. So a scrape costs a lane nothing, and the figures of a
process that died disappear when its file grows old. No label is by user, request or candidate; the exemplar of a latency
names the trace of one request, where calls are traced.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from prometheus_client import CollectorRegistry, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from pipeline.disk import refused_writes
from pipeline.reports import write_report
from serving.telemetry.exposition import rendered
from serving.telemetry.histogram import Histogram

# Otherwise every series gets a sample with its start time, which is not used.
disable_created_metrics()  # type: ignore[no-untyped-call]

__all__ = ["Telemetry"]

KEPT_VERSIONS = 4
QUEUE = "queue"
"""Name of the waiting time in an event's timings; it is published apart from the stages' work."""

_LATENCY_EDGES_S = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
_STAGE_EDGES_S = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0)

_Arm = tuple[str, str, str]
"""Endpoint, arm, version."""
_ARM = ["process", "endpoint", "arm", "version"]


T = TypeVar("T")


class _Series:
    """The figures of one version."""

    __slots__ = ("latency", "queue", "rows", "stages")

    def __init__(self) -> None:
        self.latency = Histogram(_LATENCY_EDGES_S)
        self.queue = Histogram(_STAGE_EDGES_S)
        self.rows = 0
        self.stages: dict[str, Histogram] = {}


class Telemetry(Collector):
    """Metrics of one process. One thread counts; any may `write`.

    Args:
        process: its name, `lane-0` or `shadow`, in the label `process` of every sample.
    """

    def __init__(self, process: str) -> None:
        self.process = process
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        self._series: dict[_Arm, _Series] = {}
        self._shadowed: dict[_Arm, Histogram] = {}
        self._failed: Counter[tuple[str, ...]] = Counter()
        self._degraded: Counter[tuple[str, ...]] = Counter()
        self._feedback: Counter[tuple[str, ...]] = Counter()
        self._observed: Counter[tuple[str, ...]] = Counter()
        self._ready: Mapping[tuple[str, str], str] = {}
        self._pending = 0

    def answered(
        self,
        endpoint: str,
        arm: str,
        version: str,
        seconds: float,
        rows: int,
        stages: Mapping[str, float],
        trace_id: str = "",
    ) -> None:
        """A request answered with scores; `stages` are an event's timings in seconds, `trace_id` of its spans if it has
        any."""
        series = self._series.get((endpoint, arm, version))
        if series is None:
            series = _Series()
            self._series = _latest(self._series, (endpoint, arm, version), series)
        series.latency.observe(seconds, trace_id)
        series.rows += rows
        for stage, spent in stages.items():
            if stage == QUEUE:
                series.queue.observe(spent)
                continue
            histogram = series.stages.get(stage)
            if histogram is None:
                histogram = Histogram(_STAGE_EDGES_S)
                series.stages = {**series.stages, stage: histogram}
            histogram.observe(spent)

    def failed(self, endpoint: str, code: str) -> None:
        """A request that ended with a gRPC code other than OK. `endpoint` is "" when there is none of that name."""
        self._failed[endpoint, code] += 1

    def degraded(self, endpoint: str, reason: str) -> None:
        self._degraded[endpoint, reason] += 1

    def feedback(self, kind: str, statuses: Iterable[str]) -> None:
        """Statuses of exposures or outcomes (`kind`)."""
        for status in statuses:
            self._feedback[kind, status] += 1

    def observed(self, endpoint: str, statuses: Iterable[str]) -> None:
        """Statuses of predictions that were answered elsewhere."""
        for status in statuses:
            self._observed[endpoint, status] += 1

    def pending(self, count: int) -> None:
        self._pending = count

    def shadowed(self, endpoint: str, arm: str, version: str, seconds: float, trace_id: str = "") -> None:
        """A prediction scored by the arm that did not answer."""
        histogram = self._shadowed.get((endpoint, arm, version))
        if histogram is None:
            histogram = Histogram(_LATENCY_EDGES_S)
            self._shadowed = _latest(self._shadowed, (endpoint, arm, version), histogram)
        histogram.observe(seconds, trace_id)

    def ready(self, arms: Mapping[tuple[str, str], str]) -> None:
        """The versions that answer now: (endpoint, arm) -> version."""
        self._ready = dict(arms)

    def tally(self, name: str, text: str, label: str, read: Callable[[], Mapping[str, int]]) -> None:
        """Publish counters by one label; `read` is called when the figures are written."""
        self._registry.register(_Tally(self.process, name, text, label, read))

    def tallies(
        self, name: str, text: str, labels: Sequence[str], read: Callable[[], Mapping[tuple[str, ...], int]]
    ) -> None:
        """`tally` by several labels."""
        self._registry.register(_Tallies(self.process, CounterMetricFamily, name, text, labels, read))

    def gauges(
        self, name: str, text: str, labels: Sequence[str], read: Callable[[], Mapping[tuple[str, ...], float]]
    ) -> None:
        """Publish figures that rise and fall, by labels; `read` is called when the figures are written."""
        self._registry.register(_Tallies(self.process, GaugeMetricFamily, name, text, labels, read))

    def sizes(
        self, name: str, text: str, bounds: Sequence[int], read: Callable[[], tuple[Sequence[int], float]]
    ) -> None:
        """Publish a histogram; `read` returns the counts (one more than bounds) and the sum."""
        self._registry.register(_Sizes(self.process, name, text, bounds, read))

    def include(self, collector: Collector) -> None:
        """Publish the families of a collector, called when the figures are written."""
        self._registry.register(collector)

    def write(self, folder: Path) -> None:
        """Write the figures for `merged`, as OpenMetrics; a reader sees them whole."""
        write_report(folder / f"{self.process}.prom", rendered(self._registry.collect()))

    def collect(self) -> Iterator[Metric]:
        """All figures as Prometheus' families."""
        series = self._series
        yield self._histograms(
            "baton_request_seconds", "From the request's arrival to its answer", _ARM,
            ((key, s.latency) for key, s in series.items()),
        )  # fmt: skip
        yield self._histograms(
            "baton_queue_seconds", "Waiting for a worker, of requests that had to", _ARM,
            ((key, s.queue) for key, s in series.items()),
        )  # fmt: skip
        yield self._histograms(
            "baton_stage_seconds", "Work by stage", [*_ARM, "stage"],
            (((*key, stage), h) for key, s in series.items() for stage, h in s.stages.items()),
        )  # fmt: skip
        yield self._histograms(
            "baton_shadow_seconds", "Scoring one prediction by the other arm", _ARM, self._shadowed.items()
        )
        rows: dict[tuple[str, ...], int] = {key: s.rows for key, s in series.items()}
        yield self._counters("baton_rows", "Candidates scored for clients", _ARM, rows)
        yield self._counters(
            "baton_request_failures", "Requests not answered with scores", ["process", "endpoint", "code"], self._failed
        )
        yield self._counters(
            "baton_degraded", "Answers that could have been better", ["process", "endpoint", "reason"], self._degraded
        )
        yield self._counters(
            "baton_feedback",
            "Exposures and outcomes by what became of them",
            ["process", "kind", "status"],
            self._feedback,
        )
        yield self._counters(
            "baton_observed",
            "Predictions that other servers answered, by what became of them",
            ["process", "endpoint", "status"],
            self._observed,
        )
        ready = GaugeMetricFamily("baton_model_ready", "1 where a version answers for an arm", labels=_ARM)
        for (endpoint, arm), version in self._ready.items():
            ready.add_metric([self.process, endpoint, arm, version], 1)
        yield ready
        yield self._counters(
            "baton_disk_refused_writes",
            "Writes that a disk refused: full, read-only or failed",
            ["process", "reason"],
            {(reason,): count for reason, count in refused_writes().items()},
        )
        pending = GaugeMetricFamily("baton_pending_requests", "Requests waiting or at work", labels=["process"])
        pending.add_metric([self.process], self._pending)
        yield pending

    def _histograms(
        self, name: str, text: str, labels: Sequence[str], found: Iterable[tuple[tuple[str, ...], Histogram]]
    ) -> Metric:
        family = HistogramMetricFamily(name, text, labels=labels)
        for values, histogram in found:
            family.add_metric([self.process, *values], histogram.buckets(), histogram.total)
        return family

    def _counters(self, name: str, text: str, labels: Sequence[str], counts: Mapping[tuple[str, ...], int]) -> Metric:
        family = CounterMetricFamily(name, text, labels=labels)
        for values, count in dict(counts).items():
            family.add_metric([self.process, *values], count)
        return family


def _latest(kept: Mapping[_Arm, T], key: _Arm, new: T) -> dict[_Arm, T]:
    """The mapping with one more version, without the oldest of its arm: versions come without end."""
    same = deque((k for k in kept if k[:2] == key[:2]), maxlen=KEPT_VERSIONS - 1)
    return {**{k: v for k, v in kept.items() if k[:2] != key[:2] or k in same}, key: new}


class _Tallies(Collector):
    def __init__(
        self,
        process: str,
        kind: type[CounterMetricFamily] | type[GaugeMetricFamily],
        name: str,
        text: str,
        labels: Sequence[str],
        read: Callable[[], Mapping[tuple[str, ...], float]],
    ) -> None:
        self._kind = kind
        self._process, self._name, self._text, self._labels = process, name, text, labels
        self._read = read

    def collect(self) -> Iterator[Metric]:
        family = self._kind(self._name, self._text, labels=["process", *self._labels])
        for values, count in self._read().items():
            family.add_metric([self._process, *values], count)
        yield family

    def describe(self) -> list[Metric]:
        return []


class _Tally(Collector):
    def __init__(self, process: str, name: str, text: str, label: str, read: Callable[[], Mapping[str, int]]) -> None:
        self._head = (process, name, text, label)
        self._read = read

    def collect(self) -> Iterator[Metric]:
        process, name, text, label = self._head
        family = CounterMetricFamily(name, text, labels=["process", label])
        for value, count in dict(self._read()).items():
            family.add_metric([process, value], count)
        yield family


class _Sizes(Collector):
    def __init__(
        self,
        process: str,
        name: str,
        text: str,
        bounds: Sequence[int],
        read: Callable[[], tuple[Sequence[int], float]],
    ) -> None:
        self._head = (process, name, text, bounds)
        self._read = read

    def collect(self) -> Iterator[Metric]:
        process, name, text, bounds = self._head
        family = HistogramMetricFamily(name, text, labels=["process"])
        counts, total = self._read()
        histogram = Histogram(bounds)
        histogram.counts = list(counts)
        family.add_metric([process], histogram.buckets(), total)
        yield family
