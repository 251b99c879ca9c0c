"""Slices of the traffic: guards on named slices, figures of all, drift; and outcome per request of each arm."""

from __future__ import annotations

import numpy as np
import pytest
from rollout_world import SCHEMA, SPEC, World

from pipeline.errors import InvalidInput
from pipeline.features import Features, IdPart, NumberPart
from pipeline.hashing import hash_value
from serving.rollout.spec import Rollout, SliceGuard
from serving.rollout.state import Phase
from serving.rollout.sums.slices import MAX_VALUES, OTHER_INDEX, Slices


def guarded(*segments: SliceGuard, outcome: float | None = None) -> Rollout:
    """The rollout of the world with these guards, bias of all traffic left free to be wrong."""
    guards = SPEC.guards.model_copy(update={"segments": segments, "outcome_delta_min": outcome})
    looked = SPEC.analysis.model_copy(update={"segments": ("tab", "price")})
    return SPEC.model_copy(update={"guards": guards, "analysis": looked})


def test_a_candidate_that_is_worse_for_a_named_segment_never_answers(world: World) -> None:
    world.bias_of = {"search": 0.5}
    guard = SliceGuard(field="tab", values=("search",), logloss_delta_max=0.01, bias_below=0.2)
    world.controller.start(guarded(guard), "ada", "try it", version=1)
    world.seconds(60)
    assert world.store.endpoint("ranker").weight == 0
    assert world.status.startswith("waits for the next version, this one cannot pass segments: segment tab=search: ")


def test_the_same_candidate_passes_where_nobody_asks_for_that_segment(world: World) -> None:
    world.bias_of = {"search": 0.5}
    guard = SliceGuard(field="tab", values=("home",), logloss_delta_max=0.05)
    world.controller.start(guarded(guard), "ada", "try it", version=1)
    world.seconds(180, until=Phase.WATCHING)


def test_a_segment_without_rows_holds_and_says_so(world: World) -> None:
    guard = SliceGuard(field="tab", values=(None,), logloss_delta_max=0.05)
    world.controller.start(guarded(guard), "ada", "try it", version=1)
    world.seconds(60)
    assert world.status == "segment tab=: 0 of the 50 blocks that any evidence needs"
    assert len(world.store.rollout("ranker").state.marks) == 1


def test_figures_of_all_segments_add_up(world: World) -> None:
    world.bias_of = {"search": 0.3}
    guard = SliceGuard(field="tab", values=("home",), logloss_delta_max=0.05)
    world.controller.start(guarded(guard), "ada", "try it", version=1)
    world.seconds(20)
    world.controller.snapshot("ranker")
    snapshot = world.controller.snapshot("ranker")
    rows = sum(phase.rows for phase in snapshot.phases)
    by_name = {part.segment: part for part in snapshot.segments}
    unnamed = f"tab=#{hash_value('tab', 'search') & (1 << 64) - 1:016x}"
    assert set(by_name) == {"tab=home", unnamed, "price is 0", "price missing", "price in [2, 4)", "price in [4, 8)"}
    for field in ("tab", "price"):
        parts = [part for part in snapshot.segments if part.field == field]
        # The newest block is still open, and figures are of closed ones.
        assert rows - 200 <= sum(part.rows for part in parts) <= rows
        assert sum(part.share for part in parts) == pytest.approx(1.0)
    searched, home = by_name[unnamed].candidate, by_name["tab=home"].candidate
    assert searched.low is not None
    assert searched.high is not None
    assert searched.low < 0.3 < searched.high
    assert home.value is not None
    assert abs(home.value) < 0.1


def test_drift_of_a_field_is_seen(world: World) -> None:
    world.controller.start(guarded(), "ada", "try it", version=1)
    world.seconds(180, until=Phase.WATCHING)
    world.seconds(5)
    psi = world.controller.snapshot("ranker").psi
    assert set(psi) == {"tab", "price"}
    assert all(value is not None and 0 <= value < 0.1 for value in psi.values())


def test_outcome_per_request_is_measured_on_what_each_arm_answered(world: World) -> None:
    world.taste = 1.25
    spec = guarded()
    steps = (spec.steps[0], spec.steps[1].model_copy(update={"weight": 50.0}))
    world.controller.start(spec.model_copy(update={"steps": steps}), "ada", "try it", version=1)
    world.seconds(180, until=Phase.COMPLETED)
    phase = world.controller.snapshot("ranker").phases[1]
    assert phase.weight == 50
    assert phase.requests["candidate"] > 0
    outcome = phase.outcome
    assert outcome["stable"].value == pytest.approx(0.3 * 20, rel=0.1)
    assert outcome["candidate"].value == pytest.approx(1.25 * 0.3 * 20, rel=0.15)
    apart = outcome["difference"]
    assert apart.low is not None
    assert apart.high is not None
    assert apart.low < 0.25 * 0.3 * 20 < apart.high


def test_a_candidate_that_is_clicked_less_is_stepped_back(world: World) -> None:
    world.taste = 0.75
    spec = guarded(outcome=-0.05)
    steps = tuple(step.model_copy(update={"bias_below": 0.6} if step.weight else {}) for step in spec.steps)
    spec = spec.model_copy(update={"steps": (steps[0], steps[1].model_copy(update={"weight": 50.0}))})
    world.controller.start(spec, "ada", "try it", version=1)
    world.seconds(120, until=Phase.DEGRADED)
    assert world.store.audit("ranker")[-1].evidence["guard"] == "outcome_delta_min"


def test_parts_of_a_field_are_bounded() -> None:
    segments = Slices(SCHEMA, ["tab"], [("tab", 7)])
    codes = segments.bounded("tab", np.arange(1, 1000, dtype=np.int64))
    assert len(set(codes.tolist())) == MAX_VALUES
    assert (codes == OTHER_INDEX).sum() == 999 - (MAX_VALUES - 1)
    named = np.array([hash_value("tab", 7)])
    assert segments.bounded("tab", named).tolist() == named.tolist(), "what is named is followed whatever comes first"
    assert segments.name(("tab", int(named[0]))) == "tab=7"


def test_numbers_fall_into_powers_of_two() -> None:
    segments = Slices(SCHEMA, ["price"])
    values = np.array([[0.0], [1.0], [1.99], [2.0], [-3.0], [np.nan], [0.3]], np.float32)
    features = Features(
        7, (IdPart(np.zeros(1, np.int32), np.ones((1, 1), np.int64)),), (NumberPart(np.zeros(1, np.int32), values),)
    )
    codes = segments.of(features, np.arange(7, dtype=np.int32))["price"]
    assert [segments.name(("price", code)) for code in codes.tolist()] == [
        "price is 0", "price in [1, 2)", "price in [1, 2)", "price in [2, 4)", "price in (-4, -2]", "price missing",
        "price in [0.25, 0.5)",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "named", "reason"),
    [
        (["colour"], [], "'colour' is no id and no number of the arms' inputs; there are tab, price"),
        (["tags"], [], "'tags' is no id"),
        ([], [("price", 3)], "'price' is a number"),
    ],
)
def test_fields_that_have_no_parts_are_refused(fields: list[str], named: list[tuple[str, int]], reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        Slices(SCHEMA, fields, named)
