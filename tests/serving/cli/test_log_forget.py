"""Forgetting a user: by key or by a prediction, over REST, gRPC and the command line; the audit does not name the user."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from operated import Operated, admin_port, http_port, operated
from typer.testing import CliRunner

from pipeline.features import Features
from pipeline.traffic.log import FeedbackEntry
from pipeline.traffic.prediction import PredictionIds, load_secret
from pipeline.traffic.record import PredictionRecord, pack, unpack
from protos.baton.admin.v1 import admin_pb2 as pb
from protos.baton.admin.v1 import admin_pb2_grpc as rpc
from serving.cli.main import app
from serving.rollout.routing_key import RoutingHash
from serving.wiring.traffic import open_traffic_log

KEYS = ("ann", "bob", "")


class Users:
    """An installation whose traffic log knows users."""

    def __init__(self, world: Operated) -> None:
        self.world = world
        config = world.made.config
        secret = load_secret(config.secret)
        self.log = open_traffic_log(config)
        ids, hashed = PredictionIds(secret, 1), RoutingHash(secret)
        now = world.clock.wall_ms()
        self.predictions: dict[str, list[str]] = {key: [ids.new(now - 10) for _ in range(3)] for key in KEYS}
        for key, made in self.predictions.items():
            for prediction in made:
                record = PredictionRecord(
                    prediction, now - 10, "ranker", "stable", "teacher", 1, Features(2), np.full(2, 0.5, "f4"),
                    routing_hash=hashed(key),
                )  # fmt: skip
                self.log.append_predictions([pack(record)])
                self.log.append_feedback([FeedbackEntry(prediction, exposed_all=True)], now)

    def left(self) -> list[str]:
        known = {unpack(blob).prediction_id for _, blob in self.log.predictions("")}
        return [key for key, made in self.predictions.items() if known & set(made)]

    def audited(self) -> list[dict[str, Any]]:
        return [e.after for e in self.world.made.store.audit() if e.verb == "log-forget"]


@pytest.fixture
def users(tmp_path: Path) -> Iterator[Users]:
    with operated(tmp_path) as world:
        made = Users(world)
        yield made
        made.log.close()


def test_rest_forgets_by_key_once_however_often_it_is_asked(users: Users) -> None:
    with http_port(users.world) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1") as http:
        headers = {"x-baton-actor": "eve", "idempotency-key": "k1"}
        body = {"routing_key": "ann", "reason": "she asked"}
        first = http.post("/log/forget", json=body, headers=headers)
        assert (first.status_code, first.json()) == (200, {"predictions": 3})
        assert http.post("/log/forget", json=body, headers=headers).json() == {"predictions": 3}
        assert users.left() == ["bob", ""]
        assert users.audited() == [{"named_by": "routing_key", "predictions": 3}]
        entries = [e for e in users.world.made.store.audit() if e.verb == "log-forget"]
        assert (entries[0].actor, entries[0].reason) == ("eve", "she asked")
        assert "ann" not in str([entries[0].before, entries[0].after, entries[0].evidence])
        for wrong in ({}, {"routing_key": "ann", "prediction_id": "x"}):
            refused = http.post("/log/forget", json=wrong)
            assert refused.status_code == 400
            assert "one of them" in refused.text


def test_grpc_forgets_the_user_of_a_prediction(users: Users) -> None:
    with admin_port(users.world) as port, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = rpc.LogStub(channel)
        request = pb.ForgetRequest(prediction_id=users.predictions["bob"][1].upper(), reason="he asked")
        assert stub.Forget(request, timeout=30).predictions == 3
        assert users.left() == ["ann", ""]
        with pytest.raises(grpc.RpcError) as gone:
            stub.Forget(request, timeout=30)
        assert gone.value.code() is grpc.StatusCode.NOT_FOUND
        keyless = pb.ForgetRequest(prediction_id=users.predictions[""][0])
        with pytest.raises(grpc.RpcError) as refused:
            stub.Forget(keyless, timeout=30)
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert users.left() == ["ann", ""], "those without a key are many users'"


def test_the_command_forgets_and_says_how_much(users: Users) -> None:
    with http_port(users.world) as port:
        server = ("--server", f"http://127.0.0.1:{port}")
        done = CliRunner().invoke(app, ["log", "forget", "--key", "bob", "--reason", "he asked", "-o", "json", *server])
        assert (done.exit_code, json.loads(done.stdout)) == (0, {"predictions": 3})
        assert users.left() == ["ann", ""]
        neither = CliRunner().invoke(app, ["log", "forget", *server])
        assert neither.exit_code == 1
        assert "one of them" in neither.stderr
