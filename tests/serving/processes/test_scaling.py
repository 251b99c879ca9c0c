from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from serving.processes.scaling import Load, LoadMeter, wanted_replicas
from serving.runtime.status import EngineStatus, LaneStatus

RULE: dict[str, Any] = {"lowest": 1, "highest": 8, "utilisation": 0.5, "queue_wait": 0.005}
LOADS = st.lists(st.builds(Load, st.floats(0, 1), st.floats(0, 1)), max_size=8)


def status(time_ms: int, worked: float, waited: float, accepted: int) -> LaneStatus:
    engine = EngineStatus(worked_seconds=worked, waited_seconds=waited, accepted=accepted)
    return LaneStatus(time_ms=time_ms, engine=engine)


def test_as_many_replicas_as_bring_the_work_to_its_share() -> None:
    assert wanted_replicas([Load(0.5, 0.0)] * 2, running=2, **RULE) == 2
    assert wanted_replicas([Load(0.9, 0.0), Load(0.7, 0.0)], running=2, **RULE) == 4
    assert wanted_replicas([Load(0.1, 0.0)] * 4, running=4, **RULE) == 1


def test_requests_that_wait_bring_one_more() -> None:
    assert wanted_replicas([Load(0.1, 0.006)], running=1, **RULE) == 2
    assert wanted_replicas([Load(0.1, 0.004)], running=1, **RULE) == 1


def test_who_is_silent_counts_as_the_others_and_silence_changes_nothing() -> None:
    assert wanted_replicas([Load(0.9, 0.0)], running=2, **RULE) == 4
    assert wanted_replicas([], running=3, **RULE) == 3


@given(LOADS, st.integers(0, 20), st.integers(1, 4), st.integers(0, 6))
def test_the_bounds_hold(loads: list[Load], running: int, lowest: int, more: int) -> None:
    wanted = wanted_replicas(
        loads, running=running, lowest=lowest, highest=lowest + more, utilisation=0.5, queue_wait=0.005
    )
    assert lowest <= wanted <= lowest + more


def test_load_is_what_happened_between_two_readings() -> None:
    meter = LoadMeter(workers=2)
    assert meter.read({"lane-0": status(1000, 5.0, 1.0, 100), "lane-1": status(1000, 5.0, 1.0, 100)}) == Load(0.0, 0.0)
    load = meter.read({"lane-0": status(3000, 6.0, 1.5, 150), "lane-1": status(3000, 6.0, 1.0, 150)})
    assert load == Load(utilisation=0.5, queue_wait=0.005)


def test_a_restarted_lane_counts_anew() -> None:
    meter = LoadMeter(workers=1)
    meter.read({"lane-0": status(1000, 5.0, 1.0, 100)})
    assert meter.read({"lane-0": status(2000, 0.1, 0.0, 3)}) == Load(0.0, 0.0)
    assert meter.read({"lane-0": status(3000, 0.6, 0.0, 9)}) == Load(0.5, 0.0)
