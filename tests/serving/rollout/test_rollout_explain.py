"""Explanations of verdicts: the same figures computed again from sums or rows, and the reason where they cannot be."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from rollout_world import SPEC, World

from pipeline.errors import NotFound
from serving.rollout.reconcile import Observed
from serving.rollout.spec import SliceGuard
from serving.rollout.state import Pause, Phase, Promote


def test_every_verdict_on_labels_can_be_worked_out_again(world: World) -> None:
    guard = SliceGuard(field="tab", values=("home",), logloss_delta_max=0.05)
    spec = SPEC.model_copy(update={"guards": SPEC.guards.model_copy(update={"segments": (guard,)})})
    world.seconds(3)
    world.controller.start(spec, "ada", "try it", version=1)
    world.seconds(120, until=Phase.WATCHING)
    world.bias = 0.9
    world.seconds(15, until=Phase.DEGRADED)
    world.controller = world.new_controller()  # nothing is remembered
    entries = [e for e in world.store.audit("ranker") if e.verb in ("advance", "step_back")]
    assert [entry.verb for entry in entries] == ["advance", "advance", "step_back"]
    for entry in entries:
        explanation = world.controller.explain(entry.seq)
        assert explanation.same, [figure for figure in explanation.figures if not figure.same]
        figures = {figure.name: figure.recomputed for figure in explanation.figures}
        assert figures["clicks"] > 100
        assert {"bias", "bias_low", "bias_high", "logloss_delta", "auc_delta", "rows of tab=home"} <= figures.keys()
        json.dumps(asdict(explanation))
    for entry in entries:
        again = world.controller.explain(entry.seq, rows=True)
        assert again.same, [figure for figure in again.figures if not figure.same]
        assert "predictions of the labelled log" in again.note
    advance, back = (world.controller.explain(entry.seq) for entry in entries[1:])
    assert advance.verdict == "the next step's evidence is there"
    assert back.verdict == f"breached: {entries[2].reason}"


def test_a_figure_that_the_log_does_not_bear_out_is_shown(world: World) -> None:
    world.controller.start(SPEC, "ada", "try it", version=1)
    world.seconds(120, until=Phase.WATCHING)
    entry = next(e for e in world.store.audit("ranker") if e.verb == "advance")
    evidence = {**entry.evidence, "bias": 0.123}
    from serving.rollout.explain import explain
    from serving.rollout.store import AuditEntry

    forged = AuditEntry(
        entry.seq, entry.time_ms, entry.endpoint, entry.rollout, entry.actor, entry.reason, entry.verb,
        entry.before, entry.after, evidence,
    )  # fmt: skip
    explanation = explain(forged, world.store.rollout("ranker"), None, world.log, world.schema)
    assert explanation.same is False
    assert [figure.name for figure in explanation.figures if not figure.same] == ["bias"]


def test_what_rests_on_no_labels_says_so(world: World) -> None:
    world.controller.start(SPEC, "ada", "try it", version=1)
    world.controller.command("ranker", Promote(), "ada", "push", force=True)
    world.observed = Observed(since_ms=world.clock.now, requests=1000, errors=600)
    world.controller.step()
    world.controller.command("ranker", Pause(), "bob", "lunch")
    back, paused = world.store.audit("ranker")[-2:]
    explanation = world.controller.explain(back.seq)
    assert (explanation.same, explanation.figures) == (None, ())
    assert "counters of the lanes" in explanation.note
    assert explanation.entry.evidence["observed"]["errors"] == 600
    assert "bob decided this" in world.controller.explain(paused.seq).note
    with pytest.raises(NotFound, match="no entry 99"):
        world.controller.explain(99)


def test_a_verdict_is_worked_out_after_its_rows_have_gone(world: World) -> None:
    world.controller.start(SPEC, "ada", "try it", version=1)
    world.seconds(120, until=Phase.WATCHING)
    entry = next(e for e in world.store.audit("ranker") if e.verb == "advance")
    world.log.retain(world.clock.now + 1_000_000)
    assert not world.log.labelled(0, 1)
    explained = world.controller.explain(entry.seq)
    assert explained.same
    assert "the sums that the verdict rests on" in explained.note
    bare = world.controller.explain(entry.seq, rows=True)
    assert bare.same is False
    assert "removed by retention" in bare.note
