"""Kill with a full disk, no descriptors, no control process and a full Redis at once; and a Redis that does not answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STOPPED_S = 6
"""By hand with 20, see docs/state.md."""
NAMESPACE = ["unshare", "--mount", *([] if os.getuid() == 0 else ["--map-root-user"])]
pytestmark = pytest.mark.long


def test_nothing_that_fails_keeps_the_candidate_in_traffic(tmp_path: Path) -> None:
    if subprocess.run([*NAMESPACE, "mount", "-t", "tmpfs", "t", tmp_path], capture_output=True, check=False).returncode:
        pytest.skip("no disk in memory can be mounted here")
    done = subprocess.run(
        [*NAMESPACE, sys.executable, Path(__file__).with_name("emergency_scenario.py"), tmp_path, str(STOPPED_S)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/support'}"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["moved"] == 0, "a state store that does not answer changes no arm"
    assert 0.45 <= seen["fraction"] <= 0.55
    assert seen["armed"] == ["candidate"], "what fails takes no traffic from a candidate that nobody killed"
    assert seen["kill"][0] == 0, seen["kill"][1]
    assert seen["seconds"] < 1.0
    assert seen["after"] == ["stable"]
    assert json.loads(seen["file"])["reason"] == "burns"
