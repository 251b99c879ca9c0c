"""Roster of processes: the supervisor's word first, then the age of a report; each cause in words."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from installation import eventually, statuses, write_status

from pipeline.errors import NotReady
from serving.config import Config
from serving.runtime.claims import role_on
from serving.runtime.endings import ending, ending_path
from serving.runtime.roster import ProcessState, State, last_endings, process_state, roster, roster_of

NOW = 1_000_000
EXPECTED = ["supervisor", "control", "lane-0", "shadow", "worker"]


def child(pid: int | None, **more: object) -> dict[str, object]:
    return {"pid": pid, "restarts": 0, "last_exit": None, "started_ms": NOW - 200_000, **more}


def states(
    reports: Mapping[str, Mapping[str, Any]], look: Mapping[int, State] | None = None, **reasons: str
) -> dict[str, ProcessState]:
    found = statuses({name: {"time_ms": NOW - 1_000, **fields} for name, fields in reports.items()}, NOW)
    listed = roster(found, EXPECTED, NOW, reasons, lambda pid: (look or {}).get(pid, "alive"))
    return {process.name: process for process in listed}


def machine(worker: Mapping[str, object], report: Mapping[str, object] | None = None, **more: Any) -> dict[str, Any]:
    """A healthy machine but for its worker. `report`: the worker's."""
    children = {"control": child(2), "shadow": child(3), "lane-0": child(4), "worker": dict(worker)}
    return {
        "supervisor": {"pid": 1, "children": children},
        "control": {"pid": 2},
        "shadow": {"pid": 3},
        "lane-0": {"pid": 4, "state": "ready"},
        **({} if report is None else {"worker": dict(report)}),
        **more,
    }


def test_on_a_healthy_machine_every_process_is_alive() -> None:
    found = states(machine(child(5), {"pid": 5, "state": "waiting", "waiting": "no candidate"}))
    assert list(found) == EXPECTED
    assert {process.state for process in found.values()} == {"alive"}
    assert (found["lane-0"].doing, found["worker"].doing) == ("ready", "waiting: no candidate")
    assert all(process.well and not process.why for process in found.values())


def test_lanes_without_an_answer_of_the_state_say_since_when() -> None:
    away = {"state_away": {"since_ms": NOW - 12_000, "reason": "no route"}}
    lane, shadow = {"pid": 4, "state": "ready", **away}, {"pid": 3, **away}
    found = states({**machine(child(5)), "lane-0": lane, "shadow": shadow})
    said = "the state has not answered since 00:16:28 UTC (for 12 s), so weights stay as they were: no route"
    assert (found["lane-0"].doing, found["shadow"].doing) == (f"ready, {said}", said)


@pytest.mark.parametrize(
    ("name", "report", "doing"),
    [
        ("lane-0", {"pid": 4, "state": "starting", "loading": ["new/2", "old/1"]}, "starting, loading new/2, old/1"),
        ("lane-0", {"pid": 4, "state": "ready", "blind": "no folder"}, "ready, candidates get nothing: no folder"),
        ("control", {"pid": 2, "leads": False, "leader": "far-1 pid 7"}, "standing by: far-1 pid 7 leads"),
        ("control", {"pid": 2}, "leading"),
        (
            "control",
            {"pid": 2, "backlog": {"predictions": 1200, "oldest_s": 65.0, "window_s": 1800.0}},
            "leading; 1,200 predictions wait for labels, the first for 65 s; shown rows wait 1,800 s",
        ),
    ],
)
def test_what_a_process_waits_for_is_part_of_what_it_does(name: str, report: dict[str, object], doing: str) -> None:
    found = states(machine(child(5), {"pid": 5}, **{name: report}))
    assert (found[name].state, found[name].doing) == ("alive", doing)


@pytest.mark.parametrize(
    ("worker", "report", "look", "state", "why"),
    [
        (child(None, restarts=2, last_exit=1, reason="no teacher"), None, {}, "restarting", "no teacher"),
        (child(None, restarts=1, last_exit=-9), {"pid": 5}, {}, "restarting", ""),
        (child(5), {"pid": 5}, {5: "gone"}, "restarting", "it cannot be started"),
        (child(6, restarts=1, last_exit=1, reason="no disk"), {"pid": 6}, {}, "alive", "started again after: no disk"),
        (child(6, started_ms=NOW - 900), {"pid": 5}, {}, "starting", ""),
        (child(5, started_ms=NOW - 900), None, {}, "starting", ""),
        (child(5), None, {}, "silent", "has not reported yet"),
        (child(5), {"pid": 5, "time_ms": NOW - 60_000}, {}, "silent", "has not reported for 60 s"),
        (child(5), {"pid": 5}, {5: "stopped"}, "stopped", "kill -CONT"),
    ],
)
def test_a_sick_worker_shows_at_once_and_why(
    worker: dict[str, object], report: dict[str, object] | None, look: dict[int, State], state: str, why: str
) -> None:
    found = states(machine(worker, report), look)
    assert found["worker"].state == state
    assert why in found["worker"].why
    assert found["worker"].restarts == worker["restarts"]
    assert {process.state for name, process in found.items() if name != "worker"} == {"alive"}


def test_a_stopped_or_dead_supervisor_shows_and_so_does_one_of_another_version() -> None:
    stopped = machine(child(5), {"pid": 5})
    assert states(stopped, {1: "stopped"})["supervisor"].state == "stopped"
    stopped["supervisor"]["time_ms"] = NOW - 30_000
    assert states(stopped)["supervisor"].state == "silent"
    left = states(stopped, {1: "gone", 3: "gone"})
    assert left["supervisor"].state == "gone"
    assert left["worker"].state == "alive"  # it goes on for now
    del stopped["shadow"]
    assert states(stopped, {1: "gone"})["shadow"].state == "gone"


def test_without_a_supervisor_reports_count_and_the_last_ending_is_the_cause() -> None:
    found = states({"lane-0": {"pid": 4}, "lane-0@far": {"pid": 4}}, worker="no labels (ended 1970)")
    assert (found["lane-0"].state, found["lane-0@far"].state) == ("alive", "alive")
    assert (found["worker"].state, found["worker"].why) == ("gone", "no labels (ended 1970)")
    assert "supervisor" not in found
    replicas = states({"replica-3": {"children": {"lane-3": child(4)}}, "lane-3": {"pid": 4}})
    assert list(replicas) == ["lane-3", "replica-3"]


def test_the_kernel_tells_a_stopped_process_from_one_that_is_gone(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    try:
        eventually(lambda: process_state(process.pid) == "alive", "it runs")
        process.send_signal(signal.SIGSTOP)
        eventually(lambda: process_state(process.pid) == "stopped", "it is stopped")
    finally:
        process.kill()
    eventually(lambda: process_state(process.pid) == "gone", "it is gone, though nobody has waited for it")
    process.wait(20)
    assert process_state(process.pid) == "gone"


def test_a_home_tells_why_its_worker_does_not_run(tmp_path: Path) -> None:
    config = Config.model_validate({"home": tmp_path, "engine": {"lanes": 1}, "worker": {"endpoint": "r"}})
    write_status(config.status, "lane-0", time_ms=NOW, pid=os.getpid())
    with pytest.raises(SystemExit), ending(ending_path(tmp_path, "worker")):
        raise NotReady("bundle 'teacher' has no version")
    worker = roster_of(config, NOW)[-1]
    assert worker.name == "worker"
    assert worker.why.startswith("bundle 'teacher' has no version (ended 20")
    with role_on(tmp_path, "worker"):  # it has been started since
        assert last_endings(config) == {}
