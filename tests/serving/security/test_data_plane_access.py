"""Access to the data plane of a real lane: loading, choosing arms, labels, ranking, and their limits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from handmade import SCHEMA, random_rows
from installation import Installation, RunningLane, eventually, running

from pipeline.clock import SystemClock
from pipeline.features import Features
from protos import inference
from protos.baton.ranking.v1 import ranking_pb2 as pb
from serving.client import rank_request
from serving.config import Config
from serving.config.principal import Role
from serving.security.tokens import TokenStore
from serving.telemetry import METRICS_DIR, merged

RANKING = "/baton.ranking.v1.RankingService/"
INFERENCE = f"/{inference.SERVICE}/"
Code = grpc.StatusCode


class Plane:
    """A lane, and calls to it in bytes. `tokens` by name, none until made."""

    def __init__(self, made: Installation, lane: RunningLane) -> None:
        self.made, self.lane = made, lane
        self.channel = grpc.insecure_channel(lane.target)
        self.tokens: dict[str, str] = {"nobody": "", "stranger": "baton_00000000_wrong"}
        features = Features.from_context(SCHEMA, random_rows(np.random.default_rng(1), 4, made.tables))
        self.rank = rank_request("ranker", SCHEMA, features, routing_key="u").SerializeToString()
        self.candidate = rank_request("ranker", SCHEMA, features, routing_key="u", arm="candidate").SerializeToString()

    def token(self, name: str, role: Role) -> None:
        self.tokens[name] = TokenStore(self.made.config.tokens).create(name, role, SystemClock().wall_ms())[1]

    def call(self, method: str, request: bytes, who: str = "nobody") -> Code:
        """The code of a unary call."""
        return self.failure(method, request, who)[0]

    def failure(self, method: str, request: bytes, who: str = "nobody") -> tuple[Code, Any]:
        token = self.tokens[who]
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        call: Any = self.channel.unary_unary(method)
        try:
            call(request, timeout=20, metadata=metadata)
        except grpc.RpcError as error:
            return error.code(), error  # type: ignore[attr-defined]
        return Code.OK, None


def labels(predictions: int = 1) -> bytes:
    """Feedback with ids that do not exist; every entry is answered `invalid`."""
    request = pb.FeedbackRequest()
    for number in range(predictions):
        request.predictions.add(prediction_id=f"x{number}").outcomes.add(index=0, label=1.0)
    return request.SerializeToString()


def named(method: str, **fields: Any) -> bytes:
    message: bytes = inference.methods()[method][0](**fields).SerializeToString()
    return message


@pytest.fixture
def plane(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Plane]:
    listen = {"grpc_port": 0, **getattr(request, "param", {})}
    made = Installation(tmp_path / "home", listen=listen)
    made.publish("spare", 3)  # an arm of no endpoint
    with running(made.config) as lane:
        found = Plane(made, lane)
        yield found
        found.channel.close()
    made.store.close()


LOAD = named("RepositoryModelLoad", model_name="spare")
UNLOAD = named("RepositoryModelUnload", model_name="spare")


def test_the_repository_is_the_operators(plane: Plane) -> None:
    assert plane.call(f"{INFERENCE}RepositoryModelLoad", LOAD) is Code.OK  # this machine, without tokens
    plane.token("viewer", Role.VIEWER)
    plane.token("operator", Role.OPERATOR)
    wanted = {
        "nobody": Code.UNAUTHENTICATED, "stranger": Code.UNAUTHENTICATED,
        "viewer": Code.PERMISSION_DENIED, "operator": Code.OK,
    }  # fmt: skip
    for method, request in (("RepositoryModelLoad", LOAD), ("RepositoryModelUnload", UNLOAD)):
        assert {who: plane.call(INFERENCE + method, request, who) for who in wanted} == wanted
    overriding = inference.methods()["RepositoryModelLoad"][0](model_name="spare")
    overriding.parameters["config"].string_param = "{}"
    assert (
        plane.call(f"{INFERENCE}RepositoryModelLoad", overriding.SerializeToString(), "operator")
        is Code.INVALID_ARGUMENT
    )


def test_ranking_and_probes_ask_nobody(plane: Plane) -> None:
    plane.token("viewer", Role.VIEWER)
    for who in plane.tokens:
        assert plane.call(f"{RANKING}Rank", plane.rank, who) is Code.OK
    assert plane.call(f"{INFERENCE}ServerReady", b"") is Code.OK
    assert plane.call(f"{RANKING}Feedback", labels()) is Code.OK  # from this machine


def test_the_arm_is_chosen_by_those_the_endpoint_allows(plane: Plane) -> None:
    assert plane.call(f"{RANKING}Rank", plane.candidate) is Code.OK
    for name, role in (("viewer", Role.VIEWER), ("operator", Role.OPERATOR)):
        plane.token(name, role)
    assert plane.call(f"{RANKING}Rank", plane.candidate) is Code.UNAUTHENTICATED
    assert plane.call(f"{RANKING}Rank", plane.candidate, "viewer") is Code.PERMISSION_DENIED
    assert plane.call(f"{RANKING}Rank", plane.candidate, "operator") is Code.OK


def test_an_endpoint_may_name_who_chooses_its_arm(tmp_path: Path) -> None:
    arms = {"stable": {"bundle": "teacher"}, "candidate": {"bundle": "student"}}
    made = Installation(tmp_path / "home", endpoints={"ranker": {**arms, "overrides": ["tester"]}})
    with running(made.config) as lane:
        plane = Plane(made, lane)
        for name, role in (("tester", Role.VIEWER), ("viewer", Role.VIEWER), ("operator", Role.OPERATOR)):
            plane.token(name, role)
        answers = {who: plane.call(f"{RANKING}Rank", plane.candidate, who) for who in ("tester", "viewer", "operator")}
        assert answers == {"tester": Code.OK, "viewer": Code.PERMISSION_DENIED, "operator": Code.OK}
        plane.channel.close()
    made.store.close()


@pytest.mark.parametrize(
    "plane",
    [{"feedback": "identified", "feedback_from": ["shop"], "limits": {"feedback": 0.1, "feedback_burst": 5}}],
    indirect=True,
)
def test_labels_are_taken_from_those_who_say_who_they_are_and_not_without_end(plane: Plane) -> None:
    method = f"{RANKING}Feedback"
    for who in ("nobody", "stranger"):
        assert plane.call(method, labels(), who) is Code.UNAUTHENTICATED
    plane.token("shop", Role.VIEWER)
    plane.token("other", Role.OPERATOR)
    assert plane.call(method, labels(), "other") is Code.PERMISSION_DENIED
    assert plane.call(method, labels(4), "shop") is Code.OK
    assert plane.call(method, labels(30), "shop") is Code.OK  # what is left lets one more in, whatever its size,
    code, error = plane.failure(method, labels(), "shop")  # which has to be waited off
    assert code is Code.RESOURCE_EXHAUSTED
    retry = error_details_pb2.RetryInfo()
    status = rpc_status.from_call(error)
    assert any(detail.Unpack(retry) for detail in status.details)
    assert 200 < retry.retry_delay.ToSeconds() < 400  # 30 owed, one in ten seconds
    assert plane.call(f"{RANKING}Rank", plane.rank) is Code.OK
    stream: Any = plane.channel.stream_stream(f"{RANKING}FeedbackStream")
    with pytest.raises(grpc.RpcError) as refused:
        list(stream(iter([labels()]), timeout=20))
    assert refused.value.code() is Code.UNAUTHENTICATED  # type: ignore[attr-defined]


@pytest.mark.parametrize("plane", [{"feedback": "identified"}], indirect=True)
def test_a_stream_of_labels_ends_when_its_token_does(plane: Plane) -> None:
    plane.token("shop", Role.VIEWER)
    metadata = (("authorization", f"Bearer {plane.tokens['shop']}"),)

    revoked = threading.Event()

    def requests() -> Iterator[bytes]:
        yield labels()
        revoked.wait(20)
        yield labels()

    stream: Any = plane.channel.stream_stream(f"{RANKING}FeedbackStream")
    answers = stream(requests(), timeout=30, metadata=metadata)
    assert next(answers)
    TokenStore(plane.made.config.tokens).revoke("shop")
    revoked.set()
    with pytest.raises(grpc.RpcError) as refused:
        next(answers)
    assert refused.value.code() is Code.UNAUTHENTICATED  # type: ignore[attr-defined]


@pytest.mark.parametrize("plane", [{"ranking": "identified"}], indirect=True)
def test_ranking_can_be_for_those_who_say_who_they_are(plane: Plane) -> None:
    plane.token("shop", Role.VIEWER)
    asked = [
        (f"{RANKING}Rank", plane.rank),
        (f"{INFERENCE}ModelInfer", named("ModelInfer", model_name="gone")),
        (f"{INFERENCE}ModelMetadata", named("ModelMetadata", name="ranker")),
        (f"{INFERENCE}RepositoryIndex", b""),
    ]
    for method, request in asked:
        assert plane.call(method, request) is Code.UNAUTHENTICATED, method
        assert plane.call(method, request, "shop") in (Code.OK, Code.NOT_FOUND), method
    assert plane.call(f"{INFERENCE}ServerLive", b"") is Code.OK
    stub: Any = health_pb2_grpc.HealthStub(plane.channel)
    assert stub.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING


def test_off_loopback_nothing_is_open_that_steers(tmp_path: Path) -> None:
    # All addresses, asked over loopback: what counts is who could ask, not who does.
    made = Installation(tmp_path / "home", listen={"host": "0.0.0.0", "insecure": True, "grpc_port": 0})
    assert not Config.model_validate(made.config.model_dump()).listen.loopback
    with running(made.config) as lane:
        plane = Plane(made, lane)
        assert plane.call(f"{RANKING}Rank", plane.rank) is Code.OK
        for method, request in (
            (f"{RANKING}Feedback", labels()),
            (f"{RANKING}Rank", plane.candidate),
            (f"{INFERENCE}RepositoryModelLoad", LOAD),
        ):
            assert plane.call(method, request) is Code.UNAUTHENTICATED, method
        plane.channel.close()
    made.store.close()


def test_metadata_is_limited_and_refusals_are_counted(plane: Plane) -> None:
    large = (("x-request-id", "x" * (64 << 10)),)
    call: Any = plane.channel.unary_unary(f"{INFERENCE}ServerLive")
    with pytest.raises(grpc.RpcError) as refused:
        call(b"", timeout=20, metadata=large)
    assert refused.value.code() is Code.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
    plane.token("viewer", Role.VIEWER)
    plane.call(f"{INFERENCE}RepositoryModelLoad", LOAD)
    plane.call(f"{INFERENCE}RepositoryModelLoad", LOAD, "stranger")
    eventually(lambda: b'reason="wrong_token"} 1.0' in merged(plane.made.home / METRICS_DIR), "both are counted")
    assert b'baton_callers_refused_total{process="lane-0",reason="nameless"} 1.0' in merged(
        plane.made.home / METRICS_DIR
    )
