"""After a hand-over: keys that stay on stable against those that were moved, over restarts, retention and the switch."""

from __future__ import annotations

import pytest
from rollout_world import SPEC, World

from serving.rollout.figures import LongRunFigures
from serving.rollout.reconcile import Observed
from serving.rollout.spec import Rollout
from serving.rollout.state import Phase, Undo
from serving.rollout.store import Who
from serving.rollout.sums.outcome import ARMS, OutcomeSums

HALF: Rollout = SPEC.model_copy(
    update={"steps": (SPEC.steps[0], SPEC.steps[1].model_copy(update={"weight": 50.0})), "holdout": 0.1}
)
"""Ends at half of the keys, since the world deals requests by weight alone and knows no holdout."""


def effect(world: World) -> LongRunFigures:
    found = world.controller.snapshot("ranker").long_run
    assert found is not None
    return found


def completed(world: World) -> None:
    world.taste = 1.25
    world.controller.start(HALF, "ada", "try it", version=1)
    assert world.controller.snapshot("ranker").long_run is None
    world.seconds(180, until=Phase.COMPLETED)


def test_the_effect_is_counted_after_the_end_and_its_interval_narrows(world: World) -> None:
    completed(world)
    early = effect(world)
    world.seconds(30)
    late = effect(world)
    assert (late.weight, late.holdout, late.until_ms) == (50, 0.1, None)
    assert sum(late.requests.values()) > sum(early.requests.values()) + 250
    before, now = early.outcome["difference"], late.outcome["difference"]
    assert before.low is not None
    assert before.high is not None
    assert now.low is not None
    assert now.high is not None
    assert now.high - now.low < before.high - before.low
    assert now.low < 0.25 * 0.3 * 20 < now.high
    assert now.low > 0, "a quarter more clicks is seen"


def test_a_restart_after_retention_loses_a_minute_at_most(world: World) -> None:
    completed(world)
    world.seconds(61)  # stored once a minute
    counted = effect(world)
    assert world.store.audit("ranker")[-1].verb == "complete", "measuring is no change"
    assert world.status, "what it waited for is still told"
    world.clock.now += 1_000_000
    world.log.retain(world.clock.now)
    world.controller = world.new_controller()
    kept = effect(world)
    assert 0 <= sum(counted.requests.values()) - sum(kept.requests.values()) <= 600, "ten requests a second"
    assert sum(kept.requests.values()) > 400
    assert kept.since_ms == counted.since_ms
    world.seconds(5)
    assert sum(effect(world).requests.values()) > sum(kept.requests.values())


@pytest.mark.parametrize("how", ["undone", "killed", "set by hand"])
def test_it_ends_when_keys_are_dealt_otherwise(world: World, how: str) -> None:
    completed(world)
    if how == "undone":
        world.controller.command("ranker", Undo(), "ada", "back")
    elif how == "killed":
        world.observed = Observed(killed="complaints")
    else:
        endpoint = world.store.endpoint("ranker")
        world.store.put_endpoint(endpoint.model_copy(update={"weight": 10.0}), Who("ada", "try", 1))
    world.seconds(1)
    ended = effect(world)
    assert ended.until_ms is not None
    world.observed = Observed()
    world.seconds(10)
    assert effect(world) == ended
    world.controller = world.new_controller()
    assert effect(world) == ended, "the end is stored at once"


def test_a_late_label_changes_the_outcome_and_not_the_requests() -> None:
    sums = OutcomeSums()
    for key in range(1, 400):
        sums.add(key * 7919, ARMS[key % 2], 1, float(key % 3))
    before = sums.requests("stable"), sums.outcome("stable")
    sums.add(2 * 7919, "stable", 0, 1.0)
    assert (sums.requests("stable"), sums.outcome("stable")) == (before[0], before[1] + 1)


def test_few_keys_have_no_limits() -> None:
    sums = OutcomeSums()
    for request in range(10_000):
        sums.add(request % 20, ARMS[request % 2], 1, float(request % 5 == 0))
    assert sums.difference(0.025).low == -float("inf"), "ten keys an arm, however many requests"
    assert OutcomeSums().difference(0.025).low == -float("inf")
