"""Arms on another server, seen by callers: a second Baton process as stable and as candidate, dead, slow and back."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from handmade import random_rows
from installation import WHO, Installation, Process, eventually, free_port, lane_process, running, status
from scripted_server import ScriptedServer

from pipeline.bundle.bundle import Bundle
from pipeline.errors import RemoteTimeout, RemoteUnavailable
from pipeline.features import Bag, Features, Rows
from pipeline.traffic.record import unpack
from protos.inference import SERVICE, message, methods
from serving.client import RankingClient
from serving.rollout.routing import ArmSpec, Endpoint
from serving.telemetry import METRICS_DIR, merged
from serving.wiring.traffic import open_traffic_log
from transfer.bundles.remote.importing import RemoteFile, import_remote

TIMEOUT_MS = 200
PACKED = {
    "ids": {"fields": ["user", "item"], "hashed": True},
    "numbers": {"fields": ["age", "price"], "dtype": "FP32"},
    "bag:tags": {"field": "tags", "hashed": True, "pad_to": 8},
    "bag:genres": {"field": "genres", "hashed": True, "pad_to": 8},
}


def import_baton(made: Installation, target: str, model: str = "ranker") -> Bundle:
    """Bundle `away` of the endpoint of another Baton with the fields of the hand-made bundles."""
    fields = made.repository.manifest("teacher", "1").model_schema.fields
    spec = {
        "remote": {"address": f"grpc://{target}", "model": model, "timeout_ms": TIMEOUT_MS},
        "fields": [f.model_dump(include={"name", "role", "kind", "separator", "missing"}) for f in fields],
        "inputs": PACKED,
        "outputs": {"click": "score"},
    }
    return import_remote(RemoteFile.model_validate(spec), made.repository, name="away")


def set_arms(made: Installation, stable: str, candidate: str, weight: float) -> None:
    arms = Endpoint(
        name="ranker", stable=ArmSpec(bundle=stable), candidate=ArmSpec(bundle=candidate), weight=weight, salt="ranker"
    )
    made.store.put_endpoint(arms, WHO)


class Away:
    """A Baton lane as a process of its own, on one port whenever it runs."""

    def __init__(self, made: Installation) -> None:
        self.made = made
        self.target = f"127.0.0.1:{made.config.listen.grpc_port}"
        self.process: Process | None = None

    def start(self) -> None:
        (self.made.config.status / "lane-0.json").unlink(missing_ok=True)
        self.process = lane_process(self.made)
        eventually(lambda: status(self.made, "lane-0").get("state") == "ready", "the other Baton is ready", 40)

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.process.send_signal(number)

    def kill(self) -> None:
        assert self.process is not None
        self.process.process.kill()
        self.process.process.wait(20)


@pytest.fixture(scope="module")
def away(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Away]:
    made = Installation(tmp_path_factory.mktemp("away") / "home", listen={"grpc_port": free_port()})
    found = Away(made)
    found.start()
    yield found
    found.kill()
    made.store.close()


def features_of(made: Installation, seed: int, n: int = 20) -> Features:
    schema = made.repository.manifest("teacher", "1").model_schema
    return Features.from_context(schema, random_rows(np.random.default_rng(seed), n, made.tables))


def test_another_baton_answers_as_stable_dead_slow_and_back(installation: Installation, away: Away) -> None:
    import_baton(installation, away.target)
    set_arms(installation, "away", "student", 0)
    schema = installation.repository.manifest("teacher", "1").model_schema
    with (
        running(installation.config) as lane,
        RankingClient(lane.target) as client,
        RankingClient(away.target) as direct,
    ):
        for seed in range(5):
            features = features_of(installation, seed)
            mine, theirs = (c.rank("ranker", schema, features) for c in (client, direct))
            assert np.abs(mine.scores - theirs.scores).max() < 1e-6
        assert (mine.arm, mine.bundle) == ("stable", "away")
        remotes = lane.lane.status().remotes
        assert (remotes["away/1"].breaker, remotes["away/1"].rows) == ("closed", 100 + 1 + 8)

        away.signal(signal.SIGSTOP)
        for _ in range(3):
            with pytest.raises(RemoteTimeout, match=f"within {TIMEOUT_MS} ms"):
                client.rank("ranker", schema, features, timeout=20)
        with pytest.raises(RemoteUnavailable, match="not asked now"):
            client.rank("ranker", schema, features, timeout=2)
        assert client.rank("ranker", schema, features, arm="candidate").bundle == "student", (
            "the other arm is not held up"
        )
        away.signal(signal.SIGCONT)
        eventually(lambda: lane.lane.status().remotes["away/1"].breaker != "open", "it is found alive")
        assert client.rank("ranker", schema, features).bundle == "away"

        away.kill()
        with pytest.raises(RemoteUnavailable) as caught:
            client.rank("ranker", schema, features, timeout=2)
        assert away.target not in str(caught.value), "callers learn no addresses"
        away.start()
        eventually(lambda: lane.lane.status().remotes["away/1"].breaker != "open", "it is found alive")
        assert client.rank("ranker", schema, features).bundle == "away"
        eventually(
            lambda: re.search(
                rb'baton_remote_calls_total{.*"RemoteTimeout".*} 3', merged(installation.home / METRICS_DIR)
            ),
            "metrics have it",
        )


def test_a_server_whose_answers_are_of_no_use_is_not_loaded(installation: Installation) -> None:
    with ScriptedServer(lambda request, context: b"") as server:
        import_baton(installation, server.target)
        set_arms(installation, "teacher", "away", 100)
        schema = installation.repository.manifest("teacher", "1").model_schema
        with running(installation.config) as lane, RankingClient(lane.target) as client:
            answer = client.rank("ranker", schema, features_of(installation, 1), routing_key="u")
            assert (answer.arm, list(answer.degraded)) == ("stable", ["candidate_not_ready"])
            assert "no output 'score'" in lane.lane.status().endpoints["ranker"]["candidate"].reason


def infer(target: str, rows: Rows, key: str) -> tuple[str, str, str]:
    """Arm, version and reasons of an answer of the Open Inference Protocol."""
    request = message("ModelInferRequest")(model_name="ranker")
    request.parameters["routing_key"].string_param = key
    padded = [(f"bag:{name}", "INT64", _padded(bag)) for name, bag in zip(("tags", "genres"), rows.bags, strict=True)]
    for name, datatype, values in (("ids", "INT64", rows.ids), ("numbers", "FP32", rows.numbers), *padded):
        request.inputs.add(name=name, datatype=datatype, shape=values.shape)
        request.raw_input_contents.append(np.ascontiguousarray(values).tobytes())
    with grpc.insecure_channel(target) as channel:
        kind, answer = methods()["ModelInfer"]
        call = channel.unary_unary(f"/{SERVICE}/ModelInfer", kind.SerializeToString, answer.FromString)
        said = call(request, timeout=20)
    parameters = {name: value.string_param for name, value in said.parameters.items()}
    return parameters["arm"], said.model_version, parameters.get("degraded", "")


def _padded(bag: Bag) -> np.ndarray:
    width = max(1, int(np.diff(bag.offsets).max()))
    out = np.zeros((bag.rows, width), np.int64)
    for row in range(bag.rows):
        values = bag.values[bag.offsets[row] : bag.offsets[row + 1]]
        out[row, : len(values)] = values
    return out


def test_stable_answers_where_a_loaded_candidate_dies(installation: Installation, away: Away) -> None:
    import_baton(installation, away.target)
    set_arms(installation, "teacher", "away", 100)
    schema = installation.repository.manifest("teacher", "1").model_schema
    features = features_of(installation, 1)
    with running(installation.config) as lane, RankingClient(lane.target) as client:
        said = client.rank("ranker", schema, features, routing_key="u")
        assert (said.arm, said.bundle) == ("candidate", "away")
        expected = client.rank("ranker", schema, features, arm="stable")
        assert infer(lane.target, features.rows(schema), "u") == ("candidate", "1", "")
        away.signal(signal.SIGSTOP)
        assert infer(lane.target, features.rows(schema), "u") == ("stable", "1", "candidate_failed")
        for reason in ("candidate_failed", "candidate_failed", "candidate_away"):
            answer = client.rank("ranker", schema, features, routing_key="u", timeout=20)
            assert (answer.arm, answer.bundle, answer.version, list(answer.degraded)) == (
                "stable",
                "teacher",
                "1",
                [reason],
            )
            assert np.array_equal(answer.scores, expected.scores)
        with pytest.raises(RemoteUnavailable):
            client.rank("ranker", schema, features, arm="candidate")  # who chooses the arm gets its error
        arm = lane.lane.status().endpoints["ranker"]["candidate"]
        assert arm.errors + arm.deadline_misses >= 4, "its failures count as its own"
        away.signal(signal.SIGCONT)
        eventually(lambda: lane.lane.status().remotes["away/1"].breaker != "open", "it is found alive")
        assert client.rank("ranker", schema, features, routing_key="u").arm == "candidate"
        log = open_traffic_log(installation.config)
        eventually(lambda: len(log.latest("ranker", 20)) >= 6, "the answers are recorded")
        records = [unpack(blob) for blob in log.latest("ranker", 20)]
        log.close()
    assert {(r.arm, r.bundle, r.network) for r in records if not r.overridden} == {
        ("candidate", "away", "remote.json"),
        ("stable", "teacher", "dense.onnx"),
    }
