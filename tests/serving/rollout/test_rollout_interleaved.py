"""Any interleaving of looks, labels, version swaps, pauses, freezes, approvals, restarts and guards over a real log and store keeps
the rules: what the controller does to traffic is a step up on evidence, or a way back."""

from __future__ import annotations

import itertools
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollout_world import SPEC, World

from pipeline.errors import Conflict
from serving.rollout.controller import ACTOR
from serving.rollout.observed import NewVersion, Observed
from serving.rollout.state import ACTIVE, Approve, Event, Pause, Phase, Promote, Resume, SetWeight
from serving.rollout.status.freeze import FREEZE, Freeze
from serving.rollout.store import AuditEntry, Who

FILE = SPEC.model_copy(update={"steps": (*SPEC.steps[:2], SPEC.steps[2].model_copy(update={"approve": True}))})
WAYS_BACK = {"step_back", "return_version", "abort"}
OPERATORS: dict[str, Event] = {
    "pause": Pause(),
    "resume": Resume(),
    "approve": Approve(),
    "promote": Promote(),
    "weight": SetWeight(10),
}
THINGS = (
    *OPERATORS,
    "labels",
    "labels",
    "labels",
    "silence",
    "bad",
    "good",
    "version",
    "errors",
    "restart",
    "freeze",
    "lift",
)


class Story:
    """A rollout to which things happen."""

    def __init__(self, folder: Path) -> None:
        self.world = World(folder)
        self.frozen: list[tuple[int, int]] = []
        self.world.controller.start(FILE, "ada", "try it", version=1)

    def happen(self, thing: str) -> None:
        world = self.world
        now = world.clock.now
        if thing in OPERATORS:
            with suppress(Conflict):
                world.controller.command("ranker", OPERATORS[thing], "ada", thing, force=True)
        elif thing in ("bad", "good"):
            world.bias = 0.6 if thing == "bad" else 0.0
        elif thing == "restart":
            world.controller = world.new_controller()
        elif thing == "freeze":
            world.store.put_setting(
                FREEZE, Freeze(now + 6000, "ada", "sale", now).to_json(), Who("ada", thing, now), thing
            )
            self.frozen.append((now, now + 6000))
        elif thing == "lift":
            world.store.put_setting(FREEZE, {}, Who("ada", thing, now), thing)
            if self.frozen and self.frozen[-1][1] > now:
                self.frozen[-1] = (self.frozen[-1][0], now)
        else:
            self._pass(thing)

    def _pass(self, thing: str) -> None:
        """Let time pass with traffic."""
        world = self.world
        state = world.store.rollout("ranker").state
        if thing == "version":
            new = NewVersion(max(state.candidate_version, state.newest_known) + 1, 0.02, passed=True)
            world.observed = Observed(versions=(new,))
        elif thing == "errors":
            world.observed = Observed(since_ms=world.clock.now, requests=1000, errors=300)
        world.seconds(6 if thing == "labels" else 2, labels=thing != "silence")
        world.observed = Observed()
        world.version = world.store.rollout("ranker").state.candidate_version

    def check(self) -> None:
        """Hold the whole audit against the rules."""
        audit = self.world.store.audit("ranker")
        for entry in audit[2:]:
            self._one(entry)
        for before, after in itertools.pairwise(entry for entry in audit if entry.after.get("endpoint")):
            assert after.before["endpoint"] == before.after["endpoint"]
        stored = self.world.store.rollout("ranker")
        assert self.world.store.endpoint("ranker").weight == stored.state.weight

    def _one(self, entry: AuditEntry) -> None:
        before, after = entry.before["state"], entry.after["state"]
        assert entry.after["endpoint"]["weight"] == after["weight"]
        if entry.verb == "step_back":
            assert after["step"] == before["step"] - 1, "never from shadow to shadow"
        if entry.actor != ACTOR:
            assert entry.reason
            return
        assert before["phase"] in ACTIVE
        if after["weight"] > before["weight"]:
            assert (entry.verb, before["phase"]) == ("advance", Phase.PROGRESSING)
            assert "bias" in entry.evidence, "nothing but evidence"
            assert not FILE.steps[after["step"]].approve or before["approved_step"] == after["step"]
        if any(begun < entry.time_ms < ended for begun, ended in self.frozen):
            assert entry.verb in WAYS_BACK
        if before["phase"] == Phase.PAUSED:
            assert entry.verb in WAYS_BACK


def told(things: list[str], folder: Path) -> None:
    """Let things happen in an order, and check."""
    story = Story(folder)
    try:
        for thing in things:
            story.happen(thing)
            if not story.world.store.rollout("ranker").state.active:
                break
        story.check()
    finally:
        story.world.log.close()
        story.world.store.close()


@pytest.mark.parametrize(
    "things",
    [
        "labels labels labels approve labels bad labels",
        "labels freeze labels version lift labels errors restart labels",
        "promote errors labels resume promote errors silence pause version good",
    ],
)
def test_some_interleavings_keep_the_rules(things: str, tmp_path: Path) -> None:
    told(things.split(), tmp_path)


@pytest.mark.long
@given(st.lists(st.sampled_from(THINGS), min_size=6, max_size=14))
@settings(max_examples=30, deadline=None)
def test_any_interleaving_keeps_the_rules(things: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        told(things, Path(folder))
