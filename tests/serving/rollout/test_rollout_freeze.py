"""A freeze lets nothing move but a way back; a deadline says that nothing has moved; what is said has a code."""

from __future__ import annotations

from pathlib import Path

import pytest
from rollout_world import SPEC, World

from pipeline.errors import Conflict
from serving.rollout.controller import _hours_left
from serving.rollout.observed import NewVersion, Observed
from serving.rollout.reconcile import Context, Decision, reconcile
from serving.rollout.spec import Rollout
from serving.rollout.state import Abort, Pause, Phase, Promote, SetWeight, apply, begin
from serving.rollout.status import codes
from serving.rollout.status.codes import STATUSES, Code
from serving.rollout.status.freeze import FREEZE, Freeze
from serving.rollout.store import Who

HOUR_MS = 3_600_000


def freeze(world: World, length_ms: int) -> None:
    now = world.clock.now
    made = Freeze(now + length_ms, "ada", "sale", now)
    world.store.put_setting(FREEZE, made.to_json(), Who("ada", "sale", now), "freeze")


def test_an_hours_freeze_moves_nothing_and_ends_by_time(world: World) -> None:
    world.controller.start(SPEC, "ada", "try it", version=1)
    world.seconds(3)
    freeze(world, HOUR_MS)
    world.controller = world.new_controller()  # it outlives a restart
    world.observed = Observed(versions=(NewVersion(2, 0.05),))
    end = world.clock.now + HOUR_MS
    while world.clock.now < end - 10_000:  # an hour in which all evidence is there, a request every four seconds
        world.clock.now += 4000
        world.request(labels=True)
        world.log.join(world.clock.now)
        world.controller.step()
    assert [entry.verb for entry in world.store.audit("ranker")] == ["set_endpoint", "start"]
    stored = world.store.rollout("ranker")
    assert world.status.startswith("frozen until 1970-01-01 01:16:43 UTC by ada: sale; ")
    assert (stored.status["code"], stored.state.candidate_version) == ("frozen", 1)
    assert stored.status["held_since_ms"] < end - HOUR_MS + 5000
    for event in (Promote(full=True), SetWeight(5)):
        with pytest.raises(Conflict, match="Lift it first: baton freeze --lift"):
            world.controller.command("ranker", event, "ada", "now", force=True)
    with pytest.raises(Conflict, match="frozen until"):
        world.controller.start(SPEC, "ada", "another", version=1)
    world.version = 2  # the version that has waited is adopted now
    world.seconds(60, until=Phase.WATCHING)
    assert world.store.endpoint("ranker").weight == 100


def test_kill_abort_and_step_back_go_on_in_a_freeze(world: World) -> None:
    for back in ("killed", "abort", "breach"):
        world.observed = Observed()
        world.controller.start(SPEC, "ada", "try it", version=1)
        world.controller.command("ranker", SetWeight(10), "ada", "by hand")
        freeze(world, HOUR_MS)
        if back == "killed":
            world.observed = Observed(killed="complaints")
        elif back == "abort":
            world.controller.command("ranker", Abort(), "ada", "enough")
        else:
            world.observed = Observed(since_ms=world.clock.now, requests=1000, errors=200)
        world.controller.step()
        assert world.store.endpoint("ranker").weight == 0, back
        if world.store.rollouts(active=True):
            world.controller.command("ranker", Abort(), "ada", "enough")
        world.store.put_setting(FREEZE, {}, Who("ada", "over", world.clock.now), "lift_freeze")


def test_what_a_foreign_hand_wrote_as_a_freeze_holds_no_step_back_up(world: World) -> None:
    world.store.put_setting(FREEZE, {"nonsense": 1}, Who("eve", "?", 1), "freeze")
    world.controller.start(SPEC, "ada", "try it", version=1)
    world.seconds(30, until=Phase.WATCHING)


LATE = """
endpoint: ranker
candidate: {{bundle: new}}
steps: [{{weight: 10, bias_below: 0.3}}]
guards: {{}}
progress_deadline: 24h
on_deadline: {does}
"""


def later(does: str, hours: float, *, paused: bool = False, frozen: bool = False) -> Decision:
    spec = Rollout.parse(LATE.format(does=does))
    state = begin(spec, 1, 0, 0)
    state = apply(spec, state, Pause(), 1, 0) if paused else state
    now = round(hours * HOUR_MS)
    freeze = Freeze(now + 1, "ada", "sale", 0) if frozen else None
    return reconcile(Context(spec, state, Observed(), now, 0, None, frozen=freeze))


def test_a_rollout_that_has_not_moved_for_too_long_says_so_or_ends() -> None:
    assert not later("hold", 23.9).overdue
    late = later("hold", 24.1)
    assert (late.event, late.overdue) == (None, True)
    assert late.reason.endswith("; at this step for more than 24 h (progress_deadline)")
    assert later("abort", 24.1).event == Abort()
    for held in (later("abort", 24.1, paused=True), later("abort", 24.1, frozen=True)):
        assert (held.event, held.overdue) == (None, True), "an operator's word counts for more"


def test_the_time_left_is_told_where_labels_are_known_to_come() -> None:
    hour = {"clicks": 500.0, "from_ms": 0, "until_ms": HOUR_MS}
    assert _hours_left(Decision(None, "waits", 0, 1000, hour)) == 2.0
    for missing, seen in ((None, hour), (1000, {}), (1000, {**hour, "until_ms": 0}), (1000, {**hour, "clicks": 0.0})):
        assert _hours_left(Decision(None, "waits", 0, missing, seen)) is None


def test_every_code_has_its_place_in_the_table_and_on_the_page() -> None:
    assert set(STATUSES) == set(Code)
    written = Path(__file__).parents[3] / "docs" / "statuses.md"
    assert written.read_text() == codes.document(), "run: python -m serving.rollout.status.codes > docs/statuses.md"
    assert codes.status_of(Phase.ABORTED, "watching") == Code.ABORTED
    assert codes.status_of(Phase.PAUSED, "") == Code.PAUSED
    assert codes.status_of(Phase.PAUSED, "of a newer version") == Code.HOLDS


def test_what_a_rollout_says_has_its_code(world: World) -> None:
    said = {}

    def note() -> None:
        status = world.store.rollout("ranker").status
        said[status["code"]] = status["reason"]

    world.controller.start(SPEC, "ada", "try it", version=1)
    for _ in range(60):
        world.seconds(0.5)
        note()
    world.controller.command("ranker", Pause(), "ada", "lunch")
    world.seconds(2)
    note()
    assert {"no_labels", "min_step_time", "evidence_missing", "advanced", "watching", "paused"} <= said.keys()
    assert "holds" not in said, said
    assert said["paused"].startswith("paused by ada")
