"""Guards that need no labels: the candidate answers for what it does worse than stable, and for nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from serving.rollout.analysis import new_table
from serving.rollout.guards import PastScores
from serving.rollout.observed import ArmCounters, Observed
from serving.rollout.reconcile import Context, Decision, reconcile
from serving.rollout.spec import Rollout
from serving.rollout.state import Advance, Promote, RolloutState, StepBack, apply, begin

SPEC = Rollout.parse(
    "{endpoint: ranker, candidate: {bundle: new}, guards: {}, steps: [{weight: 5, bias_below: 0.1}, "
    "{weight: 100, bias_below: 0.1}], analysis: {block: 1s, interval: 1s, min_step_time: 1s, breach_window: 60s}}"
)
ENTERED = 1_000_000


def at_five() -> RolloutState:
    return apply(SPEC, begin(SPEC, 1, 0, 0), Promote(), ENTERED, 0)


def decide(
    observed: Observed, past: PastScores | None = None, spec: Rollout = SPEC, state: RolloutState | None = None
) -> Decision:
    now = ENTERED + 5_000
    given = replace(observed, since_ms=observed.since_ms or now)
    return reconcile(Context(spec, state or at_five(), given, now, now + 500, None, past=lambda: past))


def of(decision: Decision) -> tuple[str, str]:
    """(what was decided, the guard)."""
    guard = decision.evidence.get("guard", "") or decision.alarm
    return ("back" if isinstance(decision.event, StepBack) else "alarm" if decision.alarm else "goes on"), guard


SLOW = {"requests": 3000, "slow": 240, "p99_ms": 90.0}


@pytest.mark.parametrize(
    ("guard", "bad"),
    [
        ("error_rate_max", {"requests": 1000, "errors": 60}),
        ("deadline_miss_max", {"requests": 1000, "deadline_misses": 60}),
        ("degraded_max", {"requests": 1000, "degraded": 300}),
        ("p99_ms_max", SLOW),
    ],
)
def test_a_limit_is_broken_where_the_candidate_alone_is_over_it(guard: str, bad: dict[str, Any]) -> None:
    fine = ArmCounters(requests=5000, slow=4, p99_ms=20.0)
    assert of(decide(Observed(**bad, stable=fine))) == ("back", guard)
    assert of(decide(Observed(**bad))) == ("back", guard), "nobody to be compared with: the limit alone counts"
    both = Observed(**bad, stable=ArmCounters(**bad))
    assert of(decide(both)) == ("alarm", guard)
    assert "stable is no better" in decide(both).reason
    absolute = SPEC.model_copy(update={"guards": SPEC.guards.model_copy(update={"absolute": True})})
    assert of(decide(both, spec=absolute)) == ("back", guard)
    off = SPEC.model_copy(update={"guards": SPEC.guards.model_copy(update={guard: None})})
    assert of(decide(both, spec=off)) == ("goes on", "")


def test_a_few_slow_requests_prove_nothing() -> None:
    few = Observed(requests=22, slow=3, p99_ms=90.0, stable=ArmCounters(requests=400, slow=8, p99_ms=70.0))
    assert of(decide(few)) == ("goes on", "")
    assert "not shown to be worse than stable" in decide(few).reason, "and no step is entered on them"
    many = replace(few, slow=18)
    assert of(decide(many)) == ("back", "p99_ms_max")
    assert of(decide(replace(many, stable=ArmCounters()))) == ("goes on", ""), "22 requests alone"


def test_figures_from_before_the_entry_are_not_judged() -> None:
    assert of(decide(Observed(since_ms=ENTERED - 1, **SLOW))) == ("goes on", "")  # type: ignore[arg-type]


def test_a_candidate_that_still_fails_at_rest_goes_back_further() -> None:
    at_rest = replace(apply(SPEC, at_five(), StepBack(""), ENTERED, 0), step=1, weight=5.0)
    assert at_rest.phase == "degraded"
    bad = {"requests": 1000, "errors": 60}
    assert of(decide(Observed(**bad), state=at_rest)) == ("back", "error_rate_max")  # type: ignore[arg-type]
    assert of(decide(Observed(since_ms=ENTERED - 1, **bad), state=at_rest)) == ("goes on", "")  # type: ignore[arg-type]


def test_a_busy_machine_never_steps_the_candidate_back() -> None:
    rng, backs = np.random.default_rng(3), 0
    for _run in range(100):
        state = at_five()
        for minute in range(30):
            slow = [int(rng.binomial(n, 0.08)) for n in (2000, 40_000)]
            observed = Observed(
                since_ms=ENTERED + 60_000 * minute, requests=2000, slow=slow[0], p99_ms=90.0,
                stable=ArmCounters(requests=40_000, slow=slow[1], p99_ms=90.0),
            )  # fmt: skip
            now = observed.since_ms + 60_000
            backs += isinstance(reconcile(Context(SPEC, state, observed, now, now + 1, None)).event, StepBack)
    assert backs == 0


def scores(candidate: float, stable: float, **more: Any) -> Observed:
    """The last seconds: mean scores of both arms on 5,000 rows."""
    return Observed(scored_rows=5000, predicted_candidate=5000 * candidate, predicted_stable=5000 * stable, **more)


def test_a_ratio_is_held_against_that_of_the_mature_rows() -> None:
    past = PastScores(ratio=1.48, candidate=0.296, stable=0.2)
    assert of(decide(scores(0.296, 0.2), past)) == ("goes on", ""), "a teacher that is 32 % low"
    assert of(decide(scores(0.296 * 1.3, 0.2), past)) == ("back", "score_ratio")
    assert of(decide(scores(0.22, 0.2), past)) == ("back", "score_ratio"), (
        "within 0.8 and 1.25 of 1, and no more what it was"
    )
    both = scores(0.296 * 1.5, 0.2 * 1.5)
    assert of(decide(both, past)) == ("goes on", ""), "another time of day moves both"


def test_without_mature_rows_a_ratio_holds_and_never_steps_back() -> None:
    held = decide(scores(0.296, 0.2))
    assert held.event is None
    assert "no mature rows" in held.reason
    assert held.alarm == "", "every rollout with an arm that is off begins so"


@pytest.mark.parametrize("weight", [1.0, 10.0])
def test_a_stable_arm_that_jumps_holds_and_calls_an_operator(weight: float) -> None:
    past = PastScores(ratio=1.0, candidate=0.2, stable=0.2)
    jumped = scores(weight * 0.2, weight * 0.2 * 1.36, scored_weight=5000 * weight)
    decision = decide(jumped, past)
    assert of(decision) == ("alarm", "stable_scores")
    assert "stable has jumped" in decision.reason
    assert of(decide(scores(0.2 * 1.36, 0.2), past)) == ("back", "score_ratio")


def test_degraded_answers_of_stable_hold_the_shadow_step_too() -> None:
    shadow = begin(SPEC, 1, 0, 0)
    decision = decide(Observed(stable=ArmCounters(requests=400, degraded=400)), state=shadow)
    assert of(decision) == ("alarm", "degraded_max")
    decision = decide(Observed(shadow=ArmCounters(requests=400, degraded=400)), state=shadow)
    assert of(decision) == ("alarm", "degraded_max")
    assert "that the shadow lane scored" in decision.reason


def test_no_step_is_entered_while_serving_is_ill(monkeypatch: pytest.MonkeyPatch) -> None:
    due = Decision(Advance(), "the evidence is there", 0)
    monkeypatch.setattr("serving.rollout.reconcile._due", lambda *_: due)
    assert decide(Observed()).event == Advance()
    ill = decide(Observed(ill="lane-1 is gone"))
    assert (ill.event, ill.alarm) == (None, "serving")
    assert "lane-1 is gone" in ill.reason


def test_past_scores_are_those_of_mature_rows() -> None:
    table = new_table(SPEC)
    table.begin(0, 1)
    assert PastScores.of(table, 60) is None
