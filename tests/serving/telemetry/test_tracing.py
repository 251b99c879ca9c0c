"""Spans as a real OTLP collector receives them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from handmade import SCHEMA, random_rows
from installation import Installation, RunningLane, eventually, running, shadow_process, status
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import NoOpTracerProvider
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from pipeline.features import Features
from protos.baton.ranking.v1 import ranking_pb2 as pb
from protos.baton.ranking.v1 import ranking_pb2_grpc
from serving.client import RankingClient, rank_request
from serving.telemetry import METRICS_DIR, Format, merged

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CALLS = ("baton.ranking.v1.RankingService/Rank",)
UNSAMPLED = "00-1af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):  # type: ignore[misc]
    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.instances: set[str] = set()
        self._server = grpc.server(ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        for resource in request.resource_spans:
            attributes = {a.key: a.value.string_value for a in resource.resource.attributes}
            self.instances.add(f"{attributes['service.name']}/{attributes['service.instance.id']}")
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)
        return trace_service_pb2.ExportTraceServiceResponse()

    def stop(self) -> None:
        self._server.stop(0).wait()


@pytest.fixture
def traced(tmp_path: Path) -> Iterator[tuple[Installation, RunningLane, Collector]]:
    collector = Collector()
    made = Installation(
        tmp_path / "home",
        telemetry={"otlp_endpoint": collector.endpoint, "sample": 0.0},
        embedding={"tiers": ["device", "segment"], "device": {"capacity_rows": 1000}},
    )
    with running(made.config) as lane:
        yield made, lane, collector
    made.store.close()
    collector.stop()


@pytest.fixture
def calling(traced: tuple[Installation, RunningLane, Collector]) -> Iterator[Any]:
    """An application's own tracing, sent to the same collector."""
    provider = TracerProvider(resource=Resource.create({"service.name": "page", "service.instance.id": "p1"}))
    exporter = OTLPSpanExporter(endpoint=traced[2].endpoint, insecure=True)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace._set_tracer_provider(provider, log=False)
    yield provider.get_tracer("page")
    trace._set_tracer_provider(NoOpTracerProvider(), log=False)
    provider.shutdown()


def request(made: Installation) -> pb.RankRequest:
    rows = random_rows(np.random.default_rng(1), 20, made.tables)
    return rank_request("ranker", SCHEMA, Features.from_context(SCHEMA, rows))


def attributes(span: Any) -> dict[str, Any]:
    return {a.key: a.value.string_value or a.value.int_value for a in span.attributes}


def test_a_callers_trace_goes_on_in_the_lane_and_its_stages(
    traced: tuple[Installation, RunningLane, Collector],
) -> None:
    made, lane, collector = traced
    with grpc.insecure_channel(lane.target) as channel:
        stub: Any = ranking_pb2_grpc.RankingServiceStub(channel)
        stub.Rank(request(made), metadata=(("traceparent", UNSAMPLED),))
        stub.Rank(request(made))  # at a share of 0 none begins here
        answer = stub.Rank(request(made), metadata=(("traceparent", PARENT),))
        bad = request(made)
        bad.endpoint = "nobody"
        with pytest.raises(grpc.RpcError):
            stub.Rank(bad, metadata=(("traceparent", PARENT),))
    lane.stop()  # what waits is sent
    eventually(lambda: len(collector.spans) >= 9, "the spans arrive")
    assert collector.instances == {"baton/lane-0"}
    assert {span.trace_id.hex() for span in collector.spans} == {PARENT.split("-")[1]}
    calls = [span for span in collector.spans if span.name == "baton.ranking.v1.RankingService/Rank"]
    assert {span.parent_span_id.hex() for span in calls} == {PARENT.split("-")[2]}
    answered, failed = sorted(calls, key=lambda span: span.start_time_unix_nano)
    told = attributes(answered)
    assert (told["baton.endpoint"], told["baton.arm"], told["baton.version"], told["baton.rows"]) == (
        "ranker", "stable", "1", 20,
    )  # fmt: skip
    assert told["baton.prediction_id"] == answer.prediction_id
    assert failed.status.message == attributes(failed)["rpc.grpc.status_code"] == "NOT_FOUND"
    stages = [span for span in collector.spans if span.parent_span_id == answered.span_id]
    assert [s.name for s in sorted(stages, key=lambda s: s.start_time_unix_nano)] == [
        "queue", "decode", "embed", "infer", "record",
    ]  # fmt: skip
    for span in stages:
        assert answered.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= answered.end_time_unix_nano + 1_000_000


def test_one_trace_goes_from_the_page_through_client_lane_stages_and_tiers_to_the_shadow(
    traced: tuple[Installation, RunningLane, Collector], calling: Any
) -> None:
    made, lane, collector = traced

    def spans() -> dict[str, Any]:
        return {span.name: span for span in list(collector.spans)}

    with shadow_process(made) as shadow, RankingClient(lane.target) as client:
        eventually(lambda: lane.lane.sender._connected, "the lane is connected", 120)
        eventually(lambda: status(made, "shadow").get("endpoints", {}) != {}, "the shadow lane has its models", 120)
        with calling.start_as_current_span("page"):
            answer = client.rank_message(request(made))
        eventually(lambda: status(made, "shadow").get("scored", 0) >= 1, "the other arm has scored it", 120)
        assert shadow.end(signal.SIGTERM, 120) == 0
    lane.stop()
    wanted = {"page", "embed/device", "embed/segment", "infer", "shadow", *CALLS}
    eventually(lambda: wanted <= set(spans()), "all spans arrive", 60)
    found = spans()
    assert collector.instances == {"page/p1", "baton/lane-0", "baton/shadow"}
    assert len({span.trace_id for span in collector.spans}) == 1
    names = {span.span_id: span.name for span in collector.spans}
    above = {name: names.get(found[name].parent_span_id, "") for name in ("embed/device", "embed/segment", "infer")}
    assert above == {"embed/device": "embed", "embed/segment": "embed", "infer": CALLS[0]}
    server, client_span = sorted(
        (s for s in collector.spans if s.name == CALLS[0]), key=lambda s: s.parent_span_id != found["page"].span_id,
        reverse=True,
    )  # fmt: skip
    assert client_span.parent_span_id == found["page"].span_id
    assert server.parent_span_id == client_span.span_id
    assert found["shadow"].parent_span_id == server.span_id
    assert attributes(found["shadow"])["baton.prediction_id"] == answer.prediction_id
    assert attributes(found["shadow"])["baton.arm"] == "candidate"
    told = {
        f.name: [s.exemplar.labels["trace_id"] for s in f.samples if s.exemplar]
        for f in text_string_to_metric_families(
            merged(made.home / METRICS_DIR, Format.OPENMETRICS, stale_after=600).decode()
        )
    }
    assert told["baton_request_seconds"] == told["baton_shadow_seconds"] == [server.trace_id.hex()]
