"""Spans as a real OTLP collector receives them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from handmade import SCHEMA, random_rows
from installation import Installation, RunningLane, eventually, running
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from pipeline.features import Features
from protos.baton.ranking.v1 import ranking_pb2 as pb
from protos.baton.ranking.v1 import ranking_pb2_grpc
from serving.client import rank_request

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
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
    made = Installation(tmp_path / "home", telemetry={"otlp_endpoint": collector.endpoint, "sample": 0.0})
    with running(made.config) as lane:
        yield made, lane, collector
    made.store.close()
    collector.stop()


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
    eventually(lambda: len(collector.spans) >= 7, "the spans arrive")
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
