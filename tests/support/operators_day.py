"""An operator's day: one scenario for every interface. A test file makes a class of it and gives the fixture `door`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from doors import CommandLine, Door, Refused
from installation import write_status
from operated import Operated, rollout_file

ANN = "ann"
TO_BE_REFUSED = "it is over"
"""Reason for a verb that the state does not allow: the console has no button for it then."""


class OperatorsDay:
    """An operator's day."""

    def test_a_rollout_is_begun_steered_and_undone(self, door: Door, world: Operated, tmp_path: Path) -> None:
        file = tmp_path / "rollout.yaml"
        file.write_text(rollout_file())
        text = str(file) if isinstance(door, CommandLine) else file.read_text()
        begun = door.do("rollouts.start", file=text, reason="new model")
        assert (begun["phase"], begun["candidate"]) == ("progressing", {"bundle": "student", "version": "1"})
        assert door.do("rollouts.pause", name="ranker", reason="lunch")["phase"] == "paused"
        assert door.do("rollouts.resume", name="ranker", reason="fed")["phase"] == "progressing"
        with pytest.raises(Refused, match="nothing waits for approval"):
            door.do("rollouts.approve", name="ranker", reason="agreed")
        for verb in ("rollouts.pause", "rollouts.promote", "rollouts.approve", "rollouts.abort"):
            with pytest.raises(Refused, match="reason: must not be empty"):
                door.do(verb, name="ranker")
        with pytest.raises(Refused, match="not met for weight 10: no mature labelled rows"):
            door.do("rollouts.promote", name="ranker", reason="seen enough")
        assert door.do("rollouts.promote", name="ranker", force=True, reason="seen enough")["weight"] == 10
        assert door.do("rollouts.set_weight", name="ranker", weight=33, reason="by hand")["weight"] == 33
        assert door.do("endpoints.get", name="ranker")["weight"] == 33
        assert door.do("rollouts.promote", name="ranker", full=True, force=True, reason="all")["weight"] == 100
        assert door.do("rollouts.set_weight", name="ranker", weight=60, reason="less")["cause"]["reason"] == "less"
        assert door.do("rollouts.resume", name="ranker", reason="on")["phase"] == "progressing"
        assert door.do("rollouts.promote", name="ranker", force=True, reason="all again")["weight"] == 100
        undone = door.do("rollouts.undo", name="ranker", reason="revenue fell")
        assert undone["phase"] == "undone"
        assert re.fullmatch(r"undone by ann at .* UTC: revenue fell", undone["waiting"])
        with pytest.raises(Refused, match="resume") as refused:
            door.do("rollouts.resume", name="ranker", reason=TO_BE_REFUSED)
        assert refused.value.kind in ("Conflict", "")
        assert self._audit(door, world)[1:] == [
            ("start", ANN, "new model"),
            ("pause", ANN, "lunch"),
            ("resume", ANN, "fed"),
            ("promote", ANN, "seen enough"),
            ("set_weight", ANN, "by hand"),
            ("promote", ANN, "all"),
            ("set_weight", ANN, "less"),
            ("resume", ANN, "on"),
            ("promote", ANN, "all again"),
            ("undo", ANN, "revenue fell"),
        ]
        assert [r["id"] for r in door.do("rollouts.list")["rollouts"]] == [begun["id"]]
        assert door.do("rollouts.watch", name="ranker")["phase"] == "undone"
        assert door.do("metrics.get", endpoint="ranker")["phases"]

    def test_a_candidate_is_killed_and_released(self, door: Door, world: Operated) -> None:
        world.made.set(weight=40)
        assert door.do("endpoints.kill", name="ranker", reason="it burns")["killed"]
        assert world.kill.why("ranker") == ("it burns", ANN)
        assert not door.do("endpoints.release", name="ranker", reason="repaired")["killed"]
        assert door.do("endpoints.get", name="ranker")["weight"] == 0
        assert self._audit(door, world)[-2:] == [("kill", ANN, "it burns"), ("release", ANN, "repaired")]

    def test_everything_is_frozen_and_thawed_and_stable_pinned(self, door: Door, world: Operated) -> None:
        now = world.clock.wall_ms()
        with pytest.raises(Refused, match="until_ms: must lie in the future"):
            door.do("rollouts.freeze", until_ms=now - 1000, reason="sale")
        frozen = door.do("rollouts.freeze", until_ms=now + 60_000, reason="sale")
        assert (frozen["actor"], frozen["reason"]) == (ANN, "sale")
        arms = {"stable": {"bundle": "teacher"}, "candidate": {"bundle": "student"}}
        with pytest.raises(Refused, match=r"frozen until .* by ann: sale\. Lift it first"):
            door.do("endpoints.set", name="ranker", **arms, weight=5, reason="by hand")
        pinned = door.do("endpoints.pin", name="ranker", stable={"bundle": "teacher", "version": "1"}, reason="at once")
        assert pinned["stable"] == {"bundle": "teacher", "version": "1"}
        with pytest.raises(Refused, match="ranker' serves teacher; pin a version of that"):
            door.do("endpoints.pin", name="ranker", stable={"bundle": "student", "version": "1"}, reason="wrong")
        door.do("rollouts.lift", reason="over")
        with pytest.raises(Refused, match="nothing is frozen"):
            door.do("rollouts.lift", reason="over")
        assert (
            door.do("endpoints.pin", name="ranker", stable={"bundle": "teacher"}, reason="on")["stable"]["version"]
            == ""
        )
        world.made.set(weight=0)

    def test_an_endpoint_is_made_and_changed(self, door: Door, world: Operated) -> None:
        fields: dict[str, Any] = {"name": "shop", "stable": {"bundle": "teacher"}}
        made = door.do("endpoints.set", **fields, expected=0, reason="first")
        assert int(made["resource_version"]) == 1
        more = {**fields, "candidate": {"bundle": "student", "version": "1"}, "weight": 12.5}
        changed = door.do("endpoints.set", **more, expected=1, reason="second")
        assert (changed["weight"], changed["candidate"]) == (12.5, {"bundle": "student", "version": "1"})
        with pytest.raises(Refused, match="resource version 2") as stale:
            door.do("endpoints.set", **fields, expected=1, reason="late")
        assert stale.value.kind in ("StaleVersion", "")
        with pytest.raises(Refused, match="nobody"):
            door.do("endpoints.get", name="nobody")
        assert [e["name"] for e in door.do("endpoints.list")["endpoints"]] == ["ranker", "shop"]
        assert {m["bundle"] for m in door.do("models.list")["models"]} == {"teacher", "student"}

    def test_a_version_is_retired_and_taken_back(self, door: Door, world: Operated) -> None:
        world.made.publish("student", 3)
        assert door.do("models.retire", bundle="student", version="2", reason="wrong features")["retired"]
        (listed,) = [m for m in door.do("models.list")["models"] if (m["bundle"], m["version"]) == ("student", "2")]
        assert (listed["servable"], listed["reasons"]) == (False, ["retired by ann: wrong features"])
        with pytest.raises(Refused, match="no version '9'"):
            door.do("models.retire", bundle="student", version="9", reason="?")
        assert not door.do("models.retire", bundle="student", version="2", restore=True, reason="right after all")[
            "retired"
        ]
        with pytest.raises(Refused, match="version 2 of student is not retired"):
            door.do("models.retire", bundle="student", version="2", restore=True, reason="?")

    def test_the_worker_is_seen(self, door: Door, world: Operated) -> None:
        status = {
            "time_ms": world.clock.wall_ms(), "weight": 0.7, "replay_ratio": 0.1, "teacher_every": 10,
            "versions": {"student": "3"}, "refused": {"student": ["2"]}, "batches": 12,
        }  # fmt: skip
        write_status(world.made.config.status, "worker", **status)
        answer = door.do("worker.status")
        assert (answer["running"], answer["weight"], answer["replay_ratio"], answer["teacher_every"]) == (
            True,
            0.7,
            0.1,
            10,
        )
        assert answer["versions"] == {"student": "3"}
        assert [(r["bundle"], r["version"]) for r in answer["refused"]] == [("student", "2")]

    @staticmethod
    def _audit(door: Door, world: Operated) -> list[tuple[str, str, str]]:
        answer = door.do("audit.list", endpoint="ranker")["entries"]
        assert [int(e["seq"]) for e in answer] == [e.seq for e in world.made.store.audit("ranker")]
        return [(e["verb"], e["actor"], e["reason"]) for e in answer]
