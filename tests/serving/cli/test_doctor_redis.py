"""`baton doctor` on the Redis servers of a configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from redis_process import RedisProcess
from typer.testing import CliRunner

from serving.cli.main import app


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
