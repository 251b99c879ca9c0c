"""What a breach does: hold, step back or abort, by the guard; and how often one guard may step back."""

from __future__ import annotations

import pytest
from rollout_world import SPEC, World

from pipeline.errors import InvalidInput
from serving.rollout.observed import Observed
from serving.rollout.reconcile import Context, Decision, reconcile
from serving.rollout.spec import Rollout
from serving.rollout.state import Abort, Advance, Phase, Recover, RolloutState, StepBack, apply, begin

FILE = """
endpoint: ranker
candidate: {{bundle: new}}
steps: [{{weight: 10, bias_below: 0.3}}, {{weight: 50, bias_below: 0.3}}]
guards: {{actions: {actions}}}
on_breach: {on_breach}
"""


def spec_of(actions: str = "{}", on_breach: str = "step_back") -> Rollout:
    return Rollout.parse(FILE.format(actions=actions, on_breach=on_breach))


def decided(spec: Rollout, state: RolloutState, **seen: float) -> Decision:
    return reconcile(Context(spec, state, Observed(since_ms=1, requests=1000, **seen), 10, 0, None))  # type: ignore[arg-type]


def at_10(spec: Rollout) -> RolloutState:
    return apply(spec, begin(spec, 1, 0, 0), Advance(), 1, 0)


def test_each_guard_has_its_action() -> None:
    spec = spec_of("{p99_ms_max: hold, error_rate_max: abort}")
    assert decided(spec, at_10(spec), p99_ms=90.0).event is None
    assert decided(spec, at_10(spec), p99_ms=90.0, deadline_misses=90).event == StepBack("deadline_miss_max")
    worst = decided(spec, at_10(spec), p99_ms=90.0, deadline_misses=90, errors=90)
    assert (worst.event, worst.evidence["guard"]) == (Abort(), "error_rate_max")
    other = spec_of("{error_rate_max: step_back}", "abort")
    assert decided(other, at_10(other), errors=90).event == StepBack("error_rate_max")
    assert decided(other, at_10(other), deadline_misses=90).event == Abort()


def test_a_guard_that_holds_lets_nothing_in_and_nothing_end(tmp_path_factory: pytest.TempPathFactory) -> None:
    actions = {"bias": "hold", "served_bias": "hold", "logloss_delta_max": "hold"}
    guards = SPEC.guards.model_copy(update={"actions": actions, "auc_delta_min": None})
    world = World(tmp_path_factory.mktemp("holds"))
    world.controller.start(SPEC.model_copy(update={"guards": guards}), "ada", "try it", version=1)
    world.seconds(120, until=Phase.WATCHING)
    world.bias = 0.5
    world.seconds(30)
    stored = world.store.rollout("ranker")
    assert (stored.state.phase, stored.state.weight, stored.state.stepped_back) == (Phase.WATCHING, 100, 0)
    assert "held by served_bias: bias +0." in world.status
    world.log.close()
    world.store.close()


def test_the_last_step_back_for_a_guard_says_that_it_pauses() -> None:
    spec = spec_of()
    back = decided(spec, at_10(spec), errors=90)
    assert "pauses" not in back.reason
    state = apply(
        spec, apply(spec, apply(spec, at_10(spec), StepBack("error_rate_max"), 2, 0), Recover(), 3, 0), Advance(), 4, 0
    )
    again = reconcile(Context(spec, state, Observed(since_ms=5, requests=1000, errors=90), 10, 0, None))
    assert again.reason.endswith(
        "; step back 2 for error_rate_max: it pauses until an operator resumes it (step_backs_max)"
    )


@pytest.mark.parametrize("actions", ["{p99: hold}", "{shadow_coverage_min: hold}", "{bias: pause}"])
def test_unknown_guards_and_actions_are_refused_by_line(actions: str) -> None:
    with pytest.raises(
        InvalidInput, match=r"rollout:5: guards\.actions.*: .*(those that have: .*bias|'hold', 'step_back' or 'abort')"
    ):
        spec_of(actions)
