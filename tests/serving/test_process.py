"""A child process and its parent: it must not outlive it, not even one that died before the child was ready."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from serving.process import PARENT

ROOT = Path(__file__).parents[2]
CODE = "from serving.process import die_with_parent; die_with_parent(); print('lives')"


def child(parent: int) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, PARENT: str(parent)}
    return subprocess.run(
        [sys.executable, "-c", CODE], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60
    )


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's death signal is Linux's")
def test_a_supervisor_that_died_while_the_child_was_starting_is_noticed() -> None:
    assert child(os.getpid()).stdout == "lives\n"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    orphan = child(gone.pid)
    assert orphan.returncode == -signal.SIGTERM
    assert orphan.stdout == ""
