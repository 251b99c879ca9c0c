"""Runs a scenario in a network of its own: Ray listens on all interfaces, and to be kept in takes root."""

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
PACKAGES = (HERE, HERE.parent / "support")
SETTINGS = {
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    "RAY_enable_metrics_collection": "0",
    "RAY_usage_stats_enabled": "0",
    "PYTHONPATH": os.pathsep.join(map(str, (HERE.parents[1], *PACKAGES))),
}


def told_by(scenario: str, folder: Path, limit: float) -> dict[str, Any]:
    """What a scenario (a script of this folder, which is given a folder to work in) prints last, as JSON.

    Args:
        folder: keeps what it told and its log.
        limit: seconds that it may take.
    """
    if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("Ray would listen on all interfaces: a network namespace of its own needs root, unshare and ip")
    inside = f"ip link set lo up && exec {sys.executable} {HERE / scenario} {folder / 'home'}"
    with (folder / "log").open("wb") as log:
        done = subprocess.run(
            ["unshare", "-n", "--kill-child", "--pid", "--fork", "--mount-proc", "sh", "-c", inside],
            env={**os.environ, **SETTINGS}, stdout=subprocess.PIPE, stderr=log, timeout=limit, check=False,
        )  # fmt: skip
    assert done.returncode == 0, (folder / "log").read_text(errors="replace")[-4000:]
    (folder / "told.json").write_bytes(done.stdout.splitlines()[-1])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
