"""The state machine and the store under any sequence of verbs, verdicts, crashes and restarts."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pipeline.errors import Conflict, InvalidInput, NotFound, StaleVersion
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
    Phase,
    Promote,
    Recover,
    Resume,
    ReturnVersion,
    RolloutState,
    SetWeight,
    StepBack,
    Undo,
    apply,
    begin,
)
from serving.rollout.store import ControlStore, StoredRollout, Who

SPEC = Rollout.parse(
    "{endpoint: ranker, candidate: {bundle: new}, steps: [{shadow: true}, {weight: 1, bias_below: 0.1}, "
    "{weight: 50, bias_below: 0.05}, {weight: 100, bias_below: 0.02}], guards: {}}"
)
WEIGHTS = {0.0, 1.0, 50.0, 100.0}
OLD = ArmSpec(bundle="old", version=1)
WHO = Who("ada", "test", 1)


def started(store: ControlStore) -> StoredRollout:
    endpoint = store.put_endpoint(Endpoint(name="ranker", stable=OLD), WHO, expected=0)
    chosen = endpoint.model_copy(update={"candidate": ArmSpec(bundle="new", version=1)})
    return store.start_rollout(SPEC, begin(SPEC, 1, 0, 0), chosen, WHO)


def change(store: ControlStore, stored: StoredRollout, event: Event, now_ms: int = 2) -> StoredRollout:
    state = apply(SPEC, stored.state, event, now_ms, 0)
    endpoint = store.endpoint("ranker").model_copy(update={"weight": state.weight})
    return store.save_rollout(stored, state, endpoint, Who("ada", "test", now_ms), event.verb)


EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.sampled_from(
        [
            Advance(),
            Advance(reset_evidence=True),
            StepBack("bias"),
            StepBack("p99_ms_max"),
            Recover(),
            Complete(),
            Pause(),
            Resume(),
        ]
    ),
    st.sampled_from([Promote(), Promote(full=True), Abort(), Undo(), AskApproval(), Approve()]),
    st.builds(SetWeight, st.sampled_from([0.0, 0.5, 1.0, 30.0, 99.0, 100.0])),
    st.builds(AdoptVersion, st.integers(1, 30), st.booleans(), st.booleans(), st.booleans()),
    st.builds(ReturnVersion, st.integers(0, 30)),
)


class Verbs(RuleBasedStateMachine):
    """Random events on a stored rollout; the process may die after any of them."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.store = SqliteControlStore(self.folder / "control.db")
        self.manual: set[float] = set()
        self.applied = 0
        self.now = 1

    @initialize()
    def start(self) -> None:
        self.id = started(self.store).id

    @rule(event=EVENTS)
    def event(self, event: Event) -> None:
        self.now += 1
        before = self.store.rollout(self.id)
        try:
            after = change(self.store, before, event, self.now)
        except Conflict:
            assert self.store.rollout(self.id).state == before.state
            return
        self.applied += 1
        if isinstance(event, SetWeight):
            self.manual.add(event.weight)
        assert after.state.attempt >= before.state.attempt
        if isinstance(event, Advance | Promote):
            assert after.state.weight > before.state.weight or event == Promote()
        elif not isinstance(event, SetWeight):
            assert after.state.weight <= before.state.weight, "only evidence or an operator raises a weight"
        if isinstance(event, ReturnVersion):
            assert (after.state.weight, after.state.candidate_version) == (before.state.weight, event.version)
            assert after.state.newest_known >= before.state.candidate_version, "it is not adopted again"
        if isinstance(event, StepBack):
            assert after.state.step == max(0, before.state.step - 1)
            assert after.state.evidence_from_ms == self.now
            rest, before_it = after.state.rest_until_ms - self.now, sum(before.state.step_backs.values())
            assert rest == min(600_000 * 2**before_it, 86_400_000), "rests double, up to a day"

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = SqliteControlStore(self.folder / "control.db")

    @rule()
    def second_rollout_is_refused_while_one_is_active(self) -> None:
        endpoint = self.store.endpoint("ranker")
        if self.store.rollout(self.id).state.active:
            with pytest.raises(Conflict):
                self.store.start_rollout(SPEC, begin(SPEC, 1, self.now, 0), endpoint, WHO)

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "id"):
            return
        state, endpoint = self.store.rollout(self.id).state, self.store.endpoint("ranker")
        assert state.weight in WEIGHTS | self.manual
        assert endpoint.weight == state.weight
        assert endpoint.stable == OLD
        assert (state.phase in (Phase.ABORTED, Phase.UNDONE)) <= (state.weight == 0)
        assert (state.phase in (Phase.WATCHING, Phase.COMPLETED)) <= (state.weight == 100)
        assert state.approved_step in (0, state.asked_step)
        assert state.asked_step in (0, state.step + 1), "an approval is of the next step alone"
        if state.active and state.phase != Phase.PAUSED:
            assert max(state.step_backs.values(), default=0) < SPEC.step_backs_max, (
                "it pauses instead of trying for ever"
            )
        audit = self.store.audit("ranker")
        assert [entry.seq for entry in audit] == list(range(1, len(audit) + 1))
        assert len(audit) == 2 + self.applied, "one entry per change, and the two of the start"
        logged = audit[-1].after["state"]
        assert (logged["phase"], logged["weight"], logged["attempt"]) == (state.phase, state.weight, state.attempt)
        for earlier, later in itertools.pairwise(audit):
            assert later.before["endpoint"] == earlier.after["endpoint"]

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)


TestVerbs = Verbs.TestCase
TestVerbs.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)


def test_verbs_that_make_no_sense_are_conflicts() -> None:
    state = begin(SPEC, 1, 0, 0)
    with pytest.raises(Conflict, match="resume is not possible in phase progressing"):
        apply(SPEC, state, Resume(), 1, 0)
    gone = apply(SPEC, state, Abort(), 1, 0)
    assert (gone.phase, gone.weight) == (Phase.ABORTED, 0)
    for event in (Promote(), Pause(), Advance(), Abort(), Undo(), SetWeight(5)):
        with pytest.raises(Conflict, match="phase aborted"):
            apply(SPEC, gone, event, 2, 0)
    with pytest.raises(InvalidInput, match="percentage"):
        apply(SPEC, state, SetWeight(101), 1, 0)
    with pytest.raises(Conflict, match="not newer"):
        apply(SPEC, state, AdoptVersion(1), 1, 0)


def test_promote_full_then_undo() -> None:
    full = apply(SPEC, begin(SPEC, 1, 0, 0), Promote(full=True), 1, 0)
    assert (full.phase, full.weight, full.steps_on_evidence()) == (Phase.WATCHING, 100, {0})
    undone = apply(SPEC, apply(SPEC, full, Complete(), 2, 0), Undo(), 3, 0)
    assert (undone.phase, undone.weight) == (Phase.UNDONE, 0)


def test_a_breach_during_a_pause_steps_back_and_stays_paused() -> None:
    state = begin(SPEC, 1, 0, 0)
    for _ in range(2):
        state = apply(SPEC, state, Advance(), 1, 0)
    back = apply(SPEC, apply(SPEC, state, Pause(), 2, 0), StepBack(), 3, 9)
    assert (back.phase, back.weight, back.attempt, back.evidence_seq) == (Phase.PAUSED, 1, 2, 9)


def test_step_backs_for_one_guard_end_in_a_pause_and_an_operator_begins_anew() -> None:
    state = apply(SPEC, begin(SPEC, 1, 0, 0), Promote(full=True), 1, 0)
    assert RolloutState.from_json({k: v for k, v in state.to_json().items() if k != "step_backs"}).step_backs == {}
    for guard, phase in (("bias", Phase.DEGRADED), ("p99_ms_max", Phase.DEGRADED), ("bias", Phase.PAUSED)):
        state = apply(SPEC, state, StepBack(guard), 2, 0)
        assert state.phase == phase
    assert (state.step, dict(state.step_backs)) == (0, {"bias": 2, "p99_ms_max": 1})
    assert apply(SPEC, state, Resume(), 3, 0).step_backs == {}


def test_a_new_candidate_is_a_new_attempt_only_if_the_old_evidence_was_looked_at() -> None:
    state = begin(SPEC, 1, 0, 0)
    unspent = apply(SPEC, state, AdoptVersion(2, reset_evidence=True, new_attempt=False), 5, 7)
    assert (unspent.attempt, unspent.evidence_from_ms, unspent.evidence_version) == (1, 5, 2)
    assert apply(SPEC, state, AdoptVersion(2, reset_evidence=True, new_attempt=True), 5, 7).attempt == 2
    kept = apply(SPEC, state, AdoptVersion(2), 5, 7)
    assert (kept.candidate_version, kept.evidence_from_ms, kept.evidence_version) == (2, 0, 1)


def test_state_survives_json() -> None:
    state = apply(SPEC, begin(SPEC, 1, 0, 0), Advance(), 1, 5)
    assert RolloutState.from_json(state.to_json()) == state


def test_writers_with_an_old_version_are_told_so(tmp_path: Path) -> None:
    store = SqliteControlStore(tmp_path / "control.db")
    stored = started(store)
    change(store, stored, Advance())
    with pytest.raises(StaleVersion, match="rollout"):
        change(store, stored, Pause())
    endpoint = store.endpoint("ranker")
    with pytest.raises(StaleVersion, match="endpoint"):
        store.put_endpoint(endpoint, WHO, expected=endpoint.resource_version - 1)
    with pytest.raises(Conflict, match="a rollout owns"):
        store.put_endpoint(endpoint.model_copy(update={"weight": 90.0}), WHO)
    killed = store.put_endpoint(endpoint.model_copy(update={"killed": True}), WHO, endpoint.resource_version, "kill")
    assert killed.resource_version == endpoint.resource_version + 1
    with pytest.raises(NotFound):
        store.endpoint("absent")
    with pytest.raises(NotFound):
        store.rollout("absent")
    store.close()


def test_a_reader_in_another_connection_sees_that_something_changed(tmp_path: Path) -> None:
    writer, lane = SqliteControlStore(tmp_path / "control.db"), SqliteControlStore(tmp_path / "control.db")
    before = lane.data_version()
    assert lane.data_version() == before
    stored = started(writer)
    assert lane.data_version() != before
    change(writer, stored, Advance())
    assert lane.endpoints()["ranker"].weight == 1.0


def test_the_audit_refuses_to_forget(tmp_path: Path) -> None:
    store = SqliteControlStore(tmp_path / "control.db")
    stored = started(store)
    endpoint = store.endpoint("ranker")
    store.save_rollout(stored, apply(SPEC, stored.state, Pause(), 2, 0), endpoint, WHO, "pause", {}, b"sums", b"basis")
    raw = sqlite3.connect(tmp_path / "control.db")
    for change in ("DELETE FROM audit_basis", "UPDATE audit_basis SET packed = x'00'"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            raw.execute(change)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        raw.execute("DELETE FROM audit")
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        raw.execute("UPDATE audit SET actor = 'nobody'")


WRITER = """
import sys
from pathlib import Path
from serving.rollout.spec import Rollout
from serving.rollout.state import Advance, StepBack, apply
from serving.rollout.sqlite_store import SqliteControlStore
from serving.rollout.store import Who
store = SqliteControlStore(Path(sys.argv[1]))
now = 10
while True:
    stored = store.rollout("ranker")
    event = StepBack() if stored.state.step else Advance()
    if stored.state.phase in ("degraded", "paused"):
        from serving.rollout.state import Recover, Resume
        event = Recover() if stored.state.phase == "degraded" else Resume()
    now += 1
    state = apply(stored.spec, stored.state, event, now, 0)
    endpoint = store.endpoint("ranker").model_copy(update={"weight": state.weight})
    store.save_rollout(stored, state, endpoint, Who("child", "loop", now), event.verb)
    print(now, flush=True)
"""


def test_kill_9_leaves_rollout_endpoint_and_audit_together(tmp_path: Path) -> None:
    path = tmp_path / "control.db"
    first = SqliteControlStore(path)
    started(first)
    first.close()
    for wait in (1, 3, 6):
        child = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        for _ in range(wait):
            assert child.stdout.readline()
        time.sleep(0.001 * wait)  # somewhere within a write; every place must do
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
        store = SqliteControlStore(path)
        stored, endpoint, audit = store.rollout("ranker"), store.endpoint("ranker"), store.audit("ranker")
        store.close()
        assert endpoint.weight == stored.state.weight == audit[-1].after["state"]["weight"]
        assert stored.resource_version == len(audit) - 1
