"""The teacher stays loaded through the watch and after it, so that a step back or an undo finds it warm."""

from __future__ import annotations

from pathlib import Path

from clocks import HandClock
from operated import operated, rollout_file

from serving.control.bundle_upkeep import BundleUpkeep
from serving.lane.desired import DesiredVersions
from serving.rollout.routing import choose_arm
from serving.rollout.spec import Rollout
from serving.rollout.state import Complete, Promote, Undo
from serving.runtime.status import Statuses

KEYS = [f"user:{number}" for number in range(200)]


def test_both_arms_are_wanted_until_after_the_undo(tmp_path: Path) -> None:
    with operated(tmp_path) as world:
        store, config = world.made.store, world.made.config
        desired_versions = DesiredVersions(store, world.made.repository, tmp_path / "loads", HandClock())
        upkeep = BundleUpkeep(world.made.repository, config.segments, store, keep=1, worker=False)
        world.controller.start(Rollout.parse(rollout_file(holdout=0.0)), "ada", "try", version=1)
        answering = []
        for event in (Promote(full=True), Complete(), Undo()):
            world.controller.command("ranker", event, "ada", "because", force=True)
            wanted = desired_versions.look(())
            assert {(bundle, version) for bundle, version in wanted.keys} >= {("teacher", "1"), ("student", "1")}, event
            upkeep.step(Statuses())
            assert world.made.repository.versions("teacher") == ["1"], "nor is it tidied away"
            answering.append({choose_arm(wanted.endpoints["ranker"], key) for key in KEYS})
        assert answering == [{"candidate"}, {"candidate"}, {"stable"}]
