from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from handmade import SCHEMA, Reference, random_rows
from installation import Installation, RunningLane, eventually, running

from pipeline.errors import InvalidInput, NotFound, NotReady, PermissionDenied
from pipeline.features import Features
from pipeline.traffic.log import Exposure, FeedbackEntry, Outcome
from pipeline.traffic.record import unpack
from protos.baton.ranking.v1 import ranking_pb2 as pb
from protos.baton.ranking.v1 import ranking_pb2_grpc
from serving.client import RankingClient, rank_request
from serving.rollout.routing import on_candidate
from serving.wiring.traffic import open_traffic_log

Served = tuple[Installation, RunningLane]
N = 10


def features_of(made: Installation, n: int = N, seed: int = 5) -> Features:
    return Features.from_context(SCHEMA, random_rows(np.random.default_rng(seed), n, made.tables))


@pytest.fixture
def stub(served: Served) -> Iterator[Any]:
    with grpc.insecure_channel(served[1].target) as channel:
        yield ranking_pb2_grpc.RankingServiceStub(channel)


@pytest.fixture
def client(served: Served) -> Iterator[RankingClient]:
    with RankingClient(served[1].target) as client:
        yield client


def request(made: Installation, **more: Any) -> pb.RankRequest:
    message = rank_request("ranker", SCHEMA, features_of(made))
    message.MergeFrom(pb.RankRequest(**more))
    return message


def test_scores_come_in_request_order(served: Served, client: RankingClient) -> None:
    made, _ = served
    features = features_of(made)
    result = client.rank("ranker", SCHEMA, features, routing_key="ann")
    expected = Reference([made.repository.open("teacher", "1")]).score(features.rows(SCHEMA))
    np.testing.assert_allclose(result.scores, expected, atol=1e-6)
    assert (result.arm, result.bundle, result.version, result.degraded) == ("stable", "teacher", "1", ())


def test_top_k_gives_the_best_first_and_keeps_their_places(served: Served, stub: Any) -> None:
    made, _ = served
    names = [f"c{i}" for i in range(N)]
    everything = np.array(stub.Rank(request(made)).scores, np.float32)
    response = stub.Rank(request(made, top_k=3, candidate_ids=names, request_id="mine"))
    assert response.request_id == "mine"
    assert not response.scores
    assert list(response.ranking.indices) == np.argsort(-everything)[:3].tolist()
    assert list(response.ranking.scores) == everything[list(response.ranking.indices)].tolist()
    assert list(response.ranking.candidate_ids) == [names[i] for i in response.ranking.indices]
    assert len(stub.Rank(request(made, top_k=99)).ranking.indices) == N


def test_a_stream_answers_each_in_order(served: Served, stub: Any) -> None:
    made, _ = served
    answers = list(stub.RankStream(request(made, request_id=str(i)) for i in range(20)))
    assert [a.request_id for a in answers] == [str(i) for i in range(20)]
    assert len({a.prediction_id for a in answers}) == 20


def test_weight_moves_keys_by_their_hash(installation: Installation) -> None:
    installation.set(weight=30)
    keys = [f"user-{i}" for i in range(60)]
    with running(installation.config) as lane, RankingClient(lane.target) as client:
        features = features_of(installation, 2)
        arms = {key: client.rank("ranker", SCHEMA, features, routing_key=key).arm for key in keys}
        assert arms == {k: "candidate" if on_candidate("ranker", k, 30) else "stable" for k in keys}
        assert client.rank("ranker", SCHEMA, features).arm == "stable"
        assert lane.lane.status().counters["missing_key"] == 1


def test_the_arm_is_the_callers_choice_only_where_allowed(installation: Installation) -> None:
    locked = Installation(installation.home.parent / "locked", endpoints={"ranker": {"stable": {"bundle": "teacher"}}})
    with running(locked.config) as lane, RankingClient(lane.target) as client, pytest.raises(PermissionDenied):
        client.rank("ranker", SCHEMA, features_of(locked), arm="candidate")
    with running(installation.config) as lane, RankingClient(lane.target) as client:
        assert client.rank("ranker", SCHEMA, features_of(installation), arm="candidate").arm == "candidate"
        with pytest.raises(InvalidInput, match="arm is"):
            client.rank("ranker", SCHEMA, features_of(installation), arm="other")
    locked.store.close()


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        (lambda m: setattr(m, "endpoint", "nobody"), grpc.StatusCode.NOT_FOUND, None),
        (lambda m: setattr(m, "endpoint", ""), grpc.StatusCode.INVALID_ARGUMENT, "endpoint"),
        (lambda m: m.context.ids.fields.__setitem__(0, "item"), grpc.StatusCode.INVALID_ARGUMENT, "item"),
        (lambda m: m.context.ClearField("ids"), grpc.StatusCode.INVALID_ARGUMENT, "user"),
        (lambda m: m.candidates.numbers.values.__setitem__(3, float("inf")), grpc.StatusCode.INVALID_ARGUMENT, "price"),
        (lambda m: m.candidate_ids.extend(["a"] * N), grpc.StatusCode.INVALID_ARGUMENT, "candidate_ids"),
        (lambda m: m.candidates.Clear(), grpc.StatusCode.INVALID_ARGUMENT, "candidates"),
        (lambda m: setattr(m, "request_id", "x" * (2 << 20)), grpc.StatusCode.INVALID_ARGUMENT, ""),
    ],
)
def test_a_bad_request_gets_its_code_and_the_server_goes_on(
    served: Served, stub: Any, change: Any, code: grpc.StatusCode, field: str | None
) -> None:
    made, _ = served
    message = request(made)
    change(message)
    with pytest.raises(grpc.RpcError) as caught:
        stub.Rank(message)
    assert caught.value.code() is code
    if field:
        status = status_pb2.Status.FromString(dict(caught.value.trailing_metadata())["grpc-status-details-bin"])
        violation = error_details_pb2.BadRequest()
        assert status.details[1].Unpack(violation)
        assert violation.field_violations[0].field == field
    assert len(stub.Rank(request(made)).scores) == N


def test_feedback_is_in_the_log_once_it_is_acknowledged(installation: Installation) -> None:
    log = open_traffic_log(installation.config)
    with running(installation.config) as lane, RankingClient(lane.target) as client:
        answer = client.rank("ranker", SCHEMA, features_of(installation), routing_key="ann")
        entry = FeedbackEntry(
            answer.prediction_id, [Exposure(0, position=2), Exposure(1)], [Outcome(1, 1.0, final=True)]
        )
        forged = FeedbackEntry(answer.prediction_id[:-1] + "0v"[answer.prediction_id[-1] == "0"], [Exposure(0)])
        replies = client.feedback([entry, forged])
        assert replies[0].exposed == ("accepted", "accepted")
        assert replies[0].outcomes == ("accepted",)
        assert replies[1].exposed == ("invalid",)
        assert client.feedback([entry])[0].outcomes == ("duplicate",)
    with running(installation.config) as lane, grpc.insecure_channel(lane.target) as channel:
        stub: Any = ranking_pb2_grpc.RankingServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Feedback(pb.FeedbackRequest(predictions=[pb.PredictionFeedback(exposed=[pb.Exposure()])]))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    log.close()


def test_candidates_may_be_named_in_feedback(installation: Installation) -> None:
    with running(installation.config) as lane, grpc.insecure_channel(lane.target) as channel:
        stub: Any = ranking_pb2_grpc.RankingServiceStub(channel)
        answer = stub.Rank(request(installation, candidate_ids=[f"c{i}" for i in range(N)]))
        outcome = pb.Outcome(candidate_id="c4", label=1)
        entry = pb.PredictionFeedback(prediction_id=answer.prediction_id, exposed_all=True, outcomes=[outcome])
        results = list(stub.FeedbackStream(iter([pb.FeedbackRequest(predictions=[entry])] * 2)))
        assert list(results[0].results[0].outcomes) == [pb.ACCEPTED]
        assert list(results[1].results[0].outcomes) == [pb.DUPLICATE]


def test_what_was_answered_is_recorded(installation: Installation) -> None:
    log = open_traffic_log(installation.config)
    with running(installation.config) as lane, RankingClient(lane.target) as client:
        features = features_of(installation)
        answer = client.rank("ranker", SCHEMA, features, routing_key="ann", arm="candidate")
        eventually(lambda: lane.lane.writer.counters().committed == 1, "the prediction is committed")
        ((_, blob),) = log.unscored("", 1 << 60).found
        record = unpack(blob)
        assert (record.prediction_id, record.arm, record.bundle, record.overridden) == (
            answer.prediction_id, "candidate", "student", True,
        )  # fmt: skip
        assert (record.stable_version, record.candidate_version, record.network) == (1, 1, "dense.onnx")
        assert (record.request_id, list(record.candidate_texts), record.inclusion_probability) == ("", [], 1.0)
        assert record.routing_hash not in (0, None)
        np.testing.assert_array_equal(record.scores, answer.scores)
        np.testing.assert_array_equal(record.features.rows(SCHEMA).ids, features.rows(SCHEMA).ids)
    log.close()


def test_texts_are_recorded_where_they_are_to_be_kept_and_forgotten_with_the_record(tmp_path: Path) -> None:
    made = Installation(tmp_path / "home", traffic={"keep_text": True, "sample": {"rate": 0.9999}})
    log = open_traffic_log(made.config)
    names = [f"item-of-ann-{i}-{'x' * 24}" for i in range(N)]
    planted = names[0].encode()

    def in_files() -> list[str]:
        return [path.name for path in made.home.rglob("*") if path.is_file() and planted in path.read_bytes()]

    with running(made.config) as lane, grpc.insecure_channel(lane.target) as channel:
        stub: Any = ranking_pb2_grpc.RankingServiceStub(channel)
        stub.Rank(request(made, candidate_ids=names, request_id="r-7", routing_key="ann"))
        eventually(lambda: lane.lane.writer.counters().committed == 1, "the prediction is committed")
        ((_, blob),) = log.predictions("")
        record = unpack(blob)
        assert (record.request_id, list(record.candidate_texts)) == ("r-7", names)
        assert record.inclusion_probability == pytest.approx(0.9999)
        assert in_files()
        assert log.forget(record.routing_hash, log.now_ms()) == 1
    log.close()
    assert not in_files()
    made.store.close()


def test_an_unknown_endpoint_and_one_without_a_model_are_told_apart(installation: Installation) -> None:
    from serving.rollout.routing import ArmSpec

    installation.set(candidate=None, weight=0)
    with running(installation.config) as lane, RankingClient(lane.target) as client:
        with pytest.raises(NotFound):
            client.rank("other", SCHEMA, features_of(installation))
        installation.set(candidate=ArmSpec(bundle="nothing"), weight=50)
        assert lane.lane.registry.wait(lambda s: s.endpoints["ranker"].endpoint.weight == 50, 5)
        keys = [f"user-{i}" for i in range(10)]
        answers = [client.rank("ranker", SCHEMA, features_of(installation), routing_key=k) for k in keys]
        assert {a.arm for a in answers} == {"stable"}
        assert {a.degraded for a in answers} == {(), ("candidate_not_ready",)}
        with pytest.raises(NotReady):
            client.rank("ranker", SCHEMA, features_of(installation), arm="candidate")
