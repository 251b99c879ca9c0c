"""Restarts by order, with small children: a successor is ready before the one before it ends, or nothing changes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from installation import eventually
from supervised import child, running

from pipeline.errors import InvalidInput
from serving.supervisor import orders, restart
from serving.supervisor.child import Child
from serving.supervisor.orders import EVERYTHING, Order, Progress
from serving.supervisor.supervisor import Supervisor

REPORT = (
    "import json, os, pathlib, signal, sys, time\n"
    "home, folder, name = pathlib.Path({home!r}), {folder!r}, {name!r}\n"
    "note = lambda what: open(home / 'notes', 'a').write(f'{{name}} {{what}} {{os.getpid()}}\\n')\n"
    "def end(*_):\n    note('ends'); sys.exit(0)\n"
    "signal.signal(signal.SIGTERM, end)\n"
    "def say(state):\n"
    "    path = home / 'run' / folder / f'{{name}}.json'; path.parent.mkdir(parents=True, exist_ok=True)\n"
    "    text = json.dumps(dict(time_ms=time.time_ns() // 1_000_000, pid=os.getpid(), state=state, loading=['ranker/3']))\n"
    "    path.with_suffix('.part').write_text(text); path.with_suffix('.part').rename(path)\n"
    "say('starting'); time.sleep({wait}); say('ready'); note('ready')\n"
    "{then}\n"
)


def made_child(home: Path, name: str, *, after: str = "", wait: float = 0.0) -> Child:
    """A child that notes when it is ready and when it ends. `after`: what the next one of its name does once it has begun."""

    def code(folder: str, then: str, wait: float) -> tuple[str, ...]:
        return (sys.executable, "-c", REPORT.format(home=str(home), folder=folder, name=name, wait=wait, then=then))

    pause = "signal.pause()"
    beside = code("next", after or pause, wait) if name.startswith("lane-") else ()
    return Child(name, code("status", pause, 0.0), 0 if beside else 1, beside)


def notes(home: Path) -> list[str]:
    return (home / "notes").read_text().splitlines() if (home / "notes").exists() else []


def done(home: Path, process: str) -> Progress:
    order = Order.new(process, "ann", "why not")
    orders.give(home, order)

    def ended() -> bool:
        last = orders.progress(home)
        return last is not None and last.order == order and last.ended

    eventually(ended, "the restart ends", 30)
    last = orders.progress(home)
    assert last is not None
    return last


def test_lanes_are_followed_and_the_others_take_turns(tmp_path: Path) -> None:
    names = ("control", "lane-0", "lane-1", "shadow")
    with running(Supervisor(tmp_path, [made_child(tmp_path, name) for name in names])):
        eventually(lambda: len(notes(tmp_path)) == len(names), "all run")
        before = {name: child(tmp_path, name)["pid"] for name in names}
        last = done(tmp_path, EVERYTHING)
        assert (last.state, list(last.seconds)) == ("done", ["lane-0", "lane-1", "shadow", "control"])
        after = {name: child(tmp_path, name)["pid"] for name in names}
        assert not set(before.values()) & set(after.values())
        assert [note.rpartition(" ")[0] for note in notes(tmp_path)[len(names) :]] == [
            "lane-0 ready", "lane-0 ends", "lane-1 ready", "lane-1 ends",
            "shadow ends", "shadow ready", "control ends", "control ready",
        ]  # fmt: skip
        assert all(child(tmp_path, name)["causes"] == {"asked": 1} for name in names)
        assert done(tmp_path, "lane-0").state == "done"  # and back to the first command
        assert child(tmp_path, "lane-0")["causes"] == {"asked": 2}


def test_a_successor_that_ends_or_is_not_ready_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restart, "READY_LIMIT_S", 1.0)
    slow = made_child(tmp_path, "lane-1", wait=600)
    broken = Child("lane-0", made_child(tmp_path, "lane-0").argv, 0, (sys.executable, "-c", "raise SystemExit(3)"))
    with running(Supervisor(tmp_path, [broken, slow])):
        eventually(lambda: len(notes(tmp_path)) == 2, "both run")
        pids = {name: child(tmp_path, name)["pid"] for name in ("lane-0", "lane-1")}
        last = done(tmp_path, EVERYTHING)
        assert (last.state, last.why) == ("failed", "the new lane-0 ended with exit code 3; the old one goes on")
        last = done(tmp_path, "lane-1")
        assert last.why == "the new lane-1 is not ready after 1 s, waiting for ranker/3; the old one goes on"
        assert pids == {name: child(tmp_path, name)["pid"] for name in pids}
        assert done(tmp_path, "nobody").why == "there is no process 'nobody'; there are lane-0, lane-1"
        assert not [note for note in notes(tmp_path) if "ends" in note]


def test_a_changed_configuration_adds_and_removes_or_is_refused(tmp_path: Path) -> None:
    wanted = [made_child(tmp_path, name) for name in ("control", "lane-0", "lane-1")]
    fault = ""

    def read() -> list[Child]:
        if fault:
            raise InvalidInput(fault)
        return wanted

    made = Supervisor(
        tmp_path,
        [made_child(tmp_path, "control"), made_child(tmp_path, "lane-0"), made_child(tmp_path, "worker")],
        wanted=read,
    )
    with running(made):
        eventually(lambda: len(notes(tmp_path)) == 3, "all run")
        assert done(tmp_path, EVERYTHING).state == "done"
        assert sorted(c.name for c in made.children) == ["control", "lane-0", "lane-1"]
        assert child(tmp_path, "lane-1")["pid"]
        pids = {name: child(tmp_path, name)["pid"] for name in ("control", "lane-0", "lane-1")}
        fault = "listen.grpc_port needs a full stop"
        assert (done(tmp_path, "lane-0").why, done(tmp_path, EVERYTHING).why) == (fault, fault)
        fault = ""
        made.trial = (sys.executable, "-c", "raise SystemExit('error: control.db was written by a newer Baton')")
        assert done(tmp_path, EVERYTHING).why == (
            "the installed version cannot run: error: control.db was written by a newer Baton; nothing was restarted"
        )
        assert pids == {name: child(tmp_path, name)["pid"] for name in pids}
