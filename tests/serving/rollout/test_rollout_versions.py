"""Versions that come while a rollout runs: a weight belongs to a model, and a breach goes back a version before a step."""

from __future__ import annotations

import pytest
from rollout_world import SPEC, World

from pipeline.errors import Conflict
from serving.rollout.observed import NewVersion, Observed
from serving.rollout.reconcile import Context, Decision, reconcile
from serving.rollout.routing import ArmSpec
from serving.rollout.state import (
    Abort,
    AdoptVersion,
    Advance,
    Pause,
    Phase,
    Resume,
    ReturnVersion,
    RolloutState,
    StepBack,
    apply,
    begin,
)
from serving.rollout.store import Who


def at_10() -> RolloutState:
    return apply(SPEC, begin(SPEC, 1, 0, 0), Advance(), 1, 0)


def decide(state: RolloutState, *versions: NewVersion, **seen: float) -> Decision:
    observed = Observed(since_ms=10, versions=versions, **seen)  # type: ignore[arg-type]
    return reconcile(Context(SPEC, state, observed, 20, 15, None))


def test_a_version_takes_the_weight_only_with_a_report_and_where_it_scores_like_what_serves() -> None:
    waits = decide(at_10(), NewVersion(2, 0.001, passed=False, publisher="eve@laptop"))
    assert waits.event is None
    assert "version 2 by eve@laptop waits: it has no passed gate report" in waits.reason
    like = decide(at_10(), NewVersion(2, 0.03, publisher="worker"), NewVersion(3, None, passed=False))
    assert like.event == AdoptVersion(2, reset_evidence=True, new_attempt=True)
    assert "published by worker" in like.reason
    assert apply(SPEC, at_10(), like.event, 30, 0).weight == 10
    for shift in (-0.3, None):
        other = decide(at_10(), NewVersion(2, shift))
        assert "begins in shadow" in other.reason
        assert isinstance(other.event, AdoptVersion)
        moved = apply(SPEC, at_10(), other.event, 30, 0)
        assert (moved.weight, moved.step, moved.phase, moved.evidence_version) == (0, 0, Phase.PROGRESSING, 2)
    full = apply(SPEC, at_10(), Advance(), 30, 0)
    assert apply(SPEC, full, AdoptVersion(2, True, True, restart=True), 40, 0).phase == Phase.PROGRESSING


def test_a_pause_freezes_versions() -> None:
    paused = apply(SPEC, at_10(), Pause(), 2, 0)
    decision = decide(paused, NewVersion(2, 0.0))
    assert decision.event is None
    assert "version 2 waits for the end of the pause" in decision.reason


def test_a_breach_goes_back_a_version_before_it_goes_back_a_step() -> None:
    adopted = apply(SPEC, at_10(), AdoptVersion(2), 5, 0)
    back = decide(adopted, requests=1000, errors=60)
    assert back.event == ReturnVersion(1, "error_rate_max")
    assert "version 2 came at this step, so version 1 serves again" in back.reason
    returned = apply(SPEC, adopted, back.event, 20, 7)
    assert (returned.weight, returned.candidate_version, returned.phase) == (10, 1, Phase.PROGRESSING)
    assert (returned.attempt, returned.evidence_from_ms, returned.evidence_version) == (2, 20, 1)
    again = Observed(since_ms=20, requests=1000, errors=60, versions=(NewVersion(2, 0.0),))
    assert reconcile(Context(SPEC, returned, again, 30, 25, None)).event == StepBack("error_rate_max")
    before = Observed(since_ms=19, requests=1000, errors=60, versions=(NewVersion(2, 0.0),))
    assert reconcile(Context(SPEC, returned, before, 30, 25, None)).event is None, (
        "of the other version, not adopted again"
    )
    newer = apply(SPEC, apply(SPEC, returned, AdoptVersion(3), 30, 7), ReturnVersion(1), 40, 7)
    assert (newer.returns, newer.refused_version) == (2, 3)
    assert apply(SPEC, newer, AdoptVersion(4), 50, 7).previous_version == 0, "a third bad one goes back a step"
    later = apply(SPEC, adopted, Advance(), 9, 0)
    assert decide(later, requests=1000, errors=60).event == StepBack("error_rate_max"), "it has passed a step"
    with pytest.raises(Conflict, match="did not serve before"):
        apply(SPEC, returned, ReturnVersion(2), 30, 0)


def test_a_state_of_an_older_version_goes_on() -> None:
    fresh = {"previous_version", "returns", "refused_version", "changed_ms", "score_ratio"}
    old = {name: value for name, value in at_10().to_json().items() if name not in fresh}
    assert RolloutState.from_json(old) == at_10()


def test_a_bad_version_hands_back_to_the_one_before_it_and_that_one_goes_on(world: World) -> None:
    world.controller.start(SPEC, "ada", "try it", version=1)
    while world.store.endpoint("ranker").weight != 10:
        world.seconds(1)
    world.observed = Observed(versions=(NewVersion(2, 0.004, publisher="worker"),))
    world.seconds(0.5)
    world.bias, world.version = 0.6, 2
    while (state := world.store.rollout("ranker").state).candidate_version == 2:
        world.seconds(0.5)
    assert (state.weight, state.stepped_back) == (10, 0)
    world.seconds(2)  # lanes still answer with the bad one for a moment
    world.bias, world.version = 0.0, 1
    world.seconds(60, until=Phase.WATCHING)
    assert world.store.rollout("ranker").state.candidate_version == 1
    last = world.store.audit("ranker")[-1]
    assert world.controller.explain(last.seq).same
    assert world.controller.explain(last.seq, rows=True).same, (
        "rows of the version that was left are no evidence there either"
    )
    verbs = [entry.verb for entry in world.store.audit("ranker")]
    assert verbs[-4:] == ["advance", "adopt_version", "return_version", "advance"]


def test_where_the_version_before_is_bad_too_the_step_goes_back(world: World) -> None:
    world.controller.start(SPEC, "ada", "try it", version=1)
    while world.store.endpoint("ranker").weight != 10:
        world.seconds(1)
    world.observed = Observed(versions=(NewVersion(2, 0.004),))
    world.bias = 0.6
    world.seconds(1)
    world.version = 2
    while world.store.rollout("ranker").state.candidate_version == 2:
        world.seconds(0.5)
    world.version = 1
    while world.store.endpoint("ranker").weight == 10:
        world.seconds(0.5)
    assert [entry.verb for entry in world.store.audit("ranker")][-3:] == [
        "adopt_version",
        "return_version",
        "step_back",
    ]


def unpinned(world: World) -> None:
    stored = world.store.endpoint("ranker")
    changed = stored.model_copy(update={"stable": ArmSpec(bundle="old")})
    world.store.put_endpoint(changed, Who("ada", "follow", 1), stored.resource_version)


def test_an_unpinned_stable_is_held_while_a_rollout_runs_and_let_go_after_it(world: World) -> None:
    unpinned(world)
    world.controller.start(SPEC, "ada", "try it", version=1)
    bad = NewVersion(2, 0.36, publisher="worker")
    world.observed = Observed(stable_version=1)
    world.seconds(1)
    assert (world.store.endpoint("ranker").stable_held, world.store.audit("ranker")[-1].verb) == (1, "hold_stable")
    world.observed = Observed(stable_version=1, stable_versions=(bad, NewVersion(3, 0.01, passed=False)))
    world.seconds(2)
    assert world.store.endpoint("ranker").stable_held == 1
    assert "version 3 of stable waits: it has no passed gate report" in world.status
    fit = NewVersion(4, 0.01, publisher="worker")
    world.observed = Observed(stable_version=1, stable_versions=(bad, fit))
    world.controller.command("ranker", Pause(), "ada", "lunch")
    world.seconds(1)
    assert world.store.endpoint("ranker").stable_held == 1, "a pause freezes both arms"
    world.controller.command("ranker", Resume(), "ada", "back")
    world.seconds(1)
    adopted = world.store.audit("ranker")[-1]
    assert (world.store.endpoint("ranker").stable_held, adopted.verb) == (4, "adopt_stable")
    assert "stable old serves version 4, published by worker, after 1" in adopted.reason
    world.controller.command("ranker", Abort(), "ada", "enough")
    world.observed = Observed(stable_version=4, stable_versions=(NewVersion(5, 0.36),))
    world.seconds(1)
    assert world.store.endpoint("ranker").stable_held == 4, "what waited does not get all traffic by an abort"
    world.observed = Observed(stable_version=4)
    world.seconds(1)
    assert (world.store.endpoint("ranker").stable_held, world.store.audit("ranker")[-1].verb) == (0, "release_stable")
