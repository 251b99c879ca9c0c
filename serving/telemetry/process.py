"""Figures of a process, by Prometheus' conventions: seconds, `_total`, labels endpoint, arm, version, stage.

Each process writes its figures to `<home>/run/metrics/<process>.prom` every second, under a label `process`; the control
process merges the files for `/metrics` with `exposition.merged`. So a scrape costs a lane nothing, and the figures of a
process that died disappear when its file grows old. No label is by user, request or candidate; the exemplar of a latency
names the trace of one request, where calls are traced.

A counter exists at zero before its first event: a series that is born with its first increment has had no increase, and no
alert sees it. Values of labels that strangers choose are bounded: an endpoint that is none is `UNKNOWN`, and of callers the
first `MAX_CALLERS` have series of their own.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TypeVar

from prometheus_client import CollectorRegistry, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from pipeline.disk import refused_writes
from pipeline.reports import write_report
from pipeline.traffic.log import ACCEPTED, DUPLICATE, EXPIRED, INVALID
from serving.telemetry.exposition import rendered
from serving.telemetry.histogram import Histogram

# Otherwise every series gets a sample with its start time, which is not used.
disable_created_metrics()  # type: ignore[no-untyped-call]

__all__ = ["CALLERS_CODES", "UNKNOWN", "Telemetry", "by_endpoint"]

KEPT_VERSIONS = 4
UNKNOWN = "unknown"
"""Endpoint of what names none that there is."""
ANONYMOUS, OTHERS = "anonymous", "others"
MAX_CALLERS = 64
CALLERS_CODES = ("INVALID_ARGUMENT", "NOT_FOUND", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED")
"""Codes of requests that fail by what the caller sent, or how much."""
CODES = (*CALLERS_CODES, "UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL", "FAILED_PRECONDITION")
LABEL_CODES = (DUPLICATE, EXPIRED, INVALID, "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "UNAVAILABLE")
"""Of one label, and of a call of which nothing could be taken."""
KINDS, STATUSES = ("exposure", "exposed_all", "outcome"), (ACCEPTED, DUPLICATE, EXPIRED, INVALID)
QUEUE = "queue"
"""Name of the waiting time in an event's timings; it is published apart from the stages' work."""

_DELAY_EDGES_S = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 7200.0, 21_600.0, 86_400.0, 604_800.0)
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
        self._delays: dict[str, Histogram] = {}
        self._late: Counter[tuple[str, ...]] = Counter()
        self._callers: Counter[tuple[str, ...]] = Counter()
        self._known_callers: set[str] = set()
        self._observed: Counter[tuple[str, ...]] = Counter()
        self._making = threading.Lock()
        self._ready: Mapping[tuple[str, str], str] = {}
        self._pending = 0

    def expect(self, endpoints: Iterable[str], callers: Iterable[str] = (), degraded: Iterable[str] = ()) -> None:
        """Have the counters of these endpoints, callers and reasons of degraded answers at zero, where they have counted
        nothing yet."""
        endpoints, degraded = tuple(endpoints), tuple(degraded)
        for endpoint in (*endpoints, UNKNOWN):
            for kind, status in product(KINDS, STATUSES):
                self._feedback.setdefault((endpoint, kind, status), 0)
            for code in CODES:
                self._failed.setdefault((endpoint, code), 0)
        for endpoint in endpoints:
            self._delay(endpoint)
            self._late.setdefault((endpoint,), 0)
            for reason in degraded:
                self._degraded.setdefault((endpoint, reason), 0)
            for status in STATUSES:
                self._observed.setdefault((endpoint, status), 0)
        for caller in (ANONYMOUS, OTHERS, *callers):
            self._caller(caller)

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
        series = self._of(endpoint, arm, version)
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
        self._failed[endpoint or UNKNOWN, code] += 1

    def caller_failed(self, caller: str, what: str, code: str) -> None:
        """A request or a label (`what`) that was refused. `caller` is "" where nobody knows who sent it."""
        self._callers[self._caller(caller or ANONYMOUS), what, code] += 1

    def degraded(self, endpoint: str, reason: str) -> None:
        self._degraded[endpoint, reason] += 1

    def feedback(self, endpoint: str, kind: str, statuses: Iterable[str]) -> None:
        """Statuses of exposures or outcomes (`kind`). `endpoint` is "" where the prediction is not known."""
        for status in statuses:
            self._feedback[endpoint or UNKNOWN, kind, status] += 1

    def labelled(self, endpoint: str, seconds: float, count: int, late: bool) -> None:
        """Labels that were accepted, so long after their prediction. `late`: after their attribution window."""
        self._delay(endpoint).observe(seconds, count=count)
        if late:
            self._late[endpoint,] += count

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
        for (endpoint, arm), version in arms.items():
            self._of(endpoint, arm, version)

    def tally(
        self, name: str, text: str, label: str, read: Callable[[], Mapping[str, int]], zeros: Iterable[str] = ()
    ) -> None:
        """Publish counters by one label; `read` is called when the figures are written.

        Args:
            zeros: values of the label that are there from the start.
        """
        none = dict.fromkeys(zeros, 0)
        self.tallies(name, text, (label,), lambda: {(value,): n for value, n in {**none, **read()}.items()})

    def tallies(
        self, name: str, text: str, labels: Sequence[str], read: Callable[[], Mapping[tuple[str, ...], int]]
    ) -> None:
        """`tally` by several labels. What `read` returns has the values that are there from the start, at zero."""
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
            ["process", "endpoint", "kind", "status"],
            self._feedback,
        )
        yield self._histograms(
            "baton_label_delay_seconds", "From a prediction to a label of it that was accepted", ["process", "endpoint"],
            (((endpoint,), h) for endpoint, h in list(self._delays.items())),
        )  # fmt: skip
        yield self._counters(
            "baton_labels_late",
            "Labels that were accepted after the attribution window of their prediction",
            ["process", "endpoint"],
            self._late,
        )
        yield self._counters(
            "baton_caller_failures",
            "Requests and labels that were refused, by who sent them",
            ["process", "caller", "what", "code"],
            self._callers,
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

    def _of(self, endpoint: str, arm: str, version: str) -> _Series:
        key = endpoint, arm, version
        series = self._series.get(key)
        if series is None:
            with self._making:
                series = self._series.get(key)
                if series is None:
                    series = _Series()
                    self._series = _latest(self._series, key, series)
        return series

    def _delay(self, endpoint: str) -> Histogram:
        histogram = self._delays.get(endpoint)
        if histogram is None:
            histogram = self._delays.setdefault(endpoint, Histogram(_DELAY_EDGES_S))
        return histogram

    def _caller(self, name: str) -> str:
        """The name in the label: the caller's own, or `OTHERS` where too many have been seen."""
        if name in self._known_callers:
            return name
        if len(self._known_callers) >= MAX_CALLERS + 2:
            return OTHERS
        self._known_callers.add(name)
        for what, codes in (("request", CALLERS_CODES), ("label", LABEL_CODES)):
            for code in codes:
                self._callers.setdefault((name, what, code), 0)
        return name

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


def by_endpoint(
    endpoints: Iterable[str], cases: Iterable[str], counts: Mapping[tuple[str, str], int]
) -> dict[tuple[str, ...], int]:
    """Counts by endpoint and case: zero of each endpoint where nothing was counted, and of `UNKNOWN` what names none of them.

    >>> by_endpoint(["a"], ["full"], {("a", "full"): 2, ("gone", "full"): 3})
    {('a', 'full'): 2, ('unknown', 'full'): 3}
    """
    known = {*endpoints}
    found: dict[tuple[str, ...], int] = dict.fromkeys(product([*sorted(known), UNKNOWN], cases), 0)
    for (endpoint, case), count in list(counts.items()):
        key = endpoint if endpoint in known else UNKNOWN, case
        found[key] = found.get(key, 0) + count
    return found


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
