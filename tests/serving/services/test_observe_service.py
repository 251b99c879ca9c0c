"""Observe, Assign, and Feedback by request id, of a lane: with models here, and with none."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import xxhash
from grpc_health.v1 import health_pb2, health_pb2_grpc
from handmade import SCHEMA, random_rows
from installation import WHO, Installation, RunningLane, eventually, running

from pipeline.errors import Conflict, InvalidInput, NotFound
from pipeline.features import Features
from pipeline.hashing import bucket
from pipeline.traffic.log import FeedbackEntry, Outcome
from pipeline.traffic.record import unpack
from serving.client import AsyncRankingClient, ObservedAnswer, RankingClient
from serving.client.testing import FakeServer
from serving.config import Config
from serving.rollout.routing import ArmSpec, Endpoint, choose_arm
from serving.state.kill import KillSwitch
from serving.wiring.state import installation_secret, open_control_store
from serving.wiring.traffic import open_traffic_log

Served = tuple[Installation, RunningLane]
OLD, NEW = ArmSpec(bundle="observed:old"), ArmSpec(bundle="observed:new", version=7)
N = 4


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A lane with the endpoint `ranker` of models, and `judged` of two other servers."""
    arms = {"stable": {"bundle": "teacher"}, "candidate": {"bundle": "student"}}
    made = Installation(tmp_path_factory.mktemp("judge"), endpoints={"ranker": {**arms, "observe": True}})
    made.set(weight=0, name="closed")
    made.store.put_endpoint(Endpoint(name="judged", stable=OLD, candidate=NEW, weight=30, salt="r1", holdout=0.1), WHO)
    with running(made.config) as lane:
        eventually(
            lambda: lane.lane.registry.snapshot.endpoints["ranker"].stable is not None, "the teacher is loaded", 90
        )
        yield made, lane


@pytest.fixture
def client(judge: Served) -> Iterator[RankingClient]:
    with RankingClient(judge[1].target) as client:
        yield client


def answer(request_id: str, **more: Any) -> ObservedAnswer:
    given = {"scores": [0.1, 0.2, 0.3, 0.4], "other": [0.2, 0.2, 0.2, 0.2], "routing_key": "ann", **more}
    return ObservedAnswer(request_id, **given)


def record_of(made: Installation, prediction_id: str) -> Any:
    log = open_traffic_log(made.config, lane=9)
    try:
        return unpack(log.records([prediction_id])[prediction_id])
    finally:
        log.close()


def test_what_another_server_answered_is_in_the_log_once(judge: Served, client: RankingClient) -> None:
    made, lane = judge
    told = answer("q1", candidate_ids=["a", "b", "c", "d"], inclusion_probability=0.5, exposed_all=True)
    (first,) = client.observe("judged", [told])
    (again, other) = client.observe("judged", [told, answer("q2", arm="candidate", other=None)])
    assert (first.status, again.status, other.status) == ("accepted", "duplicate", "accepted")
    assert again.prediction_id == first.prediction_id
    record = record_of(made, first.prediction_id)
    assert (record.arm, record.bundle, record.version, record.candidate_version) == ("stable", "observed:old", 0, 7)
    assert record.scores.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert (record.inclusion_probability, record.overridden, record.features) == (0.5, False, Features(N))
    click = FeedbackEntry(request_id="q1", endpoint="judged", outcomes=[Outcome(name="c", label=1.0)])
    assert client.feedback([click])[0].outcomes == ("accepted",)
    assert client.feedback([click])[0].outcomes == ("duplicate",)
    by_id = FeedbackEntry(first.prediction_id, outcomes=[Outcome(2, 1.0)])
    assert client.feedback([by_id])[0].outcomes == ("duplicate",)
    assert lane.lane.dispatcher.windows["judged", "stable"].requests >= 1
    assert lane.lane.writer.counters().observed >= 3


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (answer(""), "request_id is empty"),
        (answer("w" * 2000), "2000 characters"),
        (answer("w", arm="both"), "answered.arm is"),
        (answer("w", scores=[]), "answered.scores is empty"),
        (answer("w", scores=[0.1, 1.2]), "from 0 to 1"),
        (answer("w", scores=[0.1, math.nan], other=None), "from 0 to 1"),
        (answer("w", scores=[0.1] * 1001, other=None), "more than 1000"),
        (answer("w", other=[0.5]), "has 1 scores for 4"),
        (answer("w", other_arm="stable"), "is of the arm stable too"),
        (answer("w", version="v2"), "answered.version is a decimal number"),
        (answer("w", bundle="a\0b"), "answered.bundle is a name"),
        (answer("w", candidate_ids=["a", "a", "b", "c"]), "candidate_ids holds 4 names"),
        (answer("w", inclusion_probability=1.5), "inclusion_probability is above 0"),
        (answer("w", time_ms=-5), "time_ms is Unix time"),
        (answer("w", arm="", other=None), "neither answered nor other"),
        (answer("w", arm="", other_arm="candidate"), "not known yet"),
    ],
)
def test_one_that_is_wrong_is_refused_alone(client: RankingClient, told: ObservedAnswer, why: str) -> None:
    wrong, right = client.observe("judged", [told, answer("right")])
    assert wrong.status == "invalid"
    assert why in wrong.reason
    assert right.status in ("accepted", "duplicate")


def test_features_are_read_by_the_schema_of_an_arm_that_is_here(judge: Served, client: RankingClient) -> None:
    made, _ = judge
    features = Features.from_context(SCHEMA, random_rows(np.random.default_rng(3), N, made.tables))
    (told,) = client.observe("ranker", [answer("f1", schema=SCHEMA, features=features)])
    assert told.status == "accepted", told.reason
    record = record_of(made, told.prediction_id)
    assert (record.bundle, record.features.n) == ("teacher", N)
    record.features.check(SCHEMA)
    (elsewhere,) = client.observe("judged", [answer("f1", schema=SCHEMA, features=features)])
    assert "no arm of the endpoint is served here" in elsewhere.reason
    (short,) = client.observe("ranker", [answer("f2", scores=[0.1], other=None, schema=SCHEMA, features=features)])
    assert "features of 4 candidates and scores of 1" in short.reason


def test_what_is_served_here_is_told_by_nobody_unless_the_endpoint_says_so(client: RankingClient) -> None:
    (answered,) = client.observe("closed", [answer("c1")])
    assert answered.status == "invalid"
    assert "answered.arm: the stable arm is served here; `observe: true`" in answered.reason


def test_an_answer_of_rank_is_labelled_by_its_request_id(judge: Served, client: RankingClient) -> None:
    made, _ = judge
    features = Features.from_context(SCHEMA, random_rows(np.random.default_rng(3), N, made.tables))
    client.rank("ranker", SCHEMA, features, routing_key="ann", request_id="mine")
    entry = FeedbackEntry(request_id="mine", endpoint="ranker", outcomes=[Outcome(1, 1.0)], exposed_all=True)
    assert client.feedback([entry])[0].outcomes == ("accepted",)
    client.rank("ranker", SCHEMA, features, routing_key="ann", request_id="mine")
    reply = _committed(client, entry)
    assert "is that of two predictions" in reply


def _committed(client: RankingClient, entry: FeedbackEntry) -> str:
    """The reason once both predictions are written: feedback is committed after what was offered before it."""
    (reply,) = client.feedback([entry])
    return reply.reason


def test_an_arm_of_another_server_answers_no_request_and_waits_for_no_model(
    judge: Served, client: RankingClient
) -> None:
    made, lane = judge
    features = Features.from_context(SCHEMA, random_rows(np.random.default_rng(3), N, made.tables))
    with pytest.raises(Conflict, match="answered by another server"):
        client.rank("judged", SCHEMA, features, routing_key="ann")
    arms = lane.lane.status().endpoints["judged"]
    assert {arm: (report.state, report.lags, str(report)) for arm, report in arms.items()} == {
        "stable": ("READY", False, "observed:old is answered elsewhere"),
        "candidate": ("READY", False, "observed:new is answered elsewhere"),
    }
    with grpc.insecure_channel(lane.target) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest(service="")).status == 1
        with pytest.raises(grpc.RpcError, match="NOT_FOUND"):
            health.Check(health_pb2.HealthCheckRequest(service="judged/stable"))


def test_endpoints_and_calls_that_are_not_there(client: RankingClient) -> None:
    with pytest.raises(NotFound, match="no endpoint 'nobody'"):
        client.observe("nobody", [answer("q1")])
    with pytest.raises(InvalidInput, match="name its endpoint"):
        client.assign("", ["ann"])
    with pytest.raises(InvalidInput, match="more than the 10000"):
        client.assign("judged", ["k"] * 10_001)


def test_assign_follows_the_rule_of_the_page(judge: Served, client: RankingClient) -> None:
    made, _ = judge
    keys = [f"user:{i}" for i in range(600)] + ["", "Göttingen"]

    def by_the_page(salt: str, holdout: float, weight: float, key: str) -> str:
        bucket = xxhash.xxh3_64_intdigest(f"{salt}:{key}".encode()) % 10_000
        held = xxhash.xxh3_64_intdigest(f"holdout:{salt}:{key}".encode()) % 10_000
        return "candidate" if key and held >= 10_000 * holdout and bucket < 100 * weight else "stable"

    found = client.assign("judged", keys)
    assert found.arms == tuple(by_the_page(found.salt, found.holdout, found.weight, key) for key in keys)
    assert (found.salt, found.holdout, found.weight, found.killed) == ("r1", 0.1, 30, False)
    assert 100 < found.arms.count("candidate") < 220
    made.store.put_endpoint(made.store.endpoint("judged").model_copy(update={"weight": 100.0}), WHO)
    eventually(lambda: client.assign("judged", []).resource_version > found.resource_version, "the weight is seen")
    assert 500 < client.assign("judged", keys).arms.count("candidate") < 600, "the holdout stays"
    KillSwitch(made.home).engage("judged", "a test", "ada")
    eventually(lambda: client.assign("judged", []).killed, "the kill switch is seen")
    assert set(client.assign("judged", keys).arms) == {"stable"}
    KillSwitch(made.home).release("judged")


VECTORS = {
    "712": (5333, 3198, "stable"),
    "user:42": (7259, 988, "stable"),
    "Göttingen": (5504, 8098, "stable"),
    "b": (1134, 6265, "candidate"),
    "e": (546, 7978, "candidate"),
    "u2": (2920, 927, "stable"),
}
"""Bucket, bucket of the holdout, and arm by routing key; docs/observe.md has the same table."""


def test_golden_vectors_of_the_assignment() -> None:
    """Facts for callers that compute the arm themselves: salt r1, holdout 0.2, weight 30 %."""
    endpoint = Endpoint(name="e", stable=OLD, candidate=NEW, weight=30, salt="r1", holdout=0.2)
    for key, (of_arm, of_holdout, arm) in VECTORS.items():
        assert (bucket("r1", key), bucket("holdout:r1", key), choose_arm(endpoint, key)) == (of_arm, of_holdout, arm)


def test_the_async_client_and_the_fake_server_speak_both() -> None:
    async def call(target: str) -> None:
        async with AsyncRankingClient(target) as client:
            first, other = await client.observe("e", [answer("a"), answer("b", arm="", other=[0.1])])
            assert (first.status, other.status) == ("accepted", "invalid")
            assert (await client.observe("e", [answer("a")]))[0].status == "duplicate"
            assert (await client.assign("e", ["x", "y"])).arms == ("stable", "candidate")
            entry = FeedbackEntry(request_id="a", endpoint="e", outcomes=[Outcome(name="item", label=1.0)])
            assert (await client.feedback([entry]))[0].outcomes == ("accepted",)

    with FakeServer() as server:
        server.arm_of = lambda key: "candidate" if key == "y" else "stable"
        asyncio.run(call(server.target))
        assert [told.request_id for told in server.observed] == ["a"]


def test_a_home_that_only_observes_is_ready_without_any_bundle_and_the_page_runs(tmp_path: Path) -> None:
    arms = {"stable": {"bundle": "observed:triton-old"}}
    config = Config.model_validate({"home": tmp_path, "listen": {"grpc_port": 0}, "endpoints": {"ranker": arms}})
    installation_secret(config)
    with closing(open_control_store(config)) as store:
        store.put_endpoint(Endpoint(name="alone", stable=OLD), WHO)
        store.put_endpoint(Endpoint(name="ranker", stable=OLD, candidate=NEW, salt="ranker"), WHO)
    page = (Path(__file__).parents[3] / "docs" / "observe.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 3
    with running(config) as lane, RankingClient(lane.target) as client:
        assert lane.lane.status().state == "ready"
        (wrong,) = client.observe("alone", [answer("q2")])
        assert "other.arm: the endpoint has no candidate" in wrong.reason
        exec(compile("\n".join(blocks), "observe.md", "exec"), {"target": lane.target})
    for key, (of_arm, of_holdout, arm) in VECTORS.items():
        assert f"| `{key}` | {of_arm} | {of_holdout} | {arm}" in page
