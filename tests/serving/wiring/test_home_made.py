"""A home whose first process is killed while it makes the databases: the next one starts, and nothing of them is left."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.traffic.log import TrafficLog
from serving.config import Config
from serving.rollout.store import ControlStore
from serving.wiring.state import open_control_store
from serving.wiring.traffic import open_traffic_log

PROCESSES = multiprocessing.get_context("spawn")
OPENERS: dict[str, Callable[[Config], TrafficLog | ControlStore]] = {
    "labels.db": open_traffic_log,
    "control.db": open_control_store,
}


def opened(home: Path, name: str) -> None:
    OPENERS[name](Config.model_validate({"home": home})).close()


def die_at_its_name(home: Path, name: str, *, after: bool) -> None:
    """Open a store of a home, and be killed as its database gets its name."""
    link = os.link

    def killed(source: Path, target: Path) -> None:
        if after or target.name != name:
            link(source, target)
        if target.name != name:
            return
        os.kill(os.getpid(), signal.SIGKILL)

    os.link = killed  # type: ignore[assignment]
    opened(home, name)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", sorted(OPENERS))
def test_a_killed_first_start_leaves_no_file_behind(tmp_path: Path, name: str, after: bool) -> None:
    child = PROCESSES.Process(target=die_at_its_name, args=(tmp_path, name), kwargs={"after": after})
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    left = [*tmp_path.rglob(f".{name}.*")]
    assert left
    opened(tmp_path, name)
    if not after:
        assert [*tmp_path.rglob(f".{name}.*")] == left, "somebody may still be at work on it"
        for path in left:
            os.utime(path, (time.time() - 7200,) * 2)
        opened(tmp_path, name)
    assert not [*tmp_path.rglob(f".{name}.*")]
    assert len([*tmp_path.rglob(name)]) == 1
