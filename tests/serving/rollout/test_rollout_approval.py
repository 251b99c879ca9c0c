"""A step with `approve: true`: it waits with all its evidence met, and only an operator's approval lets it be entered."""

from __future__ import annotations

import pytest
from rollout_world import SPEC, World

from pipeline.errors import Conflict, InvalidInput
from serving.rollout.observed import NewVersion, Observed
from serving.rollout.spec import Rollout
from serving.rollout.state import Approve, Phase

ASKS = SPEC.model_copy(update={"steps": (*SPEC.steps[:2], SPEC.steps[2].model_copy(update={"approve": True}))})


def verbs(world: World) -> list[str]:
    return [entry.verb for entry in world.store.audit("ranker")][2:]


def test_nothing_moves_without_approval_and_twice_is_once(world: World) -> None:
    world.controller.start(ASKS, "ada", "try it", version=1)
    with pytest.raises(Conflict, match="nothing waits for approval"):
        world.controller.command("ranker", Approve(), "ada", "early")
    world.seconds(30)
    assert verbs(world) == ["advance", "ask_approval"]
    world.controller = world.new_controller()  # a restart
    for second in range(600):  # ten minutes, a request a second
        world.clock.now += 1000
        world.request(labels=True)
        if second % 4 == 3:
            world.log.join(world.clock.now)
            world.controller.step()
    assert world.status == "waits for approval of weight 100: all its evidence is there (baton rollout approve)"
    assert (world.store.endpoint("ranker").weight, verbs(world)) == (10, ["advance", "ask_approval"])
    world.controller = world.new_controller()
    for reason in ("agreed", "agreed again"):
        world.controller.command("ranker", Approve(), "ada", reason)
    world.seconds(2, until=Phase.WATCHING)
    assert verbs(world) == ["advance", "ask_approval", "approve", "advance"]
    assert world.store.endpoint("ranker").weight == 100
    with pytest.raises(Conflict):
        world.controller.command("ranker", Approve(), "ada", "late")


def test_an_approval_is_of_one_evidence(world: World) -> None:
    world.controller.start(ASKS, "ada", "try it", version=1)
    world.seconds(30)
    world.controller.command("ranker", Approve(), "ada", "agreed")
    world.version, world.observed = 2, Observed(versions=(NewVersion(2, 0.04),))
    world.seconds(3)
    state = world.store.rollout("ranker").state
    assert (state.weight, state.candidate_version, state.approved_step, state.asked_step) == (10, 2, 0, 0)
    world.seconds(60)
    assert verbs(world) == ["advance", "ask_approval", "approve", "adopt_version", "ask_approval"]


def test_shadow_takes_no_approval() -> None:
    with pytest.raises(InvalidInput, match=r"rollout:4: steps\[0\]: .*remove approve"):
        Rollout.parse(
            "endpoint: ranker\ncandidate: {bundle: new}\nsteps:\n- {shadow: true, approve: true}\n"
            "- {weight: 100, bias_below: 0.1}\nguards: {}\n"
        )
