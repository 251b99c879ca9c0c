"""Replicas on a real Ray cluster under constant load: what is lost when one dies, and that planned changes lose nothing.

Ray listens on all interfaces, so the cluster gets a network of its own, which takes root.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
IN_FLIGHT = 8
"""Calls of the load at once: what a replica may have had when it died."""
SETTINGS = {
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    "RAY_enable_metrics_collection": "0",
    "RAY_usage_stats_enabled": "0",
    "PYTHONPATH": os.pathsep.join(map(str, (HERE.parents[1], HERE, HERE.parent / "serving", HERE.parent / "pipeline"))),
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the scenario says; it runs once for all tests here."""
    if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("Ray would listen on all interfaces: a network namespace of its own needs root, unshare and ip")
    folder = tmp_path_factory.mktemp("cluster")
    inside = f"ip link set lo up && exec {sys.executable} {HERE / 'scenario.py'} {folder / 'home'}"
    with (folder / "log").open("wb") as log:
        done = subprocess.run(
            ["unshare", "-n", "--kill-child", "--pid", "--fork", "--mount-proc", "sh", "-c", inside],
            env={**os.environ, **SETTINGS}, stdout=subprocess.PIPE, stderr=log, timeout=600, check=False,
        )  # fmt: skip
    assert done.returncode == 0, (folder / "log").read_text(errors="replace")[-4000:]
    (folder / "told.json").write_bytes(done.stdout.splitlines()[-1])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def failures(phase: dict[str, Any]) -> int:
    return sum(count for kind, count in phase["seen"].items() if kind not in ("right", "wrong"))


@pytest.mark.long
def test_replicas_are_on_different_nodes(told: dict[str, Any]) -> None:
    assert told["start"]["nodes"] == 2


@pytest.mark.long
def test_no_answer_is_wrong(told: dict[str, Any]) -> None:
    assert told["all"].get("wrong", 0) == 0
    assert told["all"]["right"] > 1000


@pytest.mark.long
@pytest.mark.parametrize("name", ["killed", "node_removed"])
def test_a_loss_costs_what_was_in_flight_there_at_most(told: dict[str, Any], name: str) -> None:
    assert failures(told[name]) <= IN_FLIGHT, told["errors"]
    assert told[name]["seen"]["right"] > 100


@pytest.mark.long
@pytest.mark.parametrize("name", ["upgraded", "scaled_down", "scaled_up", "weighted", "scaled_back"])
def test_planned_changes_cost_nothing(told: dict[str, Any], name: str) -> None:
    assert failures(told[name]) == 0, told["errors"]
    assert told[name]["seen"]["right"] > 20


@pytest.mark.long
def test_all_replicas_follow_a_weight_within_two_seconds(told: dict[str, Any]) -> None:
    assert told["weights"]["candidate"]
    assert told["weights"]["last_of_stable"] < 2.0
