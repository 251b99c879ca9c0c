"""A retired version: arms that follow the newest go back to the one before it, and new rollouts begin with that."""

from __future__ import annotations

from pathlib import Path

import pytest
from clocks import HandClock
from operated import ME, Operated, operated, rollout_file

from pipeline.errors import Conflict
from serving.admin import VERBS
from serving.admin.door import request_of
from serving.lane.desired import DesiredVersions


def call(world: Operated, verb: str, **fields: object) -> object:
    asked = VERBS[verb]
    return world.admin.call(asked, request_of(asked, {"reason": "a test", **fields}), ME)


def test_arms_and_rollouts_pass_over_it(tmp_path: Path) -> None:
    with operated(tmp_path / "home") as world:
        for bundle in ("teacher", "student"):
            world.made.publish(bundle, 3)
        desired = DesiredVersions(world.made.store, world.made.repository, tmp_path / "loads", HandClock())
        assert desired.look(()).arms["ranker", "stable"] == ("teacher", "2")
        call(world, "models.retire", bundle="teacher", version="2")
        assert desired.look(()).arms["ranker", "stable"] == ("teacher", "1")
        call(world, "models.retire", bundle="teacher", version="1")
        assert "is not retired" in desired.look(()).problems["ranker", "stable"]
        call(world, "models.retire", bundle="teacher", version="2", restore=True)
        assert desired.look(()).arms["ranker", "stable"] == ("teacher", "2")
        call(world, "models.retire", bundle="student", version="2")
        call(world, "rollouts.start", file=rollout_file())
        assert world.made.store.rollout("ranker").state.candidate_version == 1
        with pytest.raises(Conflict, match=r"version 1 of student is an arm of endpoint 'ranker'.*abort the rollout"):
            call(world, "models.retire", bundle="student", version="1")
