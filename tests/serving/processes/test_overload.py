"""What becomes of requests that the lane cannot serve in time, with its only worker held up on purpose."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from handmade import SCHEMA, random_rows
from installation import Installation, RunningLane, eventually, running
from jam import Jam

from pipeline.features import Features
from protos.baton.ranking.v1 import ranking_pb2 as pb
from protos.baton.ranking.v1 import ranking_pb2_grpc
from serving.client import RankingClient, rank_request


@pytest.fixture
def jammed(tmp_path: Path) -> Iterator[tuple[Installation, RunningLane, Jam, Any]]:
    made = Installation(tmp_path / "home", engine={"workers": 1, "max_queue_size": 2})
    with running(made.config) as lane, grpc.insecure_channel(lane.target) as channel:
        jam = Jam(lane)
        yield made, lane, jam, ranking_pb2_grpc.RankingServiceStub(channel)
        jam.release()
    made.store.close()


def request(made: Installation) -> pb.RankRequest:
    rows = random_rows(np.random.default_rng(1), 20, made.tables)
    return rank_request("ranker", SCHEMA, Features.from_context(SCHEMA, rows))


def test_a_full_queue_refuses_and_says_when_to_come_back(jammed: Any) -> None:
    made, lane, jam, stub = jammed
    waiting = [stub.Rank.future(request(made), timeout=60) for _ in range(2)]
    eventually(lambda: jam.waiting() == 2, "two requests wait")
    with pytest.raises(grpc.RpcError) as caught:
        stub.Rank(request(made), timeout=60)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    status = status_pb2.Status.FromString(dict(caught.value.trailing_metadata())["grpc-status-details-bin"])
    retry = error_details_pb2.RetryInfo()
    assert status.details[1].Unpack(retry)
    assert retry.retry_delay.ToNanoseconds() > 0
    jam.release()
    assert [len(f.result(30).scores) for f in waiting] == [20, 20]
    # Refused before it was read: it is nobody's error, and counted as a refusal.
    assert lane.lane.status().engine.rejected == {"overloaded": 1}
    assert lane.lane.status().endpoints["ranker"]["stable"].errors == 0


def test_a_call_without_the_time_that_answers_take_is_refused_unread(installation: Installation) -> None:
    with running(installation.config) as lane, grpc.insecure_channel(lane.target) as channel:
        stub = ranking_pb2_grpc.RankingServiceStub(channel)
        for _ in range(200):
            lane.lane.engine.answered(10.0)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Rank(request(installation), timeout=5)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        status = status_pb2.Status.FromString(dict(caught.value.trailing_metadata())["grpc-status-details-bin"])
        retry = error_details_pb2.RetryInfo()
        assert status.details[1].Unpack(retry)
        assert retry.retry_delay.ToNanoseconds() > 0
        assert lane.lane.engine.stats().rejected == {"overloaded": 1}
        assert len(stub.Rank(request(installation), timeout=60).scores) == 20


def test_work_whose_deadline_passed_in_the_queue_is_not_done(jammed: Any) -> None:
    made, lane, jam, stub = jammed
    with pytest.raises(grpc.RpcError) as caught:
        stub.Rank(request(made), timeout=0.2)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    eventually(lambda: lane.lane.status().endpoints["ranker"]["stable"].deadline_misses == 1, "it is counted")
    jam.release()
    eventually(lambda: sum(lane.lane.engine.stats().rejected.values()) == 1, "it left the queue unanswered")
    assert lane.lane.writer.counters().offered == 0


def test_a_caller_that_went_away_costs_no_work(jammed: Any) -> None:
    made, lane, jam, stub = jammed
    call = stub.Rank.future(request(made), timeout=60)
    eventually(lambda: jam.waiting() == 1, "it waits")
    call.cancel()
    eventually(lambda: lane.lane.dispatcher.pending == 0, "the lane has seen it go")
    jam.release()
    eventually(lambda: lane.lane.engine.stats().rejected == {"cancelled": 1}, "it left the queue unanswered")
    arm = lane.lane.status().endpoints["ranker"]["stable"]
    assert (arm.errors, arm.deadline_misses, arm.requests) == (0, 0, 0)


def test_each_caller_gets_the_answer_to_its_own_rows(installation: Installation) -> None:
    installation.set(weight=50)
    with running(installation.config) as lane, RankingClient(lane.target) as client:

        def ask(i: int) -> bool:
            rows = random_rows(np.random.default_rng(i), 1 + i % 30, installation.tables)
            features = Features.from_context(SCHEMA, rows)
            answer = client.rank("ranker", SCHEMA, features, routing_key=f"u{i}", timeout=60)
            model = lane.lane.registry.snapshot.models[answer.bundle, answer.version].model
            return bool(np.allclose(answer.scores, model.score(features), rtol=1e-5))

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(ask, range(200)))
