"""The supervisor with small children of its own: it brings them back, ends them in order and takes them with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from clocks import HandClock
from installation import eventually
from supervised import WAIT, child, python, running, told

from pipeline.errors import Conflict
from serving.config import Config
from serving.supervisor import supervisor as module
from serving.supervisor.child import FIRST_PAUSE_S, Child, children_of
from serving.supervisor.supervisor import Supervisor

ROOT = Path(__file__).parents[3]


def test_a_killed_child_comes_back_and_is_counted(tmp_path: Path) -> None:
    with running(Supervisor(tmp_path, [python("a", WAIT), python("b", WAIT)])):
        eventually(lambda: bool(child(tmp_path, "a")["pid"] and child(tmp_path, "b")["pid"]), "both run")
        first, other = child(tmp_path, "a")["pid"], child(tmp_path, "b")["pid"]
        os.kill(first, signal.SIGKILL)
        eventually(lambda: child(tmp_path, "a")["pid"] not in (None, first), "it comes back")
        again, kept = child(tmp_path, "a"), child(tmp_path, "b")
        assert (again["restarts"], again["last_exit"]) == (1, -signal.SIGKILL)
        assert (kept["pid"], kept["restarts"], kept["last_exit"]) == (other, 0, None)
        assert again["started_ms"] >= kept["started_ms"] > 0
        assert told(tmp_path)["pid"] == os.getpid()
        again = child(tmp_path, "a")["pid"]
    assert not psutil.pid_exists(again)
    assert not psutil.pid_exists(other)


def test_pauses_double_and_are_forgotten_by_a_child_that_stays(tmp_path: Path) -> None:
    clock = HandClock(1000.0)
    made = Supervisor(tmp_path, [python("a", "raise SystemExit(3)")], clock=clock)
    (tmp_path / "run" / "status").mkdir(parents=True)
    (only,) = made.children
    pauses = []
    for _ in range(8):
        made._tick()
        assert only.process is not None
        only.process.wait(20)
        made._tick()
        assert only.process is None
        pauses.append(round(only.due - clock.now, 3))
        made._tick()
        assert only.process is None  # not before its time
        clock.now = only.due
    assert pauses == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    assert (only.restarts, only.last_exit) == (8, 3)
    only.argv = (sys.executable, "-c", WAIT)
    made._tick()
    clock.now += module.STABLE_AFTER_S + 1
    made._tick()
    assert only.pause == FIRST_PAUSE_S
    made._end_all()


def test_one_reason_is_logged_once_and_is_in_the_status(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = HandClock(1000.0)
    code = (
        "import os, pathlib; from serving.runtime.endings import ending;"
        f"reason = pathlib.Path({str(tmp_path / 'reason')!r})\n"
        "with ending(pathlib.Path(os.environ['BATON_ENDING'])): raise ValueError(reason.read_text())"
    )
    made = Supervisor(tmp_path, [python("worker", code)], clock=clock, environment={"PYTHONPATH": str(ROOT)})
    (tmp_path / "run" / "status").mkdir(parents=True)
    (only,) = made.children
    for reason in ("no teacher", "no teacher", "no teacher", "no disk"):
        (tmp_path / "reason").write_text(reason)
        made._tick()
        assert only.process is not None
        only.process.wait(20)
        made._tick()
        clock.now = only.due
        assert only.status().reason == f"ValueError: {reason}"
    ends = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert [end.partition(";")[0] for end in ends] == [
        "worker ended with exit code 1: ValueError: no teacher",
        "worker ended with exit code 1: ValueError: no disk",
    ]


def test_children_end_stage_by_stage(tmp_path: Path) -> None:
    ends = tmp_path / "ends"

    def recording(name: str, stage: int) -> Child:
        return python(
            name,
            "import signal, sys, time\n"
            f"def end(*_):\n    open({str(ends)!r}, 'a').write({name!r} + '\\n'); sys.exit(0)\n"
            f"signal.signal(signal.SIGTERM, end)\nopen({str(tmp_path / name)!r}, 'w').close()\nsignal.pause()",
            stage,
        )

    children = [recording("control", 2), recording("shadow", 1), recording("lane-0", 0)]
    with running(Supervisor(tmp_path / "home", children)):
        eventually(lambda: all((tmp_path / c.name).exists() for c in children), "all run")
    assert ends.read_text().split() == ["lane-0", "shadow", "control"]


def test_a_child_that_does_not_listen_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STOP_TIMEOUT_S", 0.2)
    deaf = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); open({str(tmp_path / 'up')!r}, 'w'); signal.pause()"
    made = Supervisor(tmp_path / "home", [python("deaf", deaf)])
    with running(made):
        eventually(lambda: (tmp_path / "up").exists(), "it runs")
    process = made.children[0].process
    assert process is not None
    assert process.returncode == -signal.SIGKILL


def test_a_second_supervisor_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    with running(Supervisor(tmp_path, [python("a", WAIT)])):
        eventually(lambda: bool(child(tmp_path, "a")["pid"]), "it runs")
        before = told(tmp_path)["children"]
        for second in (Supervisor(tmp_path, [python("b", WAIT)]), Supervisor(tmp_path, [], "replica-0", alone=False)):
            with pytest.raises(Conflict, match=rf"\(pid {os.getpid()}, since .*{tmp_path}"):
                second.run()
        assert told(tmp_path)["children"] == before
    with running(Supervisor(tmp_path, [python("a", WAIT)], "replica-0", alone=False)):
        eventually(lambda: (tmp_path / "run/status/replica-0.json").exists(), "the replica runs")
        with running(Supervisor(tmp_path, [python("b", WAIT)], "replica-1", alone=False)):
            eventually(lambda: (tmp_path / "run/status/replica-1.json").exists(), "another replica does, too")
        with pytest.raises(Conflict, match="in use by"):
            Supervisor(tmp_path, [python("b", WAIT)]).run()
    with running(Supervisor(tmp_path, [python("c", WAIT)])):  # and the home is free again
        eventually(lambda: bool(child(tmp_path, "c")["pid"]), "it runs")


def test_status_of_an_earlier_life_is_removed(tmp_path: Path) -> None:
    stale = tmp_path / "run" / "status" / "lane-7.json"
    stale.parent.mkdir(parents=True)
    stale.write_text("{}")
    with running(Supervisor(tmp_path, [python("a", WAIT)])):
        eventually(lambda: bool(child(tmp_path, "a")["pid"]), "it runs")
        assert not stale.exists()


def test_children_die_with_a_killed_supervisor(tmp_path: Path) -> None:
    code = "from serving.runtime.process import die_with_parent; die_with_parent(); import signal; signal.pause()"
    parent = (
        "import sys; from pathlib import Path; from serving.supervisor.child import Child; from serving.supervisor.supervisor import Supervisor;"
        f"Supervisor(Path({str(tmp_path)!r}), [Child('a', (sys.executable, '-c', {code!r}), 0)]).run()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    supervisor = subprocess.Popen([sys.executable, "-c", parent], env=environment)
    try:
        eventually(lambda: bool(child(tmp_path, "a")["pid"]), "the child runs")
        process = psutil.Process(child(tmp_path, "a")["pid"])
        # Only once it waits has it asked to be told of its parent's death.
        eventually(_waits(process), "the child waits")
    finally:
        supervisor.kill()
        supervisor.wait(20)
    eventually(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, "the child has ended")


def _waits(process: psutil.Process) -> Callable[[], bool]:
    path = Path(f"/proc/{process.pid}/syscall")
    if not path.exists():
        pytest.skip("needs Linux")
    pause = {"x86_64": "34", "aarch64": "73"}.get(os.uname().machine, "34")
    return lambda: path.read_text().split()[0] == pause


def test_a_config_names_its_processes(tmp_path: Path) -> None:
    config = Config.model_validate({"home": tmp_path, "engine": {"lanes": 2}, "worker": {"endpoint": "r"}})
    children = children_of(config, tmp_path / "baton.yaml")
    assert {c.name: c.stage for c in children} == {"lane-0": 0, "lane-1": 0, "shadow": 1, "worker": 1, "control": 2}
    assert all(c.argv[-2:] == ("--config", str(tmp_path / "baton.yaml")) for c in children)
    without = children_of(Config.model_validate({"home": tmp_path, "engine": {"lanes": 1}}), tmp_path / "baton.yaml")
    assert {c.name for c in without} == {"lane-0", "shadow", "control"}


BEATS = (
    "import time, pathlib, os; from serving.supervisor.pulse import own_heart; heart = own_heart('work')\n"
    "while not pathlib.Path(os.environ['HANG']).exists(): heart.beat(); time.sleep(0.02)\n"
    "time.sleep(600)"
)


def test_a_child_that_hangs_is_killed_and_started_again_with_the_reason(tmp_path: Path) -> None:
    hang = tmp_path / "hang"
    environment = {"PYTHONPATH": str(ROOT), "HANG": str(hang)}
    children = [python("worker", BEATS), python("other", BEATS)]
    made = Supervisor(tmp_path, children, environment=environment, hang_limit_s=1.0)
    with running(made):
        eventually(lambda: bool(child(tmp_path, "worker")["pid"]), "it runs")
        first, other = child(tmp_path, "worker")["pid"], child(tmp_path, "other")["pid"]
        os.kill(first, signal.SIGSTOP)
        eventually(lambda: child(tmp_path, "worker")["pid"] not in (None, first), "it is started again")
        found = child(tmp_path, "worker")
        assert (found["causes"], found["last_exit"]) == ({"hung": 1}, -signal.SIGKILL)
        assert found["reason"].startswith("stopped by a signal, without a sign of life for ")
        assert child(tmp_path, "other")["pid"] == other
        hang.touch()
        eventually(lambda: child(tmp_path, "other")["restarts"] > 0, "the one that only stands still is, too")
        assert child(tmp_path, "other")["reason"].endswith(": work")


def test_one_that_hangs_again_waits_longer_although_it_ran_for_a_while(tmp_path: Path) -> None:
    clock = HandClock(1000.0)
    made = Supervisor(tmp_path, [python("a", WAIT)], clock=clock)
    (tmp_path / "run" / "status").mkdir(parents=True)
    (only,) = made.children
    pauses = []
    for _ in range(3):
        made._tick()
        clock.now += module.STABLE_AFTER_S + 5
        made._tick()
        only.hung = "without a sign of life for 20 s: work"
        only.kill()
        assert only.process is not None
        only.process.wait(20)
        made._tick()
        pauses.append(round(only.due - clock.now, 3))
        clock.now = only.due
    assert pauses == [0.2, 0.4, 0.8]
    made._tick()
    clock.now += module.WELL_AFTER_S + 1
    made._tick()
    assert only.pause == FIRST_PAUSE_S
    made._end_all()
