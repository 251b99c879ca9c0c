"""Load and unload of a bundle by its name in a running lane."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from foreign import row_by_row, write_foreign
from installation import Installation, eventually, running
from operated import ME, Operated

from pipeline.clock import SystemClock
from pipeline.errors import Conflict, NotFound
from pipeline.model.probe import PROBED, noted, set_aside
from serving.admin import VERBS
from serving.admin.door import request_of


def call(world: Operated, verb: str, **fields: Any) -> Any:
    asked = VERBS[verb]
    return world.admin.call(asked, request_of(asked, fields), ME)


def test_a_bundle_is_loaded_by_its_name_and_taken_back(tmp_path: Path) -> None:
    made = Installation(tmp_path / "home")
    made.publish("other", 7)
    world = Operated(made, SystemClock())
    nobody = call(world, "models.load", bundle="other", wait_seconds=60)  # no lane runs: the wish waits, the caller not
    assert (nobody.done, nobody.lanes, nobody.version) == (False, {}, "1")
    with running(made.config):
        eventually(lambda: bool(world.admin.reports.lanes()), "the lane has told", 60)
        loaded = call(world, "models.load", bundle="other", wait_seconds=120, reason="compare")
        assert (loaded.done, loaded.lanes) == (True, {"lane-0": "READY"})
        (listed,) = [m for m in call(world, "models.list").models if m.bundle == "other"]
        assert (listed.lanes, listed.arms) == (["lane-0"], [])
        gone = call(world, "models.unload", bundle="other", wait_seconds=120)
        assert (gone.done, gone.wanted, gone.lanes) == (True, False, {"lane-0": "UNLOADED"})
        with pytest.raises(NotFound, match="not loaded by name"):
            call(world, "models.unload", bundle="other")
        with pytest.raises(Conflict, match="endpoint 'ranker'"):
            call(world, "models.unload", bundle="student")
        with pytest.raises(NotFound, match="nobody"):
            call(world, "models.load", bundle="nobody")
    entries = [(e.verb, e.after) for e in made.store.audit() if e.verb.startswith("model")]
    assert entries == [
        ("model-load", {"bundle": "other", "version": "1"}),
        ("model-load", {"bundle": "other", "version": "1"}),
        ("model-unload", {"bundle": "other"}),
    ]
    world.close()
    made.store.close()


def test_a_version_that_was_set_aside_is_tried_again_when_it_is_asked_for(tmp_path: Path) -> None:
    made = Installation(tmp_path / "home")
    write_foreign(made.config.repository / "alien" / "1", row_by_row())
    notes = made.config.segments / "alien" / PROBED
    notes.mkdir(parents=True)
    set_aside(notes, "1", "it hung")
    made.config.loads.mkdir(parents=True)
    (made.config.loads / "alien").touch()
    world = Operated(made, SystemClock())

    def faults() -> list[str]:
        return [lane.faults.get("alien/1", "") for lane in world.admin.reports.lanes().values()]

    (listed,) = [m for m in call(world, "models.list").models if m.bundle == "alien"]
    assert listed.fault == "it hung", "no lane has to ask for it"
    with running(made.config):
        eventually(lambda: faults() == ["it hung"], "the lane says why it does not load it", 60)
        loaded = call(world, "models.load", bundle="alien", wait_seconds=120)
        assert (loaded.done, loaded.lanes) == (True, {"lane-0": "READY"}), "not the reason of the time before"
        assert not noted(notes)["1"].reason
        eventually(lambda: faults() == [""], "nothing is held against it any more")
    world.close()
    made.store.close()
