"""Why rows with labels do not come: one reason, and one code, for each cause."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rollout_world import SPEC, World

from serving.rollout.label_path import Arrived, LabelPath
from serving.rollout.observed import Observed
from serving.rollout.status.codes import Code
from serving.runtime.status import LabelArrivals, LabelStatus

NOW_MS = 1_700_000_000_000
WINDOW_S, LIMIT_S = 10.0, 20.0


def arrived(entries: int = 400, late: int = 0, bucket: int = 10, ago_s: float = 1.0) -> LabelArrivals:
    return LabelArrivals(entries=entries, late=late, counts={bucket: entries}, last_ms=NOW_MS - round(1000 * ago_s))


NEVER = LabelArrivals()


@pytest.mark.parametrize(
    ("lanes", "requests", "code", "words"),
    [
        ([LabelStatus(shown=arrived(), labelled=arrived(late=400, bucket=17))], 600, Code.LABELS_AFTER_WINDOW,
         ("labels come late: 100% of the last 400", "window of 10 s", "delay from the prediction is 22 s")),
        ([LabelStatus(shown=arrived(late=300), labelled=NEVER)], 600, Code.LABELS_AFTER_WINDOW, ("exposures come late: 75%",)),
        ([LabelStatus(labelled=arrived(entries=3, late=3))], 600, Code.LABELS_AFTER_WINDOW, ("100% of the last 3",)),
        ([LabelStatus()], 600, Code.LABELS_NOT_SENT, ("600 requests", "since the lanes began", "test calls")),
        ([LabelStatus(shown=arrived(ago_s=500), labelled=arrived(late=400, ago_s=500))], 600, Code.LABELS_NOT_SENT,
         ("came since 2023-11-14 22:05:00 UTC",)),
        ([LabelStatus(told_ms=NOW_MS - 1000)], 0, Code.LABELS_NOT_SENT, ("no exposure and no label",)),
        ([LabelStatus(refused=70), LabelStatus(refused=50)], 600, Code.LABELS_REFUSED, ("120 entries of feedback",)),
        ([LabelStatus()], 0, Code.FEW_REQUESTS, ("no request was answered",)),
        ([LabelStatus(shown=arrived(60), labelled=arrived(60))], 1, Code.FEW_REQUESTS, ("1 requests", "seldom")),
        ([LabelStatus(shown=arrived(), labelled=arrived(late=30))], 600, Code.JOIN_BEHIND, ("the join gives out no new rows",)),
    ],
)  # fmt: skip
def test_each_cause_has_its_reason(lanes: list[LabelStatus], requests: int, code: Code, words: tuple[str, ...]) -> None:
    found = LabelPath.of(lanes, requests).why(NOW_MS, WINDOW_S, LIMIT_S)
    assert found is not None
    assert found[0] is code
    assert all(word in found[1] for word in words), found[1]


def test_without_reports_of_lanes_nothing_is_said() -> None:
    assert LabelPath.of([], 0).why(NOW_MS, WINDOW_S, LIMIT_S) is None


def test_lanes_add_up() -> None:
    slow, fast = arrived(100, late=100, bucket=20), arrived(300, bucket=5)
    found = Arrived.of([slow, fast])
    assert (found.entries, found.late_fraction) == (400, 0.25)
    assert found.median_s is not None
    assert found.slow_s is not None
    assert found.median_s < 2 < 40 < found.slow_s
    assert LabelPath(labelled=found).note(WINDOW_S).startswith("labels come late: 25%")
    assert LabelPath(labelled=replace(found, late=4)).note(WINDOW_S) == ""


def test_a_rollout_says_which_cause_it_waits_for(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.controller.start(SPEC, "ada", "go", version=1)
    world.seconds(6)
    late = LabelPath(True, 600, labelled=Arrived(400, 40, 22.0, 25.0, world.clock.now))
    world.observed = Observed(labels=late)
    world.seconds(3)
    assert "10% of the last 400" in world.status
    world.seconds(100, labels=False)
    said = world.store.rollout("ranker").status
    assert said["code"] == Code.LABELS_NOT_SENT, said
    assert "no exposure and no label came since" in said["reason"]
    world.observed = Observed()
    world.seconds(3, labels=False)
    assert world.store.rollout("ranker").status["code"] == Code.LABELS_STALE
