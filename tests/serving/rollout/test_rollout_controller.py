"""The controller over a real traffic log: evidence moves traffic, silence does not, and a restart changes nothing."""

from __future__ import annotations

import pytest
from rollout_world import IDS, SPEC, World

from pipeline.errors import Conflict, InvalidInput, StaleVersion
from pipeline.traffic.local.log import LocalTrafficLog
from serving.rollout.observed import NewVersion, Observed
from serving.rollout.routing import ArmSpec, Endpoint
from serving.rollout.state import Abort, Pause, Phase, Promote, Resume, SetWeight
from serving.rollout.store import Who


def test_a_good_candidate_reaches_the_end_on_evidence_alone(world: World) -> None:
    world.seconds(3)
    world.controller.start(SPEC, "ada", "try it", version=1)
    world.seconds(4)
    assert "min_step_time" in world.status
    world.seconds(120, until=Phase.WATCHING)
    rollout = world.store.rollout("ranker")
    assert rollout.state.steps_on_evidence() == {0, 1, 2}
    assert world.store.endpoint("ranker").weight == 100
    world.seconds(40, until=Phase.COMPLETED)
    audit = world.store.audit("ranker")
    assert [entry.verb for entry in audit] == ["set_endpoint", "start", "advance", "advance", "complete"]
    seen = audit[2].evidence
    assert seen["bias_low"] > -0.3
    assert seen["bias_high"] < 0.3
    assert seen["clicks"] > 100
    snapshot = world.controller.snapshot("ranker")
    assert [phase.weight for phase in snapshot.phases] == [0, 10, 100]
    assert snapshot.phases[1].served_by_candidate > 0
    assert all(phase.rows for phase in snapshot.phases)
    assert any(phase.candidate.low is not None for phase in snapshot.phases), "a stay of enough blocks has limits"


def test_the_same_weight_several_times_within_a_millisecond_is_several_stays(world: World) -> None:
    world.controller.start(SPEC, "ada", "try it", version=1)
    for number in range(2, 6):
        world.controller.command("ranker", SetWeight(10), "ada", "again")
        world.controller.step()
        assert len(world.controller.snapshot("ranker").phases) == number
        assert len(world.store.rollout("ranker").state.marks) == number


def test_a_biased_candidate_never_answers(world: World) -> None:
    world.bias = 0.9
    world.controller.start(SPEC, "ada", "try it", version=1)
    world.seconds(40)
    state = world.store.rollout("ranker").state
    assert world.store.endpoint("ranker").weight == 0
    assert (state.stepped_back, len(state.marks)) == (0, 1), "there is nothing below the shadow step"
    assert world.status.startswith("waits for the next version, this one cannot pass bias: bias +0.")
    world.bias, world.version = 0.0, 2
    world.observed = Observed(versions=(NewVersion(2, -0.3),))
    world.seconds(40, until=Phase.WATCHING)


def test_a_candidate_that_turns_bad_is_stepped_back(world: World) -> None:
    world.controller.start(SPEC, "ada", "try it", version=1)
    world.seconds(120, until=Phase.WATCHING)
    world.bias = 0.9
    world.seconds(15, until=Phase.DEGRADED)
    back = world.store.audit("ranker")[-1]
    assert (back.verb, back.actor) == ("step_back", "controller")
    assert back.evidence["guard"] in ("bias", "served_bias", "logloss_delta_max")
    assert world.store.endpoint("ranker").weight == 10


def test_a_start_tells_how_long_the_evidence_will_take(world: World) -> None:
    started = world.controller.start(SPEC, "ada", "try it", version=1)
    assert "a bias within 0.2 needs about" in started.status["reason"]
    assert "ranker had no labels in the last day" in started.status["reason"]
    world.controller.command("ranker", Abort(), "ada", "again")
    world.seconds(10)
    days = SPEC.model_copy(update={"analysis": SPEC.analysis.model_copy(update={"evidence_span": 86400.0})})
    said = world.controller.start(days, "ada", "try it", version=1).status["reason"]
    # 10 requests of 20 rows a second, three of ten clicked.
    hourly = float(said.split("last day (")[1].split(" clicks")[0].replace(",", ""))
    assert 0.8 < hourly / (10 * 20 * 0.3 * 3600) < 1.2
    assert said.startswith("its evidence takes about 24.0 h")
    assert said.endswith("whole spans of 24 h (evidence_span)")


def test_a_drift_is_told_also_after_completion(world: World) -> None:
    world.controller.start(SPEC, "ada", "try it", version=1)
    world.seconds(160, until=Phase.COMPLETED)
    world.seconds(10)
    assert world.store.rollout("ranker").status["alarm"] == ""
    world.bias = 0.9
    world.controller = world.new_controller()  # it goes on after a restart too
    world.seconds(20)
    stored = world.store.rollout("ranker")
    assert (stored.state.phase, stored.state.weight) == (Phase.COMPLETED, 100)
    assert (stored.status["alarm"], stored.status["code"]) == ("drift", "drift")
    assert "drift: bias +0." in world.status


def test_a_rollout_has_the_window_of_its_log(world: World) -> None:
    other = SPEC.model_copy(update={"analysis": SPEC.analysis.model_copy(update={"attribution_window": 3.0})})
    with pytest.raises(
        InvalidInput, match=r"of the rollout is 3 s, traffic.attribution_window of the log is 1 s"
    ) as caught:
        world.controller.start(other, "ada", "try it", version=1)
    assert caught.value.field == "analysis.attribution_window"
    unsaid = SPEC.model_copy(update={"analysis": SPEC.analysis.model_copy(update={"attribution_window": None})})
    started = world.controller.start(unsaid, "ada", "try it", version=1)
    assert started.spec.analysis.attribution_window == 1.0


def test_a_window_changed_under_a_rollout_holds_it_and_is_named_but_a_breach_steps_back(world: World) -> None:
    world.controller.start(SPEC, "ada", "try it", version=1)
    while world.store.endpoint("ranker").weight != 10:
        world.seconds(1)
    world.log.close()
    world.log = LocalTrafficLog(world.log_path, IDS, attribution_window_ms=2000)
    world.controller = world.new_controller()
    world.seconds(30)
    assert world.store.endpoint("ranker").weight == 10
    assert "of the rollout is 1 s, traffic.attribution_window of the log is 2 s: set it back" in world.status
    world.bias = 0.9
    world.seconds(20, until=Phase.DEGRADED)


def test_silence_never_moves_anything(world: World) -> None:
    world.controller.start(SPEC, "ada", "try it", version=1)
    world.seconds(2)
    world.seconds(60, labels=False)
    assert "stale" in world.status or "missing" in world.status
    assert len(world.store.rollout("ranker").state.marks) == 1
    world.clock.now -= 3_600_000
    world.controller.step()
    world.clock.now += 3 * 3_600_000
    world.controller.step()
    world.controller.step()
    assert len(world.store.rollout("ranker").state.marks) == 1
    assert world.store.endpoint("ranker").weight == 0


@pytest.mark.parametrize("silence", ["no traffic", "no labels", "clock jumps"])
def test_silence_at_a_weight_neither_promotes_nor_rolls_back(world: World, silence: str) -> None:
    world.controller.start(SPEC, "ada", "try it", version=1)
    while world.store.endpoint("ranker").weight != 10:
        world.seconds(1)
    world.seconds(1)
    before = world.store.rollout("ranker").state
    if silence == "no labels":
        world.seconds(60, labels=False)
    for _ in range(120):
        world.clock.now += 7_200_000 if silence == "clock jumps" else 500
        world.log.join(world.clock.now)
        world.controller.step()
    assert world.store.rollout("ranker").state == before
    assert world.store.endpoint("ranker").weight == 10
    assert "stale" in world.status or "missing" in world.status
    next_look = world.store.rollout("ranker").status["next_look_ms"]
    assert next_look > world.clock.now - 1000, "it goes on looking"


def test_without_new_versions_a_rollout_goes_on_with_what_serves(world: World) -> None:
    world.controller.start(SPEC, "ada", "try it", version=1)
    world.observed = Observed(versions=())  # a worker that stands still publishes nothing
    world.seconds(120, until=Phase.WATCHING)
    state = world.store.rollout("ranker").state
    assert (state.candidate_version, state.attempt) == (1, 1)


def test_each_endpoint_has_a_rollout_of_its_own(world: World) -> None:
    world.store.put_endpoint(Endpoint(name="shop", stable=ArmSpec(bundle="old", version=1)), Who("ada", "set", 1))
    world.controller.start(SPEC.model_copy(update={"endpoint": "shop"}), "ada", "too", version=1)
    world.controller.start(SPEC, "ada", "try it", version=1)
    world.seconds(120, until=Phase.WATCHING)
    assert world.store.endpoint("ranker").weight == 100
    assert world.store.endpoint("shop").weight == 0
    assert world.store.rollout("shop").status["reason"] == "no mature labelled rows yet"
    world.controller.command("shop", Promote(), "ada", "push", force=True)
    assert (world.store.endpoint("shop").weight, world.store.endpoint("ranker").weight) == (10, 100)


def test_without_the_shadows_scores_nothing_moves(world: World) -> None:
    world.controller.start(SPEC, "ada", "try it", version=1)
    world.seconds(15, shadow=False)
    assert "shadow_coverage" in world.status
    assert world.store.endpoint("ranker").weight == 0


def test_a_new_controller_goes_on_where_the_old_one_was(world: World) -> None:
    world.controller.start(SPEC, "ada", "try it", version=1)
    world.seconds(12)
    before = world.controller.snapshot("ranker")
    world.controller = world.new_controller()
    after = world.controller.snapshot("ranker")
    assert (after.seq, after.exposed, after.paired, after.newest_ms) == (
        before.seq,
        before.exposed,
        before.paired,
        before.newest_ms,
    )
    for old, new in zip(before.phases, after.phases, strict=True):
        assert (new.rows, new.labels, new.served_by_candidate) == (old.rows, old.labels, old.served_by_candidate)
        assert new.candidate.bias == pytest.approx(old.candidate.bias)
        assert new.candidate.low == pytest.approx(old.candidate.low)
        assert new.candidate.auc == pytest.approx(old.candidate.auc)
    world.seconds(120, until=Phase.WATCHING)
    again = world.new_controller().snapshot("ranker")
    assert [phase.weight for phase in again.phases] == [0, 10, 100]
    assert again.phases[0].rows == world.controller.snapshot("ranker").phases[0].rows


def test_operators_hold_and_push(world: World) -> None:
    world.controller.start(SPEC, "ada", "try it", version=1)
    with pytest.raises(Conflict, match="active rollout"):
        world.controller.start(SPEC, "bob", "me too", version=1)
    paused = world.controller.command("ranker", Pause(), "ada", "lunch")
    world.seconds(30)
    assert world.store.endpoint("ranker").weight == 0
    assert "paused by ada at 1970-01-01 00:16:40 UTC: lunch" in world.status
    world.controller.command("ranker", Resume(), "ada", "back", expected=paused.resource_version)
    with pytest.raises(StaleVersion):
        world.controller.command("ranker", Promote(), "ada", "push", force=True, expected=paused.resource_version)
    with pytest.raises(Conflict, match=r"not met for weight 100: .*To promote all the same: --force"):
        world.controller.command("ranker", Promote(full=True), "ada", "push")
    pushed = world.controller.command("ranker", Promote(full=True), "ada", "push", force=True)
    assert world.store.audit("ranker")[-1].evidence == {"unmet": ["step 1 (weight 10) is skipped"]}
    assert pushed.state.cause is not None
    assert pushed.state.cause.unmet == ("step 1 (weight 10) is skipped",)
    assert world.store.rollout("ranker").state == pushed.state, "stored and read again"
    assert "not met was: " in world.controller.explain(world.store.audit("ranker")[-1].seq).note
    assert world.store.endpoint("ranker").weight == 100
    assert pushed.state.steps_on_evidence() == {0}
    assert [e.reason for e in world.store.audit("ranker")][-3:] == ["lunch", "back", "push"]
    for event, actor in ((Pause(), "cleo"), (SetWeight(25), "dan")):  # at every weight
        world.controller.command("ranker", event, actor, "look")
        world.seconds(1)
        assert f"paused by {actor} at " in world.status
    world.controller.command("ranker", Abort(), "eve", "enough")
    assert str(world.store.rollout("ranker").state.cause).endswith(": enough")


def test_a_promotion_whose_evidence_is_there_passes_nothing(world: World) -> None:
    world.controller.start(SPEC, "ada", "try it", version=1)
    world.controller.command("ranker", Pause(), "ada", "lunch")
    world.seconds(30)
    world.controller.command("ranker", Promote(), "ada", "on")
    assert (world.store.endpoint("ranker").weight, world.store.audit("ranker")[-1].evidence) == (10, {})


def test_a_killed_endpoint_aborts_its_rollout(world: World) -> None:
    world.controller.start(SPEC, "ada", "try it", version=1)
    world.controller.command("ranker", Promote(), "ada", "push", force=True)
    world.observed = Observed(killed="complaints")
    world.seconds(1)
    state = world.store.rollout("ranker").state
    assert (state.phase, world.store.endpoint("ranker").weight) == (Phase.ABORTED, 0)
    assert world.store.audit("ranker")[-1].reason == "killed: complaints"


def test_counters_step_back_without_labels(world: World) -> None:
    for made in (
        {"requests": 1000, "errors": 60},
        {"requests": 1000, "deadline_misses": 60},
        {"requests": 5000, "p99_ms": 90.0, "slow": 400},
    ):
        world.observed = Observed()
        if not world.store.rollouts(active=True):
            world.controller.start(SPEC, "ada", "try it", version=1)
        world.controller.command("ranker", Promote(), "ada", "push", force=True)
        world.observed = Observed(since_ms=world.clock.now, **made)  # type: ignore[arg-type]
        world.controller.step()
        assert world.store.audit("ranker")[-1].verb == "step_back", made
        assert world.store.endpoint("ranker").weight == 0


def test_a_score_ratio_steps_back_once_there_are_mature_rows_to_compare_with(world: World) -> None:
    world.controller.start(SPEC, "ada", "try it", version=1)
    world.controller.command("ranker", Promote(), "ada", "push", force=True)
    turned = {"scored_rows": 5000, "predicted_stable": 1500.0, "predicted_candidate": 1890.0}
    world.observed = Observed(since_ms=world.clock.now, **turned)  # type: ignore[arg-type]
    world.seconds(0.5)
    world.controller.command("ranker", Promote(full=True), "ada", "push", force=True)
    assert "score_ratio 1.260 is outside" in world.status
    world.observed = Observed()
    world.seconds(6)
    world.observed = Observed(since_ms=world.clock.now, **turned)  # type: ignore[arg-type]
    world.seconds(0.5)
    back = world.store.audit("ranker")[-1]
    assert (back.verb, back.evidence["guard"]) == ("step_back", "score_ratio")


def test_figures_from_before_the_step_are_not_judged(world: World) -> None:
    world.controller.start(SPEC, "ada", "try it", version=1)
    world.controller.command("ranker", Promote(), "ada", "push", force=True)
    world.observed = Observed(since_ms=world.clock.now - 1, requests=1000, errors=1000)
    world.controller.step()
    assert world.store.endpoint("ranker").weight == 10


def test_versions_are_adopted_and_a_shift_starts_evidence_anew(world: World) -> None:
    world.controller.start(SPEC, "ada", "try it", version=1)
    world.seconds(10)
    world.observed = Observed(versions=(NewVersion(1, 0.5), NewVersion(2, 0.004), NewVersion(3, 0.008)))
    world.version = 3
    world.seconds(1)
    kept = world.store.rollout("ranker").state
    assert (kept.candidate_version, kept.attempt) == (3, 1)
    assert world.store.endpoint("ranker").candidate == ArmSpec(bundle="new", version=3)
    world.version = 4
    world.observed = Observed(versions=(NewVersion(4, -0.02),))
    world.seconds(1)
    anew = world.store.rollout("ranker").state
    assert (anew.candidate_version, anew.evidence_version, anew.attempt) == (4, 4, 2)
    assert anew.evidence_from_ms > kept.evidence_from_ms
    world.seconds(120, until=Phase.WATCHING)


def test_a_candidate_whose_scores_are_not_finite_moves_nothing_and_ends_no_pass(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.bias = float("nan")
    world.controller.start(SPEC, "ada", "try it", version=1)
    world.seconds(20)
    assert "shadow_coverage" in world.status
    figures = world.controller.snapshot("ranker")
    assert figures.not_finite == figures.exposed > 0
    assert figures.paired == 0
    world.bias = 0.0
    world.seconds(120, until=Phase.WATCHING)
    assert not [record for record in caplog.records if record.exc_info]
