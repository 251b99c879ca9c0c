"""The shared Redis tier of an installation: kept at what lanes serve, loaded by hand, and not there unless asked for."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
import yaml
from handmade import random_rows, random_tables, write_bundle
from installation import Installation, eventually, free_port, running, statuses
from redis_process import RedisProcess
from typer.testing import CliRunner

from pipeline.clock import SystemClock
from pipeline.errors import InvalidInput
from pipeline.features import Features
from serving.admin import Admin
from serving.cli.main import app
from serving.client import RankingClient
from serving.config import RedisConfig
from serving.http.api import build_app
from serving.rollout.controller import RolloutController
from serving.runtime.status import Statuses, dumps, parse
from serving.security.tokens import TokenAuthenticator, TokenStore
from serving.tiers.cache import CacheUpkeep
from serving.tiers.report import summed
from serving.wiring.backends import open_backends
from serving.wiring.observe import Observer
from serving.wiring.redis import redis_address


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisProcess]:
    with RedisProcess(tmp_path / "redis") as process:
        yield process


@pytest.fixture
def upkeep(server: RedisProcess, installation: Installation) -> Iterator[CacheUpkeep]:
    config = RedisConfig(url=server.address.url)
    made = CacheUpkeep(config, installation.repository, SystemClock(), lambda: False)
    yield made
    made.close()


def serving(**versions: str) -> Statuses:
    """Status files of a lane that serves these bundles."""
    arms = {name: {"bundle": name, "version": v, "wanted": v} for name, v in versions.items()}
    control = {"endpoints": {"ranker": {"step_version": "1"}}}
    return statuses({"lane-0": {"endpoints": {"ranker": arms}}, "control": control})


def held(upkeep: CacheUpkeep) -> set[tuple[str, str, str | None]]:
    return {(g["bundle"], g["base"], g["version"]) for g in upkeep.report()["redis"]["generations"]}


def delta(made: Installation, *deltas: str, base: str = "1") -> str:
    tables = random_tables(10 + len(deltas), 20)
    return write_bundle(made.repository, tables, name="student", base=base, deltas=deltas).manifest.version


def test_redis_follows_what_lanes_serve(installation: Installation, upkeep: CacheUpkeep) -> None:
    upkeep.step(Statuses())
    assert held(upkeep) == set()
    upkeep.step(serving(teacher="1", student="1"))
    assert held(upkeep) == {("teacher", "1", "1"), ("student", "1", "1")}
    second = delta(installation)
    upkeep.step(serving(teacher="1", student="1"))
    assert held(upkeep) == {("teacher", "1", "1"), ("student", "1", "1")}  # published, and no lane has it yet
    rows = upkeep.rows
    upkeep.step(serving(teacher="1", student=second))
    assert held(upkeep) == {("teacher", "1", "1"), ("student", "1", second)}
    assert upkeep.rows > rows
    upkeep.step(serving(teacher="1", student="1"))
    assert held(upkeep) == {("teacher", "1", "1"), ("student", "1", "1")}


def test_a_new_base_is_loaded_before_anyone_serves_it(installation: Installation, upkeep: CacheUpkeep) -> None:
    installation.publish("student", 3)
    upkeep.step(serving(student="1"))
    assert held(upkeep) == {("student", "1", "1"), ("student", "2", "2")}


def test_a_redis_that_is_away_is_said_once_and_tried_again(
    server: RedisProcess, upkeep: CacheUpkeep, caplog: pytest.LogCaptureFixture
) -> None:
    server.kill()
    for _ in range(3):
        upkeep.step(serving(teacher="1"))
    report = upkeep.report()
    assert "cannot be reached" in report["error"]
    assert (report["failures"], report["redis"]) == (3, None)
    assert len([r for r in caplog.records if "not brought up to date" in r.message]) == 1
    server.start()
    upkeep.step(serving(teacher="1"))
    assert upkeep.report()["error"] is None
    assert held(upkeep) == {("teacher", "1", "1")}


def config_file(made: Installation, server: RedisProcess | None) -> Path:
    path = made.home / "baton.yaml"
    redis = {"redis": {"url": server.address.url}} if server else {}
    endpoints = {"ranker": {"stable": {"bundle": "teacher"}, "candidate": {"bundle": "student"}}}
    path.write_text(yaml.safe_dump({"home": ".", "endpoints": endpoints, "embedding": redis}))
    return path


def run(*words: str) -> tuple[int, Any, str]:
    done = CliRunner().invoke(app, ["cache", *words, "-o", "json"])
    return done.exit_code, json.loads(done.stdout) if done.stdout else None, done.stderr


def test_warm_loads_both_arms_and_says_how_fast(
    installation: Installation, server: RedisProcess, upkeep: CacheUpkeep
) -> None:
    path = str(config_file(installation, server))
    code, told, _ = run("warm", "ranker", "--config", path)
    assert code == 0
    assert [(d["bundle"], d["version"]) for d in told["loaded"]] == [("teacher", "1"), ("student", "1")]
    count = sum(len(t.ids) for t in installation.tables.values())
    assert all(d["rows"] == count and d["rows_per_second"] > 0 for d in told["loaded"])
    assert held(upkeep) == {("teacher", "1", "1"), ("student", "1", "1")}
    second = delta(installation)
    assert run("warm", "student", "--config", path)[1]["loaded"][0]["version"] == second
    assert run("warm", "student", "--version", "1", "--config", path)[1]["loaded"][0]["version"] == "1"
    done = CliRunner().invoke(app, ["cache", "warm", "ranker", "--config", path])
    assert done.exit_code == 0
    assert "rows/s" in done.stdout


def test_warm_names_what_is_wrong(installation: Installation, server: RedisProcess) -> None:
    path = str(config_file(installation, server))
    for words, said in (
        (("nobody",), "no endpoint and no bundle 'nobody'"),
        (("ranker", "--version", "1"), "name the bundle"),
        (("student", "--version", "9"), "no version '9'"),
    ):
        code, _, error = run("warm", *words, "--config", path)
        assert code == 1
        assert said in error
    with server.client() as client:
        client.config_set("maxmemory", 1)
    code, _, error = run("warm", "ranker", "--config", path)
    assert (code, "raise its maxmemory" in error) == (1, True)
    server.kill()
    code, _, error = run("warm", "ranker", "--config", path)
    assert (code, "cannot be reached" in error) == (1, True)
    code, _, error = run("warm", "ranker", "--config", str(config_file(installation, None)))
    assert (code, "no embedding.redis" in error) == (1, True)
    assert CliRunner().invoke(app, ["cache", "warm"]).exit_code == 2


def test_doctor_asks_redis(installation: Installation, server: RedisProcess) -> None:
    path = str(config_file(installation, server))

    def found() -> tuple[bool, str]:
        done = CliRunner().invoke(app, ["doctor", "--config", path, "-o", "json"])
        (check,) = [c for c in json.loads(done.stdout)["checks"] if c["check"] == "redis"]
        return check["ok"], check["detail"]

    assert found() == (
        True,
        f"{server.address.url} answers; warning: it has no maxmemory, so rows may take all memory of its machine",
    )
    server.kill()
    ok, detail = found()
    assert not ok
    assert "pass it by" in detail


def test_passwords_come_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "password").write_text("secret\n")
    monkeypatch.setenv("REDIS_PASSWORD", "other")
    by_file = redis_address(RedisConfig(url="rediss://h", password_file=tmp_path / "password"), "embedding.redis")
    by_name = redis_address(RedisConfig(url="rediss://h", password_env="REDIS_PASSWORD"), "embedding.redis")
    assert (by_file.password, by_name.password) == ("secret", "other")
    assert "secret" not in repr(by_file)
    with pytest.raises(InvalidInput, match="password_file"):
        redis_address(RedisConfig(url="rediss://h", password_file=tmp_path / "nowhere"), "embedding.redis")
    with pytest.raises(InvalidInput, match=r"no password in \$NOT_SET"):
        redis_address(RedisConfig(url="rediss://h", password_env="NOT_SET"), "embedding.redis")


def test_without_redis_nothing_imports_it() -> None:
    code = (
        "import sys, serving.processes.lane, serving.processes.control, serving.processes.shadow, serving.cli.main;"
        "sys.exit(any(name == 'redis' or name.startswith('redis.') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_tier_of_every_arm_is_reported(installation: Installation) -> None:
    with running(installation.config) as lane:
        schema = installation.repository.open("teacher").manifest.model_schema
        features = Features.from_context(schema, random_rows(np.random.default_rng(0), 20, installation.tables))
        with RankingClient(lane.target) as client:
            client.rank("ranker", schema, features, routing_key="u")
        report = summed(parse({"lane-0": dumps(lane.lane.status())}, 0).lanes)
    tables = {(row["arm"], row["table"]): row for row in report["tables"]}
    row = tables["stable", "item"]
    assert (row["endpoint"], row["bundle"]) == ("ranker", "teacher")
    assert row["ids"] == row["hits"]["segment"] + row["default"]
    assert row["hits"]["segment"] >= 1
    assert (row["stale"], row["late"], row["error"]) == (0, 0, 0)
    assert {(tier["arm"], tier["tier"]) for tier in report["tiers"]} == {
        ("stable", "segment"),
        ("candidate", "segment"),
    }


def test_stats_shows_what_the_control_process_knows(
    installation: Installation, upkeep: CacheUpkeep, monkeypatch: pytest.MonkeyPatch
) -> None:
    upkeep.step(serving(teacher="1"))
    clock, backends = SystemClock(), open_backends(installation.config)
    observe = Observer(installation.config.status, backends.repository, backends.kill, clock)
    controller = RolloutController(backends.store, backends.traffic, clock, observe, observe.schema, lambda *_: None)
    lock = threading.RLock()
    admin = Admin(installation.config, backends, controller, clock, lock, upkeep)
    port = free_port()
    tokens = TokenAuthenticator(TokenStore(installation.config.tokens), clock, loopback=True)
    server = uvicorn.Server(uvicorn.Config(build_app(admin, installation.home, tokens), port=port, log_level="error"))
    thread = threading.Thread(target=server.run, name="test-http")
    thread.start()
    monkeypatch.setenv("BATON_SERVER", f"http://127.0.0.1:{port}")
    try:
        eventually(lambda: server.started, "the server listens")
        code, told, _ = run("stats")
        assert (code, told["tables"], told["tiers"]) == (0, [], [])
        assert told["shared"]["redis"]["generations"][0]["bundle"] == "teacher"
        with running(installation.config):
            eventually(lambda: bool(run("stats")[1]["tiers"]), "the lane has told")
            shown = CliRunner().invoke(app, ["cache", "stats"])
            assert shown.exit_code == 0
            for word in ("segment", "teacher", "MiB", "noeviction"):
                assert word in shown.stdout
    finally:
        server.should_exit = True
        thread.join(10)
        backends.close()
    assert run("stats")[0] == 1
