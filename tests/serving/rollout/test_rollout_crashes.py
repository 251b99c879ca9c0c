"""Crashes of the controller: any order of verbs, verdicts, alarms, kills at every write, and restarts.

A kill is simulated where it hurts: the database stops taking statements at the n-th one of a change, nothing is rolled
back in order, and the next process opens the file as it was left.
"""

from __future__ import annotations

import itertools
import shutil
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

from clocks import MillisecondClock
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from rollout_world import SCHEMA

from pipeline.errors import BatonError, Conflict
from pipeline.traffic.local.log import LocalTrafficLog
from pipeline.traffic.prediction import PredictionIds
from serving.rollout.controller import RolloutController
from serving.rollout.observed import NewVersion, Observed
from serving.rollout.routing import ArmSpec, Endpoint
from serving.rollout.spec import Rollout
from serving.rollout.sqlite_store import SqliteControlStore
from serving.rollout.state import (
    Abort,
    AdoptVersion,
    Advance,
    Approve,
    AskApproval,
    Complete,
    Event,
    Pause,
    Promote,
    Recover,
    Resume,
    ReturnVersion,
    SetWeight,
    Undo,
)
from serving.rollout.status.freeze import FREEZE
from serving.rollout.store import StoredRollout, Who

NAMES = ("ranker", "shop")
WEIGHTS = (0.0, 10.0, 50.0, 100.0)
MANUAL = (0.0, 33.0, 100.0)
VERBS: tuple[Event, ...] = (
    Pause(), Resume(), Promote(), Promote(full=True), Abort(), Undo(), SetWeight(33.0), SetWeight(100.0),
    Advance(), Advance(reset_evidence=True), Complete(), Recover(),
    AskApproval(), Approve(), AdoptVersion(2), AdoptVersion(3, restart=True), ReturnVersion(1, "score_ratio"),
)  # fmt: skip


def spec(name: str) -> Rollout:
    return Rollout.parse(
        f"{{endpoint: {name}, candidate: {{bundle: new}}, guards: {{}}, after_full: {{watch: 1s}}, "
        "steps: [{shadow: true}, {weight: 10, bias_below: 0.1}, {weight: 50, bias_below: 0.05}, "
        "{weight: 100, bias_below: 0.02}]}"
    )


class Killed(BaseException):
    """The process was killed; nothing of it runs any more."""


class Dying:
    """A connection that dies at its n-th statement from now on; `last` is that statement, empty while it lives."""

    def __init__(self, db: sqlite3.Connection, statements: int) -> None:
        self._db, self._left = db, statements
        self.last = ""

    def execute(self, *args: Any) -> sqlite3.Cursor:
        self._left -= 1
        if self._left < 0:
            self.last = self.last or args[0]
            raise Killed
        return self._db.execute(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)


class Crashes(RuleBasedStateMachine):
    """Two endpoints, each with rollouts one after another, on one store that processes die on."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.clock = MillisecondClock()
        self.log = LocalTrafficLog(self.folder / "traffic", PredictionIds(b"k" * 32), attribution_window_ms=1000)
        self.observed: dict[str, Observed] = {}
        self.open()

    def open(self) -> None:
        self.store = SqliteControlStore(self.folder / "control.db")
        self.controller = RolloutController(
            self.store,
            self.log,
            self.clock,
            lambda: lambda rollout, _: self.observe(rollout),
            lambda _: SCHEMA,
            lambda *_: None,
        )

    def observe(self, rollout: StoredRollout) -> Observed:
        return self.observed.get(rollout.spec.endpoint, Observed())

    def dead_or_done(self, change: Any, at: int | None) -> None:
        """Run a change; with `at`, in a process that dies at that statement of it."""
        self.clock.now += 7
        if at is not None:
            self.store._db = Dying(self.store._db, at)  # type: ignore[assignment]
        try:
            change()
        except (Conflict, BatonError):
            pass
        except Killed:
            self.reopen()
            return
        if at is not None:
            self.reopen()

    def reopen(self) -> None:
        db = self.store._db
        (db._db if isinstance(db, Dying) else db).close()
        self.open()

    @initialize()
    def endpoints(self) -> None:
        for name in NAMES:
            self.store.put_endpoint(Endpoint(name=name, stable=ArmSpec(bundle="old", version=1)), Who("ada", "set", 1))

    @rule(name=st.sampled_from(NAMES), at=st.none() | st.integers(0, 12))
    def start(self, name: str, at: int | None) -> None:
        self.dead_or_done(lambda: self.controller.start(spec(name), "ada", "go", version=1), at)

    @precondition(lambda self: self.store.rollouts())
    @rule(name=st.sampled_from(NAMES), event=st.sampled_from(VERBS), at=st.none() | st.integers(0, 12))
    def verb(self, name: str, event: Event, at: int | None) -> None:
        self.dead_or_done(lambda: self.controller.command(name, event, "ada", "because", force=True), at)

    @rule(
        name=st.sampled_from(NAMES),
        seen=st.sampled_from(
            [
                {},
                {"requests": 1000, "errors": 500},
                {"scored_rows": 5000, "predicted_stable": 100.0, "predicted_candidate": 130.0},
                {"killed": "complaints"},
                {"versions": (NewVersion(2, 0.0, passed=True), NewVersion(3, 0.5, passed=True))},
            ]
        ),
        at=st.none() | st.integers(0, 30),
    )
    def a_pass(self, name: str, seen: dict[str, Any], at: int | None) -> None:
        self.observed = {name: Observed(since_ms=self.clock.now, **seen)}
        self.dead_or_done(self.controller.step, at)
        self.observed = {}

    @rule(ms=st.sampled_from([-3_600_000, 0, 1000, 700_000]))
    def time(self, ms: int) -> None:
        self.clock.now = max(1_000_000, self.clock.now + ms)

    @rule()
    def restart(self) -> None:
        self.reopen()

    @invariant()
    def whatever_happened(self) -> None:
        endpoints = self.store.endpoints()
        for name in endpoints:
            audit = self.store.audit(name)
            for before, after in itertools.pairwise(audit):
                assert after.before["endpoint"] == before.after["endpoint"], "a change is missing in the audit"
            assert audit[-1].after["endpoint"] == endpoints[name].model_dump(), "the last change is not in the audit"
            mine = self.store.rollouts(endpoint=name)
            active = [one for one in mine if one.state.active]
            assert len(active) <= 1
            assert endpoints[name].weight in {*WEIGHTS, *MANUAL}
            raised = [e for e in audit if e.after["endpoint"]["weight"] > e.before.get("endpoint", {}).get("weight", 0)]
            assert {entry.verb for entry in raised} <= {"advance", "promote", "set_weight"}
            if mine:
                newest = mine[-1].state
                assert endpoints[name].weight == newest.weight, "rollout and endpoint were not written together"
                logged = [e for e in audit if e.rollout == mine[-1].id][-1].after["state"]
                assert (logged["phase"], logged["weight"]) == (newest.phase, newest.weight)
                assert endpoints[name].stable.bundle == "old", "stable answers the rest: two arms are never both full"

    def teardown(self) -> None:
        self.reopen()
        self.store.close()
        self.log.close()
        shutil.rmtree(self.folder)


TestCrashes = Crashes.TestCase
TestCrashes.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)


def test_a_change_that_dies_at_any_of_its_statements_is_whole_or_not_there(tmp_path: Path) -> None:
    log = LocalTrafficLog(tmp_path / "traffic", PredictionIds(b"k" * 32), attribution_window_ms=1000)
    path, clock = tmp_path / "control.db", MillisecondClock()

    def opened() -> tuple[SqliteControlStore, RolloutController]:
        store = SqliteControlStore(path)
        return store, RolloutController(
            store, log, clock, lambda: lambda *_: Observed(), lambda _: SCHEMA, lambda *_: None
        )

    store, controller = opened()
    store.put_endpoint(Endpoint(name="ranker", stable=ArmSpec(bundle="old", version=1)), Who("ada", "set", 1))
    died: list[str] = []
    changes: dict[str, Any] = {
        "start": lambda: controller.start(spec("ranker"), "ada", "go", version=1),
        "promote": lambda: controller.command("ranker", Promote(), "ada", "push", force=True),
        "ask_approval": lambda: controller.command("ranker", AskApproval(), "control", "all is there"),
        "approve": lambda: controller.command("ranker", Approve(), "ada", "fine"),
        "adopt_version": lambda: controller.command("ranker", AdoptVersion(2), "control", "newer"),
        "return_version": lambda: controller.command("ranker", ReturnVersion(1, "score_ratio"), "control", "worse"),
        "freeze": lambda: store.put_setting(FREEZE, {"until_ms": 1}, Who("ada", "sale", 1), "freeze"),
        "lift_freeze": lambda: store.put_setting(FREEZE, {}, Who("ada", "over", 1), "lift_freeze"),
        "abort": lambda: controller.command("ranker", Abort(), "ada", "stop"),
    }
    for name in changes:
        for at in itertools.count():
            before = store.endpoint("ranker"), store.rollouts(), store.audit(), store.setting(FREEZE)
            db = store._db
            dying = Dying(db, at)
            store._db = dying  # type: ignore[assignment]
            try:
                changes[name]()
            except Killed:
                died.append(dying.last)
                db.close()
                store, controller = opened()
            else:
                store._db = db
                break
            after = store.endpoint("ranker"), store.rollouts(), store.audit(), store.setting(FREEZE)
            assert after == before, f"{name} died at {dying.last!r} and left a part of itself"
    store.close()
    log.close()
    for table in ("INTO endpoints", "INTO rollouts", "UPDATE rollouts", "INTO audit", "INTO settings", "COMMIT"):
        assert any(table in statement for statement in died), f"no change was cut off at {table}"
