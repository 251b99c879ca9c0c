from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis_process import RedisProcess
from typer.testing import CliRunner

from pipeline.clock import Clock, SystemClock
from pipeline.errors import NotReady
from serving.cli.main import app
from serving.config import Config
from serving.runtime.status import FRESH_S
from serving.state.directory import ServiceRecord, target_of
from serving.wiring.state import open_directory

ONE, OTHER = ServiceRecord("a", "10.0.0.1:8001", "n1"), ServiceRecord("b", "10.0.0.2:8001", "n2")


class Later(Clock):
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def monotonic(self) -> float:
        return self.now

    def wall_ms(self) -> int:
        return int(1000 * self.now)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    with RedisProcess(tmp_path_factory.mktemp("records")) as server:
        yield server


@pytest.fixture(params=["file", "redis"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> Config:
    if request.param == "file":
        return Config(home=tmp_path)
    server: RedisProcess = request.getfixturevalue("redis")
    with server.address.client(5.0) as client:
        client.flushall()
    return Config.model_validate({"home": tmp_path, "state": {"url": server.address.url}})


def test_who_announces_is_there_until_it_withdraws(config: Config) -> None:
    clock = Later()
    one, other = open_directory(config, clock), open_directory(config, clock)
    assert one.replicas() == []
    one.announce(ONE)
    other.announce(OTHER)
    one.announce(ONE)
    assert one.replicas() == other.replicas() == [ONE, OTHER]
    one.withdraw("a")
    one.withdraw("a")
    assert other.replicas() == [OTHER]


def test_who_falls_silent_is_gone_from_files(tmp_path: Path) -> None:
    clock = Later()
    directory = open_directory(Config(home=tmp_path), clock)
    directory.announce(ONE)
    clock.now += FRESH_S - 1
    directory.announce(OTHER)
    assert directory.replicas() == [ONE, OTHER]
    clock.now += 2
    assert directory.replicas() == [OTHER]


def test_who_falls_silent_is_gone_from_redis(redis: RedisProcess, tmp_path: Path) -> None:
    config = Config.model_validate({"home": tmp_path, "state": {"url": redis.address.url}})
    directory = open_directory(config, Later())
    directory.announce(ONE)
    directory.announce(OTHER)
    with redis.address.client(5.0) as client:
        key = next(key for key in client.scan_iter() if key.endswith(b":a"))
        assert 0 < client.pttl(key) <= 1000 * FRESH_S
        client.delete(key)  # as when its time is over
        assert directory.replicas() == [OTHER]
        assert b"a" not in client.smembers("baton:replicas")


def test_a_redis_that_is_away_is_told(tmp_path: Path) -> None:
    config = Config.model_validate({"home": tmp_path, "state": {"url": "redis://127.0.0.1:1/0"}})
    directory = open_directory(config, Later())
    for call in (lambda: directory.announce(ONE), lambda: directory.withdraw("a"), directory.replicas):
        with pytest.raises(NotReady, match="record"):
            call()


def test_targets_are_what_grpc_takes() -> None:
    assert target_of([ONE, OTHER]) == "ipv4:10.0.0.1:8001,10.0.0.2:8001"
    assert target_of([ServiceRecord("a", "[::1]:8001")]) == "ipv6:[::1]:8001"


def test_the_command_line_lists_them(tmp_path: Path) -> None:
    path = tmp_path / "baton.yaml"
    path.write_text("home: home\n")
    ask = ["service", "list", "--config", str(path), "-o", "json"]
    assert json.loads(CliRunner().invoke(app, ask).stdout) == {"replicas": [], "target": ""}
    open_directory(Config.load(path), SystemClock()).announce(ONE)
    told = json.loads(CliRunner().invoke(app, ask).stdout)
    assert told == {
        "replicas": [{"replica": "a", "address": "10.0.0.1:8001", "node": "n1"}], "target": "ipv4:10.0.0.1:8001"
    }  # fmt: skip
