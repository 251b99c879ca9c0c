"""Facts of made-up installations: what is well, what needs a person, and what cannot be told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from serving.health import Fact, Level, Reading, health_of
from serving.health.reading import StateReading
from serving.rollout.routing import ArmSpec, Endpoint
from serving.rollout.status.freeze import Freeze
from serving.runtime.roster import ProcessState
from serving.runtime.status import (
    ChildStatus,
    ControlStatus,
    LabelFlow,
    LaneArm,
    LaneStatus,
    RecentTotals,
    Report,
    StateAway,
    Statuses,
    SupervisorStatus,
)
from serving.runtime.stores import StoreStatus

NOW = 1_800_000_000_000
ROOM = StoreStatus(
    name="home", kind="disk", where="/srv", size_bytes=100 << 30, used_bytes=10 << 30, free_bytes=90 << 30
)


def lane(**more: object) -> Report[LaneStatus]:
    arm = LaneArm(bundle="t", version="1", wanted="1", state="READY", recent=RecentTotals(seconds=60, requests=10))
    return Report(
        LaneStatus(process="lane-0", pid=2, time_ms=NOW, endpoints={"ranker": {"stable": arm}}, **more), 0.5, {}
    )  # type: ignore[arg-type]


def control(age_s: float = 0.5, **more: object) -> Report[ControlStatus]:
    return Report(ControlStatus(process="control", pid=1, time_ms=NOW, **more), age_s, {})  # type: ignore[arg-type]


def reading(**more: object) -> Reading:
    endpoint = Endpoint(name="ranker", stable=ArmSpec(bundle="t"))
    well = Reading(
        now_ms=NOW,
        source="a test",
        processes=[ProcessState(name=name, state="alive", pid=1) for name in ("supervisor", "control", "lane-0")],
        statuses=Statuses(lanes={"lane-0": lane()}, controls={"control": control()}),
        stores=[ROOM],
        state=StateReading(endpoints={"ranker": endpoint}),
    )
    return replace(well, **more)  # type: ignore[arg-type]


def told(found: Reading, level: Level) -> dict[str, str]:
    return {f"{fact.about} {fact.name}".strip(): fact.says for fact in health_of(found).facts if fact.level is level}


def test_all_is_well_at_night() -> None:
    health = health_of(reading())
    assert (health.level, health.exit_code) == (Level.OK, 0)
    abouts = {fact.about for fact in health.facts}
    assert abouts == {"processes", "state", "endpoint", "labels", "approval", "freeze", "log", "store"}


def test_a_stopped_lane_needs_a_person() -> None:
    stopped = ProcessState(name="lane-0", state="stopped", why="it was stopped by a signal", pid=2)
    found = reading(processes=[stopped], statuses=Statuses(controls={"control": control()}))
    assert told(found, Level.ATTENTION).keys() == {"process lane-0", "endpoints"}
    assert health_of(found).exit_code == 1
    assert "restart lane-0" in next(fact.do for fact in health_of(found).facts if fact.name == "lane-0")


def test_while_the_state_is_away_lanes_say_what_they_know() -> None:
    away = StateAway(NOW - 60_000, "connection refused")
    statuses = Statuses(lanes={"lane-0": lane(state_away=away)}, controls={"control": control()})
    found = reading(statuses=statuses, state=None, state_fault="connection refused")
    assert "(for 60 s)" in told(found, Level.ATTENTION)["state"]
    assert told(found, Level.UNKNOWN).keys() == {"bias", "rollout", "freeze"}
    assert "endpoint ranker" in told(found, Level.OK)


def test_what_a_hung_control_process_would_know_cannot_be_told() -> None:
    found = reading(statuses=Statuses(lanes={"lane-0": lane()}, controls={"control": control(age_s=99)}))
    assert told(found, Level.UNKNOWN).keys() == {"labels ranker", "log"}
    assert health_of(found).exit_code == 2


@pytest.mark.parametrize(
    ("flow", "level"),
    [
        (LabelFlow(gaps=9, mean_gap=10, due_requests=201, last_ms=NOW - 1), Level.ATTENTION),
        (LabelFlow(gaps=9, mean_gap=10, due_requests=199, last_ms=NOW - 1), Level.OK),
        (LabelFlow(gaps=2, mean_gap=10, due_requests=999, last_ms=NOW - 1), Level.OK),
    ],
)
def test_labels_of_one_endpoint(flow: LabelFlow, level: Level) -> None:
    told_by = control(labels={"ranker": {"labelled": flow}})
    found = reading(statuses=Statuses(lanes={"lane-0": lane()}, controls={"control": told_by}))
    assert "labels ranker" in told(found, level)


def test_full_and_silent_stores_are_named() -> None:
    full = replace(ROOM, free_bytes=9 << 30)
    away = StoreStatus(name="state", kind="redis", where="redis://x", reason="it hangs")
    found = reading(stores=[full, away])
    assert told(found, Level.ATTENTION).keys() == {"store home", "store state"}


def test_a_freeze_is_shown_and_no_fault() -> None:
    freeze = Freeze(until_ms=NOW + 1, actor="jo", reason="holidays", since_ms=NOW - 1)
    found = reading(state=StateReading(endpoints={}, freeze=freeze))
    assert "by jo: holidays" in told(found, Level.OK)["freeze"]


def test_a_process_that_has_just_died_is_news_for_ten_minutes() -> None:
    def supervised(ago_s: float) -> Reading:
        child = ChildStatus(pid=2, started_ms=NOW - round(1000 * ago_s), restarts=1, last_exit=-9)
        supervisor = Report(SupervisorStatus(pid=3, time_ms=NOW, children={"lane-0": child}), 0.5, {})
        before = reading()
        processes = [replace(process, restarts=1, last_exit="signal SIGKILL") for process in before.processes]
        return replace(
            before, processes=processes, statuses=replace(before.statuses, supervisors={"supervisor": supervisor})
        )

    assert "signal SIGKILL" in told(supervised(60), Level.ATTENTION)["process lane-0"]
    assert told(supervised(700), Level.ATTENTION) == {}


def test_what_needs_a_person_comes_first() -> None:
    facts = health_of(reading(state=None, state_fault="x")).ordered()
    assert [fact.level for fact in facts] == sorted(
        (fact.level for fact in facts), key=["attention", "unknown", "ok"].index
    )
    assert isinstance(facts[0], Fact)
