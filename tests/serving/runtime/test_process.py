"""Processes and whose they are: no child outlives its parent, no home in use is cleared."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import Conflict
from serving.cli.demo import MARK, Demo
from serving.runtime.process import PARENT

ROOT = Path(__file__).parents[3]
CODE = "from serving.runtime.process import die_with_parent; die_with_parent(); print('lives')"


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


@pytest.mark.skipif(sys.platform != "linux", reason="the idle class is Linux's")
@pytest.mark.parametrize(("nice", "idle"), [(10, False), (19, True)])
def test_who_steps_back_the_whole_way_leaves_the_core_to_whoever_wakes_up(nice: int, idle: bool) -> None:
    code = (
        f"import os; from serving.runtime.process import step_back; step_back({nice}); "
        "print(os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0) == os.SCHED_IDLE)"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    assert found.stdout.split() == [str(max(mine, nice)), str(idle)]


def test_a_demo_home_that_is_in_use_is_not_cleared(tmp_path: Path) -> None:
    home = tmp_path / "demo"
    Demo(home)._clear()
    (home / "run").mkdir()
    (home / "kept").touch()
    with open(home / "run" / "supervisor.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Conflict, match="still runs"):
            Demo(home)._clear()
        assert (home / "kept").exists()
    Demo(home)._clear()
    assert not (home / "kept").exists()
    (home / MARK).unlink()
    (home / "mine").touch()
    with pytest.raises(Conflict, match="not a demo's"):
        Demo(home)._clear()
    assert (home / "mine").exists()
