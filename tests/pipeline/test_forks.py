"""What one process alone may use, in a forked child: it says so at once, and the parent goes on."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

from pipeline.clock import SystemClock
from pipeline.errors import Conflict
from pipeline.traffic.lanes.lane import Lane
from pipeline.traffic.lanes.lanes import Lanes
from pipeline.traffic.local.log import LocalTrafficLog
from pipeline.traffic.prediction import PredictionIds
from pipeline.traffic.writer import TrafficWriter
from serving.rollout.sqlite_store import SqliteControlStore


def in_child(call: Callable[[], object]) -> str:
    """Run a call in a forked child; what it raised, "" where nothing."""
    reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = ""
        try:
            call()
        except Exception as error:
            said = f"{type(error).__name__} {error}"
        os.write(writes, said.encode())
        os._exit(0)
    os.close(writes)
    with os.fdopen(reads) as answer:
        said = answer.read()
    assert os.waitpid(pid, 0)[1] == 0
    return said


def test_stores_and_the_writer_refuse_in_a_child_and_go_on_in_the_parent(tmp_path: Path) -> None:
    path = tmp_path / "traffic"
    log = LocalTrafficLog(path, PredictionIds(bytes(32)), attribution_window_ms=1000)
    control = SqliteControlStore(tmp_path / "control.db")
    writer = TrafficWriter(log, SystemClock())
    lane, lanes = Lane(tmp_path / "lanes", 0, SystemClock()), Lanes(tmp_path / "lanes")
    for call in (lambda: lane.trim(0), lanes.numbers):
        assert in_child(call).startswith(f"{Conflict.__name__} ")
    lane.close()
    lanes.close()
    for call in (lambda: log.labelled(0, 1), control.endpoints, lambda: writer.feedback([]), lambda: writer.offer(b"")):
        assert in_child(call).startswith(f"{Conflict.__name__} ")
    assert str(os.getpid()) in in_child(control.endpoints)
    assert in_child(lambda: SqliteControlStore(tmp_path / "control.db").endpoints()) == "", "what it opens itself works"
    assert control.endpoints() == {}
    writer.close()
    assert list(log.labelled(0, 1)) == []
    control.close()
    log.close()


def test_a_lock_that_another_thread_held_at_the_fork_is_not_waited_for(tmp_path: Path) -> None:
    control = SqliteControlStore(tmp_path / "control.db")
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with control._lock:
            held.set()
            over.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(60)
    assert in_child(control.endpoints).startswith("Conflict")
    over.set()
    thread.join()
    control.close()
