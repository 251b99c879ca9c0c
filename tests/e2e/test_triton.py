"""Baton in front of a real Triton server: the bundle by command, both arms, the shadow lane; Triton slow, killed, back."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import yaml
from handmade import write_bundle
from installation import WHO, Installation, eventually, free_port, running, shadow_process, status
from triton_process import Triton, expected
from typer.testing import CliRunner

from pipeline.errors import RemoteTimeout, RemoteUnavailable
from pipeline.features import Features, Rows
from pipeline.schema import Schema
from serving.cli.main import app
from serving.client import RankingClient
from serving.rollout.routing import ArmSpec, Endpoint
from serving.wiring.traffic import open_traffic_log

FIELDS = [{"name": f"f{i}", "role": "context" if i < 3 else "candidate", "kind": "number"} for i in range(12)]
SCHEMA = Schema.model_validate({"fields": FIELDS})
CLICK = {"click": {"name": "OUTPUT__0", "column": 1}}


def rows_of(seed: int, n: int = 100) -> tuple[Features, np.ndarray]:
    matrix = np.random.default_rng(seed).normal(size=(n, 12)).astype(np.float32)
    matrix[:, :3] = matrix[0, :3]
    return Features.from_context(SCHEMA, Rows(np.empty((n, 0), np.int64), matrix)), matrix


def installation_before(triton: Triton, folder: Path) -> Installation:
    """A home whose endpoint has Triton's model as stable, made by the command, and a local candidate."""
    made = Installation(folder / "home")
    spec = {
        "remote": {"address": f"grpc://{triton.target}", "model": "ranker", "timeout_ms": 500},
        "fields": FIELDS,
        "inputs": {"INPUT__0": {"fields": [field["name"] for field in FIELDS]}},
        "outputs": CLICK,
    }
    config = folder / "baton.yaml"
    config.write_text(yaml.safe_dump({"home": str(made.home)}))
    (folder / "triton.yaml").write_text(yaml.safe_dump({**spec, "outputs": {"click": "OUTPUT__0"}}))
    options = ["--name", "old", "--config", str(config), "-o", "json"]
    command = ["bundle", "import-remote", str(folder / "triton.yaml"), *options]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert "has 2 columns there: say which one" in " ".join(result.output.split())
    (folder / "triton.yaml").write_text(yaml.safe_dump(spec))
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["version"] == "1"
    write_bundle(made.repository, {}, name="new", schema=SCHEMA, linear=False)
    arms = Endpoint(
        name="ranker", stable=ArmSpec(bundle="old"), candidate=ArmSpec(bundle="new"), weight=50, salt="ranker"
    )
    made.store.put_endpoint(arms, WHO)
    return made


def test_a_team_puts_baton_in_front_of_its_triton(tmp_path: Path) -> None:
    with Triton(tmp_path / "triton", free_port()) as triton:
        made = installation_before(triton, tmp_path)
        log = open_traffic_log(made.config)
        with shadow_process(made), running(made.config) as lane, RankingClient(lane.target) as client:
            eventually(lambda: status(made, "shadow").get("lanes", 0) == 1, "the lane is connected", 40)

            def ask(seed: int) -> str:
                features, matrix = rows_of(seed)
                answer = client.rank("ranker", SCHEMA, features, routing_key=f"u{seed}", timeout=20)
                if answer.arm == "stable":
                    assert np.abs(answer.scores - expected(matrix)).max() < 1e-6
                return answer.arm

            assert {ask(seed) for seed in range(30)} == {"stable", "candidate"}
            eventually(
                lambda: status(made, "shadow")["scored"] + status(made, "shadow")["caught_up"] == 30, "all are scored"
            )

            keys = {arm: [seed for seed in range(30) if ask(seed) == arm] for arm in ("stable", "candidate")}
            triton.signal(signal.SIGSTOP)
            for seed in keys["stable"][:3]:
                with pytest.raises(RemoteTimeout, match="within 500 ms"):
                    ask(seed)
            triton.signal(signal.SIGCONT)
            eventually(lambda: lane.lane.status().remotes["old/1"].breaker != "open", "it is found alive")
            eventually(lambda: ask_again(ask, keys["stable"][0]), "stable answers")

            triton.kill()
            with pytest.raises(RemoteUnavailable):
                ask(keys["stable"][0])
            assert {ask(seed) for seed in keys["candidate"]} == {"candidate"}, "the other arm does not notice"
            eventually(lambda: status(made, "shadow")["dropped"].get("remote_away", 0) > 0, "the shadow lane has tried")
            triton.start()
            eventually(lambda: ask_again(ask, keys["stable"][0]), "stable answers")
            eventually(
                lambda: not log.unscored("", 1 << 60).found, "what could not be scored then is scored from the log", 40
            )
        log.close()
        made.store.close()


def ask_again(ask: object, seed: int) -> bool:
    """Whether an arm answers by now."""
    assert callable(ask)
    try:
        ask(seed)
    except (RemoteTimeout, RemoteUnavailable):
        return False
    return True
