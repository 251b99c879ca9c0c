"""Metrics of a lane under Triton's names, for dashboards that exist for Triton.

Names, labels `model` and `version` and meanings are Triton's; the label `process` is added, since several lanes answer.
Figures that a lane does not have by model are left out: batch executions, pending requests, and Triton's response cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from prometheus_client.metrics_core import Metric, UnknownMetricFamily
from prometheus_client.registry import Collector

__all__ = ["TritonNames"]

PREFIX = "nv_inference_"


class Tally(Protocol):
    """Totals of one version; durations in seconds (`serving.lane.dispatch.ModelTally`)."""

    answered: int
    failed: int
    rows: int
    seconds: float

    @property
    def stages(self) -> Mapping[str, float]: ...


class TritonNames(Collector):
    """Collected by a lane's `Telemetry` where `telemetry.triton_names` is set.

    Args:
        process: the lane's name.
        tallies: by (bundle, version).
    """

    def __init__(self, process: str, tallies: Callable[[], Mapping[tuple[str, str], Tally]]) -> None:
        self._process = process
        self._tallies = tallies

    def collect(self) -> Iterator[Metric]:
        tallies = dict(self._tallies())

        def family(name: str, text: str, read: Callable[[Tally], float], **more: str) -> Metric:
            # Counters without `_total` have no type in OpenMetrics; `exposition` writes the type in the older text.
            made = UnknownMetricFamily(PREFIX + name, text, labels=["process", "model", "version", *more])
            for (model, version), tally in tallies.items():
                made.add_metric([self._process, model, version, *more.values()], read(tally))
            return made

        def duration(*stages: str) -> Callable[[Tally], float]:
            return lambda tally: _us(sum(tally.stages.get(stage, 0.0) for stage in stages))

        yield family("request_success", "Requests answered", lambda t: t.answered)
        yield family("request_failure", "Requests that failed, by reason", lambda t: t.failed, reason="OTHER")
        yield family("count", "Inferences performed: rows scored", lambda t: t.rows)
        yield family("request_duration_us", "Cumulative time of requests answered", lambda t: _us(t.seconds))
        yield family("queue_duration_us", "Cumulative time that requests waited in the queue", duration("queue"))
        yield family("compute_input_duration_us", "Cumulative time of inputs", duration("decode", "embed"))
        yield family("compute_infer_duration_us", "Cumulative time of the network", duration("infer"))
        yield family("compute_output_duration_us", "Cumulative time of outputs", duration("record"))

    def describe(self) -> list[Metric]:
        return []


def _us(seconds: float) -> float:
    return float(round(1e6 * seconds))
