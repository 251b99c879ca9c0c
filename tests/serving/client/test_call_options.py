"""Options of a call: timings, priority, a deadline in parameters, a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from handmade import SCHEMA, random_rows
from installation import Installation, RunningLane, eventually, running
from jam import Jam

from pipeline.errors import InvalidInput
from pipeline.features import Features
from protos.baton.ranking.v1 import ranking_pb2 as pb
from protos.baton.ranking.v1 import ranking_pb2_grpc
from protos.inference import message
from serving.client import AsyncRankingClient, RankingClient, RankResult, rank_request

Request = message("ModelInferRequest")
Response = message("ModelInferResponse")
RANK = "/baton.ranking.v1.RankingService/Rank"
INFER = "/inference.GRPCInferenceService/ModelInfer"


@pytest.fixture(scope="module")
def lane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Installation, RunningLane]]:
    made = Installation(
        tmp_path_factory.mktemp("options") / "home",
        engine={"priority_levels": 3, "default_priority_level": 2, "workers": 1},
    )
    with running(made.config) as lane:
        yield made, lane
    made.store.close()


@pytest.fixture
def jam(lane: tuple[Installation, RunningLane]) -> Iterator[Jam]:
    jam = Jam(lane[1])
    yield jam
    jam.release()


def request(made: Installation, seed: int = 1, n: int = 20, **more: Any) -> pb.RankRequest:
    rows = random_rows(np.random.default_rng(seed), n, made.tables)
    return rank_request("ranker", SCHEMA, Features.from_context(SCHEMA, rows), **more)


def infer(made: Installation, n: int = 3) -> Any:
    rows = random_rows(np.random.default_rng(1), n, made.tables)
    found = Request(model_name="ranker")
    for name, datatype, values in (("ids", "INT64", rows.ids), ("numbers", "FP32", rows.numbers)):
        found.inputs.add(name=name, datatype=datatype, shape=values.shape)
        found.raw_input_contents.append(values.tobytes())
    for name in ("bag:tags", "bag:genres"):
        found.inputs.add(name=name, datatype="INT64", shape=(n, 1))
        found.raw_input_contents.append(np.ones(n, "<i8").tobytes())
    return found


def ask(target: str, path: str, data: bytes, **more: Any) -> tuple[bytes, dict[str, Any]]:
    with grpc.insecure_channel(target) as channel:
        answer, call = channel.unary_unary(path).with_call(data, timeout=20, **more)
        return answer, dict(call.trailing_metadata())


def stages(text: str) -> dict[str, float]:
    return {name: float(rest.removeprefix("dur=")) for name, rest in (part.split(";") for part in text.split(", "))}


def test_timings_come_with_the_answer_to_whom_asks_for_them(lane: tuple[Installation, RunningLane]) -> None:
    made, running_lane = lane
    _, plain = ask(running_lane.target, RANK, request(made).SerializeToString())
    assert "x-baton-timings" not in plain
    _, told = ask(running_lane.target, RANK, request(made).SerializeToString(), metadata=(("x-baton-trace", "1"),))
    times = stages(told["x-baton-timings"])
    assert {"queue", "decode", "embed", "infer", "record", "total"} <= times.keys()
    assert 0 < times["infer"] < times["total"]
    by_parameter = infer(made)
    by_parameter.parameters["trace"].bool_param = True
    answer, told = ask(running_lane.target, INFER, by_parameter.SerializeToString())
    assert stages(told["x-baton-timings"])["total"] > 0
    assert Response.FromString(answer).outputs[0].shape == [3]


@pytest.mark.parametrize(
    ("parameter", "kind", "value"),
    [
        ("priority", "int64_param", -1),
        ("priority", "int64_param", 4),
        ("priority", "string_param", "high"),
        ("priority", "bool_param", True),
        ("trace", "string_param", "yes"),
        ("timeout", "string_param", "5"),
        ("timeout", "bool_param", False),
    ],
)
def test_an_option_out_of_range_is_named(
    lane: tuple[Installation, RunningLane], parameter: str, kind: str, value: Any
) -> None:
    made, running_lane = lane
    bad = infer(made)
    setattr(bad.parameters[parameter], kind, value)
    with pytest.raises(grpc.RpcError) as caught:
        ask(running_lane.target, INFER, bad.SerializeToString())
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    status = status_pb2.Status.FromString(dict(caught.value.trailing_metadata())["grpc-status-details-bin"])
    detail = error_details_pb2.BadRequest()
    assert status.details[1].Unpack(detail)
    assert detail.field_violations[0].field == parameter


def test_a_criticality_that_does_not_exist_is_refused(lane: tuple[Installation, RunningLane]) -> None:
    made, running_lane = lane
    bad = request(made)
    bad.criticality = 7  # type: ignore[assignment]
    with pytest.raises(grpc.RpcError) as caught:
        ask(running_lane.target, RANK, bad.SerializeToString())
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "criticality" in caught.value.details()


def test_importance_comes_from_criticality_and_priority(lane: tuple[Installation, RunningLane], jam: Jam) -> None:
    made, running_lane = lane
    with grpc.insecure_channel(running_lane.target) as channel:
        stub: Any = ranking_pb2_grpc.RankingServiceStub(channel)
        infers = channel.unary_unary(INFER)
        first = infer(made, 20)
        first.parameters["priority"].uint64_param = 1
        calls: list[Callable[[], Any]] = [
            lambda: stub.Rank.future(request(made, sheddable=True), timeout=60),
            lambda: stub.Rank.future(request(made), timeout=60),
            lambda: infers.future(first.SerializeToString(), timeout=60),
        ]
        waiting = []
        for place, call in enumerate(calls, 1):
            waiting.append(call())
            eventually(lambda place=place: jam.waiting() == place, f"{place} wait")  # type: ignore[misc]
        depths = running_lane.lane.engine.stats().depth_by_priority
        jam.release()
        for future in waiting:
            future.result(30)
    assert depths == (1, 1, 1)


def test_a_full_lane_refuses_without_reading(tmp_path: Path) -> None:
    made = Installation(tmp_path / "home", engine={"workers": 1, "max_queue_size": 1})
    with running(made.config) as lane, grpc.insecure_channel(lane.target) as channel:
        jam = Jam(lane)
        waiting = channel.unary_unary(RANK).future(request(made).SerializeToString(), timeout=60)
        eventually(lambda: jam.waiting() == 1, "one waits")
        for path in (RANK, INFER):
            with pytest.raises(grpc.RpcError) as caught:
                ask(lane.target, path, b"\xff no message at all")
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            status = status_pb2.Status.FromString(dict(caught.value.trailing_metadata())["grpc-status-details-bin"])
            assert status.details[1].Unpack(error_details_pb2.RetryInfo())
        jam.release()
        assert waiting.result(30)
        with pytest.raises(grpc.RpcError) as caught:
            ask(lane.target, RANK, b"\xff no message at all")
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    made.store.close()


def test_a_stream_has_several_requests_at_work_and_answers_in_order(
    lane: tuple[Installation, RunningLane], jam: Jam
) -> None:
    made, running_lane = lane
    sizes = [5 + i for i in range(12)]
    with RankingClient(running_lane.target) as client:
        answers = client.rank_stream(request(made, i, 9 + n, request_id=str(i)) for i, n in enumerate(sizes))
        eventually(lambda: jam.waiting() == len(sizes), "all wait in the engine at once")
        jam.release()
        assert [len(answer.scores) for answer in answers] == [9 + n for n in sizes]


def test_one_stream_cannot_fill_the_engine(lane: tuple[Installation, RunningLane], jam: Jam) -> None:
    made, running_lane = lane
    with RankingClient(running_lane.target) as client:
        answers = client.rank_stream(request(made, i) for i in range(100))
        eventually(lambda: jam.waiting() >= 32, "a window of them waits")
        most = jam.waiting()
        jam.release()
        assert sum(1 for _ in answers) == 100
    assert most <= 33


def test_a_stream_that_is_dropped_takes_its_work_along(lane: tuple[Installation, RunningLane], jam: Jam) -> None:
    made, running_lane = lane
    before = running_lane.lane.engine.stats().rejected.get("cancelled", 0)
    with RankingClient(running_lane.target) as client:
        answers = client.rank_stream(request(made, i) for i in range(5))
        eventually(lambda: jam.waiting() == 5, "they wait")
        answers.close()  # type: ignore[attr-defined]
        eventually(lambda: running_lane.lane.dispatcher.pending == 0, "the lane has seen it go")
    jam.release()
    eventually(
        lambda: running_lane.lane.engine.stats().rejected.get("cancelled", 0) == before + 5, "none of them was done"
    )


async def test_an_async_stream_answers_what_came_before_a_bad_request(lane: tuple[Installation, RunningLane]) -> None:
    made, running_lane = lane

    async def requests() -> AsyncIterator[pb.RankRequest]:
        for i in range(3):
            yield request(made, i)
        bad = request(made)
        bad.candidates.Clear()
        yield bad

    answered = []

    async def listen(answers: AsyncIterator[RankResult]) -> None:
        async for answer in answers:
            answered.append(len(answer.scores))

    async with AsyncRankingClient(running_lane.target) as client:
        with pytest.raises(InvalidInput, match="candidate"):
            await listen(client.rank_stream(requests()))
        # Half-closing ends a stream in order, and answers are those of single calls.
        rows = random_rows(np.random.default_rng(5), 20, made.tables)
        features = Features.from_context(SCHEMA, rows)

        async def one() -> AsyncIterator[pb.RankRequest]:
            yield rank_request("ranker", SCHEMA, features)
            await asyncio.sleep(0)

        streamed = [answer async for answer in client.rank_stream(one())]
        alone = await client.rank("ranker", SCHEMA, features)
    assert answered == [20, 20, 20]
    assert np.array_equal(streamed[0].scores, alone.scores)


def test_connections_are_renewed_where_that_is_set(tmp_path: Path) -> None:
    made = Installation(
        tmp_path / "home", listen={"grpc_port": 0, "max_connection_age": "1s", "max_connection_age_grace": "5s"}
    )
    with running(made.config) as lane, grpc.insecure_channel(lane.target) as channel:
        seen: list[grpc.ChannelConnectivity] = []
        channel.subscribe(seen.append, try_to_connect=True)
        eventually(lambda: grpc.ChannelConnectivity.IDLE in seen[1:], "the server asks to connect anew")
        assert ask(lane.target, RANK, request(made).SerializeToString())[0]
    made.store.close()
