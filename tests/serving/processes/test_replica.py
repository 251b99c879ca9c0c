"""A replica with real lanes, without Ray: its number and port, its health, its load, its end."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from installation import Installation, eventually, free_port

from pipeline.clock import SystemClock
from pipeline.errors import Conflict, NotReady
from serving.config import Config
from serving.processes.replica import LaneReplica, write_config
from serving.runtime.status import read
from serving.wiring.state import open_directory


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installation:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    return Installation(
        tmp_path / "home",
        listen={"grpc_port": free_port()},
        engine={"lanes": 1},
        ray={"start_limit": 90},
    )


@contextmanager
def started(config: Config, name: str) -> Iterator[LaneReplica]:
    replica = LaneReplica(config, name, "127.0.0.1", "node")
    replica.start()
    try:
        yield replica
    finally:
        replica.drain()


def serving(address: str) -> bool:
    with grpc.insecure_channel(address) as channel:
        reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


def test_replicas_of_one_home_have_numbers_ports_and_names_of_their_own(made: Installation) -> None:
    first = made.config.listen.grpc_port
    directory = open_directory(made.config, SystemClock())
    with started(made.config, "a") as one:
        with started(made.config, "b") as other:
            assert (one.number, one.port, other.number, other.port) == (0, first, 1, first + 1)
            assert all(serving(replica.record.address) for replica in (one, other))
            eventually(lambda: len(directory.replicas()) == 2, "both are announced")
            assert {r.address for r in directory.replicas()} == {f"127.0.0.1:{first}", f"127.0.0.1:{first + 1}"}
            reports = read(made.config.status, SystemClock().wall_ms())
            assert {"lane-0", "lane-1", "replica-0", "replica-1"} <= reports.all().keys()
            eventually(lambda: (made.config.status / "shadow.json").exists(), "one shadow lane runs")
            one.check()
            other.check()
            pid = reports.lanes["lane-1"].status.pid
        assert [r.replica for r in directory.replicas()] == ["a"]
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        with started(made.config, "c") as third:  # takes the number that became free
            assert third.number == 1
    assert directory.replicas() == []


def test_a_port_that_somebody_listens_on_is_left_out(made: Installation) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", made.config.listen.grpc_port))
        taken.listen()
        replica = LaneReplica(made.config, "a", "127.0.0.1")
        assert (replica.number, replica.port) == (1, made.config.listen.grpc_port + 1)
        ray = made.config.ray.model_copy(update={"replicas_per_node": 1, "fixed_port": True})
        with pytest.raises(Conflict, match=r"no port from \d+ on is free"):
            LaneReplica(made.config.model_copy(update={"ray": ray}), "b", "127.0.0.1")


@pytest.mark.long
def test_a_lane_that_stands_still_makes_the_replica_ill(made: Installation) -> None:
    with started(made.config, "a") as replica:
        replica.check()
        pid = read(made.config.status, SystemClock().wall_ms()).lanes["lane-0"].status.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(NotReady, match="lane-0 has not reported for"):
                eventually(lambda: replica.check() is not None, "it is seen", 40.0)
        finally:
            os.kill(pid, signal.SIGCONT)
        eventually(lambda: read(made.config.status, SystemClock().wall_ms()).lanes["lane-0"].fresh, "it is back")
        replica.check()


def test_models_that_do_not_load_are_why_it_does_not_start(made: Installation) -> None:
    (made.config.repository / "teacher" / "1" / "dense.onnx").write_bytes(b"not a network")
    config = made.config.model_copy(update={"ray": made.config.ray.model_copy(update={"start_limit": 4.0})})
    with pytest.raises(NotReady, match="lane-0 cannot answer"):
        LaneReplica(config, "a", "127.0.0.1").start()
    LaneReplica(config, "b", "127.0.0.1").drain()  # nothing was left behind


def test_a_written_configuration_is_read_as_the_same(tmp_path: Path) -> None:
    config = Config.model_validate(
        {
            "home": tmp_path,
            "bundles": "memory://bundles",
            "stages": [{"class": "package.module:Stage", "args": {"n": 1}}],
            "endpoints": {"ranker": {"stable": {"bundle": "a"}}},
            "embedding": {"tiers": ["device", "redis"], "redis": {"url": "redis://host:6379/0"}},
            "worker": {"endpoint": "ranker", "rows": "int8"},
        }
    )
    path = write_config(config, tmp_path / "written" / "baton.yaml")
    assert Config.load(path) == config
    assert Config.model_validate_json(config.model_dump_json(by_alias=True)) == config
    assert path.stat().st_mode & 0o077 == 0
