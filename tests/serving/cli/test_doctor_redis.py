"""`baton doctor` on the Redis servers of a configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from redis_process import RedisProcess
from typer.testing import CliRunner

from pipeline.clock import SystemClock
from pipeline.errors import InvalidInput
from serving.cli.main import app
from serving.config import Config
from serving.config.state import StateConfig
from serving.wiring.embedding import open_hierarchy
from serving.wiring.redis import redis_address
from serving.wiring.state import open_control_store
from serving.wiring.traffic import open_traffic_log


def doctor(folder: Path, **sections: Any) -> tuple[int, dict[str, tuple[bool, str]]]:
    path = folder / "baton.yaml"
    path.write_text(yaml.safe_dump({"home": "home", **sections}))
    done = CliRunner().invoke(app, ["doctor", "--config", str(path), "-o", "json"])
    checks = json.loads(done.stdout)["checks"]
    return done.exit_code, {c["check"]: (c["ok"], c["detail"]) for c in checks}


def test_a_state_and_a_log_on_one_server_are_warned_of(tmp_path: Path) -> None:
    options = ("--appendonly", "yes", "--maxmemory", "100mb")
    with RedisProcess(tmp_path / "r", *options) as server, RedisProcess(tmp_path / "own", *options) as own:
        link = tmp_path / "alias.sock"
        link.symlink_to(server.socket)  # another address of the same server
        traffic = {"url": f"unix://{link}?db=1"}
        _, found = doctor(tmp_path, state={"url": server.address.url}, traffic=traffic)
        assert all(found[check][0] for check in ("state", "traffic", "shared redis"))
        said = found["shared redis"][1]
        assert "warning: state and traffic share one Redis" in said
        assert "the log stops 16 MiB below its maxmemory of 100 MiB, so that weights and kills can" in said
        _, found = doctor(tmp_path, state={"url": own.address.url}, traffic=traffic)
        assert "shared redis" not in found


@pytest.mark.parametrize("section", ["state", "traffic", "embedding"])
def test_a_cluster_is_refused_by_name(section: str, tmp_path: Path) -> None:
    with RedisProcess(tmp_path / "c", "--cluster-enabled", "yes", "--appendonly", "yes") as server:
        url = {"url": server.address.url}
        code, found = doctor(
            tmp_path, **{section: {"redis": url, "tiers": ["redis"]} if section == "embedding" else url}
        )
        ok, said = found["redis" if section == "embedding" else section]
        assert (code, ok) == (1, False)
        assert "Redis Cluster, which is not supported" in said


def test_a_replica_and_an_evicting_state_are_refused(tmp_path: Path) -> None:
    with RedisProcess(tmp_path / "r", "--appendonly", "yes", "--maxmemory-policy", "allkeys-lru") as server:
        code, found = doctor(tmp_path, state={"url": server.address.url})
        assert code == 1
        assert "maxmemory-policy noeviction" in found["state"][1]
        with server.client() as client:
            client.replicaof("127.0.0.1", 1)
        code, found = doctor(tmp_path, embedding={"redis": {"url": server.address.url}, "tiers": ["redis"]})
        assert code == 1
        assert "read-only replica of 127.0.0.1:1" in found["redis"][1]


def test_rows_that_may_be_evicted_are_warned_of(tmp_path: Path) -> None:
    with RedisProcess(tmp_path / "r", "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lfu") as server:
        redis = {"url": server.address.url}
        assert (
            "warning: it evicts rows" in doctor(tmp_path, embedding={"redis": redis, "tiers": ["redis"]})[1]["redis"][1]
        )
        below = doctor(tmp_path, embedding={"redis": redis, "tiers": ["redis", "segment"]})[1]["redis"][1]
        assert "warning" not in below


@pytest.mark.parametrize("section", ["state", "traffic", "embedding"])
@pytest.mark.parametrize(
    ("url", "password", "lack"),
    [
        ("redis://10.255.255.1:6379/0", False, "without a password and TLS"),
        ("redis://10.255.255.1:6379/0", True, "without TLS"),
        ("rediss://redis.invalid:6379/0", False, "without a password"),
    ],
)
def test_a_redis_of_another_machine_without_protection_is_refused(
    section: str, url: str, password: bool, lack: str, tmp_path: Path
) -> None:
    secret = tmp_path / "password"
    secret.write_text("hunter2\n")
    access: dict[str, Any] = {"url": url, **({"password_file": str(secret)} if password else {})}
    sections = {section: {"redis": access, "tiers": ["redis"]} if section == "embedding" else access}
    code, found = doctor(tmp_path, **sections)
    ok, said = found["redis" if section == "embedding" else section]
    assert (code, ok) == (1, False)
    assert f"is on another machine and {lack}," in said
    assert f"{'embedding.redis' if section == 'embedding' else section}.insecure: true" in said
    open_it = {"state": open_control_store, "traffic": open_traffic_log, "embedding": _hierarchy}[section]
    config = Config.load(tmp_path / "baton.yaml")
    with pytest.raises(InvalidInput, match=lack):  # at start, before anything is sent to it
        open_it(config)


@pytest.mark.parametrize(
    ("url", "settings"),
    [
        ("redis://127.0.0.9:1/0", {}),
        ("redis://[::1]:1/0", {}),
        ("redis://localhost:1/0", {}),
        ("unix:///run/r.sock", {}),
        ("redis://far:1/0", {"insecure": True}),
    ],
)
def test_a_redis_of_this_machine_or_one_that_is_allowed_is_used(url: str, settings: dict[str, Any]) -> None:
    assert redis_address(StateConfig(url=url, **settings), "state").url == url


def _hierarchy(config: Config) -> None:
    open_hierarchy(config, SystemClock())
