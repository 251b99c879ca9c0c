"""Verbs that take all traffic from a candidate, over a state that cannot be written, cannot be read, or does not answer."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from operated import ME, Operated, operated, rollout_file

from pipeline.errors import NotFound, NotReady
from serving.admin import VERBS, service
from serving.admin.door import request_of
from serving.rollout.sqlite_store import SqliteControlStore


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Operated]:
    with operated(tmp_path / "home") as world:
        yield world


def call(world: Operated, verb: str, key: str = "k", **fields: Any) -> Any:
    asked = VERBS[verb]
    given = {"reason": "a test", **fields} if asked.mutating else fields
    return world.admin.call(asked, request_of(asked, given), ME, key)


def full(world: Operated, on: bool = True) -> None:
    """No write to the state succeeds, that of an idempotency key included."""
    for store in (world.backends.store, world.backends.keys):
        store._db.execute(f"PRAGMA query_only = {int(on)}")  # type: ignore[attr-defined]


STOPS = [
    ("rollouts.abort", {"name": "ranker"}),
    ("rollouts.set_weight", {"name": "ranker", "weight": 0.0}),
]


@pytest.mark.parametrize(("verb", "fields"), STOPS)
def test_what_cannot_be_stored_is_done_by_the_kill_switch(world: Operated, verb: str, fields: dict[str, Any]) -> None:
    call(world, "rollouts.start", "k0", file=rollout_file())
    call(world, "rollouts.set_weight", "k1", name="ranker", weight=50.0)
    full(world)
    with pytest.raises(NotReady, match=r"readonly.*kill switch of 'ranker' is engaged.*kill ranker --release"):
        call(world, verb, reason="clicks collapsed", **fields)
    why = world.kill.why("ranker")
    assert why is not None
    assert why[0].startswith("clicks collapsed; ")
    full(world, False)
    ((_, decision),) = world.controller.step()
    assert decision.reason.startswith("killed: clicks collapsed")
    assert not call(world, "endpoints.release", "k2", name="ranker").killed
    assert call(world, "endpoints.get", name="ranker").weight == 0


def test_other_verbs_say_what_is_wrong_first(world: Operated) -> None:
    call(world, "rollouts.start", "k0", file=rollout_file())
    full(world)
    for fields in ({"name": "ranker", "weight": 20.0}, {"name": "ranker", "weight": 100.0}):
        with pytest.raises(NotReady, match="readonly"):
            call(world, "rollouts.set_weight", **fields)
    assert not world.kill.engaged("ranker")


def test_the_weight_of_an_endpoint_without_a_rollout_too(world: Operated) -> None:
    arms = {"stable": {"bundle": "teacher"}, "candidate": {"bundle": "student"}}
    call(world, "endpoints.set", "k0", name="ranker", weight=30.0, **arms)
    full(world)
    with pytest.raises(NotReady, match="is engaged"):
        call(world, "endpoints.set", name="ranker", weight=0.0, **arms)
    assert world.kill.engaged("ranker")


def test_a_kill_needs_no_write_and_its_audit_entry_comes_later(world: Operated) -> None:
    full(world)
    assert call(world, "endpoints.kill", name="ranker", reason="it burns").killed
    full(world, False)
    for _ in range(2):
        world.admin.endpoints.audit_kills()
    newest = world.backends.store.latest_audit("ranker", limit=2)
    assert [(e.verb, e.reason) for e in newest if e.verb == "kill"] == [("kill", "it burns")]
    call(world, "endpoints.release", "k2", name="ranker")
    (world.made.home / "kill" / "ranker").touch()  # by hand
    world.admin.endpoints.audit_kills()
    (by_hand,) = world.backends.store.latest_audit("ranker", limit=1)
    assert (by_hand.verb, by_hand.actor) == ("kill", "unknown")


def test_a_kill_needs_no_read_either(world: Operated) -> None:
    with pytest.raises(NotFound):
        call(world, "endpoints.kill", name="rankr")
    assert not world.kill.engaged("rankr")
    world.backends.store.close()
    with pytest.raises(NotReady, match=r"'ranker' is killed.*closed database"):
        call(world, "endpoints.kill", name="ranker")
    assert world.kill.engaged("ranker")


def test_a_rollout_loop_that_hangs_holds_no_brake_up(world: Operated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "STOP_WAIT_S", 0.1)
    call(world, "rollouts.start", "k0", file=rollout_file())
    inside, out = threading.Event(), threading.Event()

    def hang() -> None:
        with world.admin.rollouts._lock:
            inside.set()
            out.wait(60)

    thread = threading.Thread(target=hang)
    thread.start()
    inside.wait(60)
    try:
        with pytest.raises(NotReady, match=r"has not ended its pass.*is engaged"):
            call(world, "rollouts.abort", name="ranker")
    finally:
        out.set()
        thread.join()
    assert world.kill.engaged("ranker")


def test_the_first_error_is_the_one_that_is_told(tmp_path: Path) -> None:
    store = SqliteControlStore(tmp_path / "control.db")

    def broken(_: object) -> None:
        # As SQLite does by itself where the disk is full: then there is nothing left to roll back.
        store._db.execute("ROLLBACK")
        raise sqlite3.OperationalError("database or disk is full")

    with pytest.raises(NotReady, match=r"state .*control.db: database or disk is full"):
        store.transact(broken)
    store.close()
