"""Programs of tests in a mount namespace of their own, where a disk in memory can be mounted over a folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

__all__ = ["in_namespace"]

ROOT = Path(__file__).parents[2]
NAMESPACE = ["unshare", "--mount", *([] if os.getuid() == 0 else ["--map-root-user"])]
LIMIT_S = 200


def in_namespace(disk: Path, *program: str | Path) -> str:
    """What a Python program prints that may mount things; its test is skipped where nobody may, tried on the folder `disk`."""
    if subprocess.run([*NAMESPACE, "mount", "-t", "tmpfs", "t", disk], capture_output=True, check=False).returncode:
        pytest.skip("no disk in memory can be mounted here")
    done = subprocess.run(
        [*NAMESPACE, sys.executable, *program],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/support'}"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
