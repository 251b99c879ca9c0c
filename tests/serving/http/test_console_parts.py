"""Parts of the console that need no browser: history, alarms, display texts, content policy, imports."""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from installation import statuses

from pipeline.traffic.log import TrafficStats
from serving.admin.answers import Arm, Endpoint, Freeze, Rollout
from serving.http.console import history, wording
from serving.http.console.actions import ACTIONS
from serving.http.console.alarms import Alarm, alarms, endpoint_alarms
from serving.http.console.history import Series, Track
from serving.http.console.nonces import PAGES
from serving.http.console.reader import ArmTraffic, Reading, View
from serving.runtime.roster import roster
from serving.security.headers import page_policy

NOW = 1_700_000_000_000
AWAY = {"since_ms": NOW, "reason": "gone"}


def rollout(**changes: Any) -> Rollout:
    return Rollout.model_validate(
        {
            "id": "ranker-1",
            "endpoint": "ranker",
            "candidate": {"bundle": "student", "version": "1"},
            "phase": "progressing",
            "step": 0,
            "weight": 0,
            "steps": [{"shadow": True}, {"weight": 10, "bias_below": 0.1}, {"weight": 100, "bias_below": 0.05}],
            "steps_on_evidence": [0],
            "stepped_back": 0,
            "attempt": 1,
            "entered_ms": NOW,
            "waiting": "more clicks",
            "next_look_ms": NOW,
            "evidence": {"bias": 0.02, "bias_low": -0.1, "bias_high": 0.14, "stable_bias": 0.0},
            "created_ms": NOW,
            "resource_version": 1,
            "phases": [],
            **changes,
        }
    )


def reading(**changes: Any) -> Reading:
    arms = {
        arm: ArmTraffic("b", "1", {"lane-0": "1"}, "READY", "", 60, 10, 0, 0, 1.0, 2.0)
        for arm in ("stable", "candidate")
    }
    arm = Arm(bundle="teacher", version="1")
    endpoint = Endpoint(
        name="ranker", stable=arm, candidate=arm, weight=10, salt="s", holdout=0, killed=False, resource_version=1
    )
    made = {
        "time_ms": NOW,
        "statuses": statuses({"worker": {}, "control": {"leads": True}}),
        "traffic": TrafficStats(*[0] * 13),
        "views": {"ranker": View(endpoint, arms, rollout(), None, None, ())},
        "cache": None,
        "worker": None,
    }
    return Reading(**{**made, **changes})


@pytest.mark.parametrize("module", [history, wording])
def test_examples_are_right(module: Any) -> None:
    assert doctest.testmod(module).failed == 0


def test_a_series_is_bounded_keeps_its_ends_and_stays_in_order() -> None:
    series = Series(("a",), capacity=50)
    for second in range(10_000):
        series.add(1000 * second, (float(second),))
        assert len(series.points) <= 50
    times = [time for time, _ in series.points]
    assert times[0] == 0
    assert times[-1] == 9_999_000
    assert times == sorted(set(times))
    assert len(times) >= 20
    series.add(5, (1.0,))
    assert series.points[-1][0] == 9_999_000  # what is older than the newest is passed over


def test_a_track_begins_with_what_the_stores_have_and_adds_one_point_a_look() -> None:
    phase = {
        "entered_ms": NOW,
        "auc": {"stable": 0.7, "candidate": 0.71},
        "logloss": {"stable": 0.5, "candidate": 0.49},
    }
    two_stays = rollout(phases=[phase, {**phase, "entered_ms": NOW + 5_000}])
    track = Track(two_stays.id)
    track.begin(two_stays, [])
    assert track.quality.column("auc_candidate") == [[NOW + 5_000, 0.71]]
    for _ in range(3):
        track.look(two_stays, {"stable": 2.0, "candidate": None}, NOW + 6_000)
    track.look(two_stays.model_copy(update={"next_look_ms": NOW + 9_000}), {}, NOW + 9_000)
    assert track.evidence.column("bias", 100, 1) == [[NOW + 6_000, 2.0], [NOW + 9_000, 2.0]]
    assert track.evidence.column("bound")[-1] == [NOW + 9_000, 0.1]
    assert track.latency.column("p99_stable") == [[NOW + 6_000, 2.0], [NOW + 9_000, None]]


def bad(found: list[Alarm]) -> list[str]:
    return [alarm.text for alarm in found if alarm.bad]


def test_nothing_is_wrong_when_nothing_is_wrong() -> None:
    assert alarms(reading(), "", NOW + 2_000, worker=True) == []
    assert endpoint_alarms(reading(), "ranker") == []


@pytest.mark.parametrize(
    ("changes", "later", "text"),
    [
        ({}, 60_000, "These figures are 1 min 0 s old"),
        ({"statuses": statuses({"control": {}}, 20_000)}, 0, "The control process last reported 20 s ago"),
        ({"statuses": statuses({})}, 0, "has not reported yet"),
        ({"missing": ("lane-0", "lane-1")}, 0, "Not answering: lane-0, lane-1."),
        ({"missing": ("shadow",)}, 0, "The shadow lane is gone"),
        (
            {"statuses": statuses({name: {"state_away": AWAY} for name in ("lane-0", "shadow")})},
            12_000,
            "In lane-0, shadow the state has not answered since 22:13:20 UTC (for 12 s), so weights stay as they were: gone.",
        ),
        ({"time_ms": NOW + 30_000}, 30_000, "The rollout loop stands still: a look was due 30 s ago"),
    ],
)
def test_what_is_stale_or_gone_is_said(changes: dict[str, Any], later: int, text: str) -> None:
    assert text in " ".join(bad(alarms(reading(**changes), "", NOW + later, worker=False)))


def test_a_reading_that_fails_says_why() -> None:
    assert "the disk" in alarms(None, "the disk", NOW, worker=False)[0].text
    assert "the disk" in alarms(reading(), "the disk", NOW + 60_000, worker=False)[0].text


def test_a_dead_worker_and_restarts_are_told_without_shouting() -> None:
    processes = {
        "control": {},
        "worker": {"time_ms": -90_000},
        "supervisor": {"children": {"lane-0": {"restarts": 2, "last_exit": -9}}},
    }
    seen = statuses(processes)
    states = roster(seen, ["worker"], NOW, {"worker": "no teacher"}, lambda pid: "alive")
    found = alarms(reading(statuses=seen, processes=states), "", NOW, worker=True)
    assert bad(found) == []
    assert [alarm.text for alarm in found] == [
        "The transfer worker has not reported for 1 min 30 s (no teacher): the student learns nothing new.",
        "lane-0 was restarted 2 times, last by signal SIGKILL.",
    ]


def test_the_policy_names_nobody_else() -> None:
    policy = page_policy("'self'", "127.0.0.1:8000")
    assert "http" not in policy.replace("ws://127.0.0.1:8000", "")
    assert "ws://" not in page_policy("'self'", "evil; script-src *")
    assert PAGES.fullmatch("/endpoints/ranker")
    assert not PAGES.fullmatch("/api/v1/endpoints")


def test_only_the_control_process_pays_for_the_pages() -> None:
    others = "serving.processes.lane, serving.processes.shadow, serving.cli.main, serving.processes.worker, serving.supervisor.supervisor, serving.http.api"
    code = f"import sys; import {others}; assert 'nicegui' not in sys.modules, 'nicegui is imported'"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


def test_a_freeze_and_a_deadline_are_told_of() -> None:
    freeze = Freeze(until_ms=NOW + 3_600_000, actor="ann", reason="big sale", since_ms=NOW)
    found = alarms(reading(freeze=freeze), "", NOW, worker=True)
    assert [a.text for a in found if "frozen" in a.text] == ["Rollouts are frozen until 23:13:20 UTC by ann: big sale."]
    made = reading()
    view = made.views["ranker"]
    late = View(view.endpoint, view.arms, rollout(overdue=True), None, None, ())
    assert "longer than its progress_deadline" in endpoint_alarms(reading(views={"ranker": late}), "ranker")[0].text


def test_what_can_be_pressed_follows_what_the_rollout_says() -> None:
    def labels(**changes: Any) -> set[str]:
        view = reading().views["ranker"]
        shown = View(view.endpoint, view.arms, rollout(**changes), None, None, ())
        return {action.label for action in ACTIONS if action.possible(shown)}

    assert "Approve" not in labels(code="evidence_missing")
    assert "Approve" in labels(code="waits_for_approval")
    assert {"Pause", "Set weight", "Undo"} <= labels(phase="watching"), "at every weight"
    assert {"Resume", "Set weight", "Promote one step"} <= labels(phase="paused")
    assert not {"Pause", "Promote fully"} & labels(phase="aborted")
