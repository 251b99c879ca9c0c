"""Restarts of the controller: it goes on from its stored sums, bit for bit, and reads each labelled prediction once."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from redis_process import RedisProcess
from rollout_world import SPEC, World

from pipeline.errors import NotReady
from pipeline.traffic.log import Labelled
from serving.rollout import reader
from serving.rollout.analysis import RolloutAnalysis
from serving.rollout.figures import RolloutFigures
from serving.rollout.routing import ArmSpec, Endpoint
from serving.rollout.spec import AfterFull, SliceGuard
from serving.rollout.state import Abort, Pause, Phase
from serving.rollout.store import ControlStore, Who
from serving.state.redis.control_store import RedisControlStore

LONG = SPEC.model_copy(update={"after_full": AfterFull(watch=1000.0)})
SLICED = LONG.model_copy(
    update={
        "step_backs_max": 9,
        "guards": SPEC.guards.model_copy(
            update={"segments": (SliceGuard(field="tab", values=("home",), logloss_delta_max=0.1),)}
        ),
        "analysis": SPEC.analysis.model_copy(update={"segments": ("price",)}),
    }
)
DURABLE = ("--appendonly", "yes", "--maxmemory-policy", "noeviction")
NOBODY = Who("ada", "set", 1)


def lived(
    folder: Path, restarts: Sequence[int], store: ControlStore | None = None
) -> tuple[bytes | None, list[tuple[str, str, dict[str, object]]]]:
    """Sums and verdicts of a rollout that is entered on evidence, turns bad and is paused, through restarts at seconds."""
    folder.mkdir()
    world = World(folder)
    if store is not None:
        store.put_endpoint(world.store.endpoint("ranker").model_copy(update={"resource_version": 0}), NOBODY)
        world.store.close()
        world.store, world.controller = store, None  # type: ignore[assignment]
        world.controller = world.new_controller()
    world.controller.start(SLICED, "ada", "try it", version=1)
    for second in range(70):
        if second in restarts:
            world.controller = world.new_controller()
        if second == 45:
            world.bias = 0.9
        world.seconds(1)
    stored = world.controller.command("ranker", Pause(), "ada", "compare")
    sums = world.store.sums(stored.id)
    audit = [(entry.verb, entry.reason, dict(entry.evidence)) for entry in world.store.audit("ranker")]
    world.log.close()
    world.store.close()
    return sums, audit


RESTARTS = np.random.default_rng(5).choice(np.arange(1, 70), 12, replace=False).tolist()


def test_restarts_at_any_time_change_no_sum_and_no_decision(tmp_path: Path) -> None:
    plain, decided = lived(tmp_path / "plain", ())
    assert plain is not None
    assert {"advance", "step_back", "recover", "pause"} <= {verb for verb, _, _ in decided}
    assert lived(tmp_path / "restarted", RESTARTS) == (plain, decided)


@pytest.mark.long
def test_restarts_over_redis_change_nothing_either(tmp_path: Path) -> None:
    plain = lived(tmp_path / "plain", ())
    with RedisProcess(tmp_path / "redis", *DURABLE) as server:
        assert lived(tmp_path / "shared", RESTARTS, RedisControlStore(server.address)) == plain


class Counting:
    """The log of a world, with the entries that were read of it."""

    def __init__(self, world: World) -> None:
        self._log = world.log
        self.read: list[int] = []

    def labelled(self, after: int, limit: int = 256) -> list[Labelled]:
        entries = self._log.labelled(after, limit)
        self.read += [entry.seq for entry in entries]
        return entries

    def __getattr__(self, name: str) -> object:
        return getattr(self._log, name)


@pytest.fixture
def counting(world: World) -> Counting:
    counted = Counting(world)
    world.log = counted  # type: ignore[assignment]
    world.controller = world.new_controller()
    return counted


def others(world: World, number: int) -> None:
    """More endpoints with a rollout each; all traffic is the ranker's."""
    for at in range(number):
        name = f"shop{at}"
        world.store.put_endpoint(Endpoint(name=name, stable=ArmSpec(bundle="old", version=1)), NOBODY)
        world.controller.start(SPEC.model_copy(update={"endpoint": name}), "ada", "too", version=1)


def test_a_labelled_prediction_is_read_once_for_all_rollouts(
    world: World, counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    others(world, 3)
    world.seconds(3)
    unpacked: list[bytes] = []
    whole = reader.unpack
    monkeypatch.setattr(reader, "unpack", lambda record: unpacked.append(record) or whole(record))
    assert not unpacked, "no rollout is of the ranker yet"
    before = len(counting.read)
    world.controller.start(SPEC, "ada", "try it", version=1)
    del counting.read[before:]  # the newest are looked at for how long the evidence will take
    world.seconds(10)
    last = world.log.stats(world.clock.now).last_seq
    assert counting.read == list(range(1, last + 1))
    assert len(unpacked) == world.controller.snapshot("ranker").seq - world.store.rollout("ranker").state.evidence_seq


def test_after_a_restart_nothing_is_read_again_but_what_came_since_the_sums_were_stored(
    world: World, counting: Counting
) -> None:
    others(world, 2)
    world.controller.start(LONG, "ada", "try it", version=1)
    world.seconds(62)
    before = world.controller.snapshot("ranker")
    counting.read.clear()
    world.controller = world.new_controller()
    world.controller.step()
    assert len(counting.read) < 60, "two seconds of ten predictions, and not a minute"
    assert world.controller.snapshot("ranker") == before


def test_a_rollout_without_sums_catches_up_and_joins_the_others(world: World, counting: Counting) -> None:
    others(world, 1)
    world.controller.start(LONG, "ada", "try it", version=1)
    world.seconds(62)
    before = world.controller.snapshot("ranker")
    rollout = world.store.rollout("ranker").id
    with sqlite3.connect(world.folder / "control.db") as db:  # as version 0.1 left it
        db.execute("DELETE FROM sums WHERE rollout = ?", (rollout,))
    counting.read.clear()
    world.controller = world.new_controller()
    world.controller.step()
    assert world.controller.snapshot("ranker").seq == before.seq
    assert world.controller.snapshot("ranker").exposed == before.exposed
    counting.read.clear()
    world.seconds(61)
    assert len(counting.read) == len(set(counting.read)), "one reader again"
    assert world.store.sums(rollout) is not None


def test_sums_that_another_version_stored_are_read_from_the_log_again(world: World) -> None:
    world.controller.start(SPEC, "ada", "try it", version=1)
    world.seconds(20)
    before = world.controller.snapshot("ranker")
    world.store.put_sums(world.store.rollout("ranker").id, b"of the future")
    world.controller = world.new_controller()
    world.controller.step()
    assert world.controller.snapshot("ranker") == before


def test_ended_rollouts_are_not_read_for(world: World, counting: Counting) -> None:
    world.controller.start(SPEC, "ada", "try it", version=1)
    world.seconds(5)
    world.controller.command("ranker", Abort(), "ada", "enough")
    counting.read.clear()
    world.seconds(5)
    assert not counting.read
    assert world.controller.snapshot("ranker").exposed > 0, "who asks is told"


def test_an_ended_rollout_keeps_its_figures_and_verdicts_and_gives_up_its_sums(world: World) -> None:
    def all_shown() -> tuple[RolloutFigures, list[object]]:
        audit = [entry for entry in world.store.audit("ranker") if entry.rollout == rollout]
        shown = world.controller.snapshot(rollout)
        return replace(shown, long_run=None), [world.controller.explain(entry.seq) for entry in audit]

    rollout = world.controller.start(SLICED, "ada", "try it", version=1).id
    world.seconds(30)
    world.controller.command("ranker", Abort(), "ada", "enough")
    world.seconds(3)
    shown, explained = all_shown()
    sums = world.store.sums(rollout)
    assert sums is not None
    assert shown.segments
    assert len(shown.phases) > 2
    world.clock.now += world.log.late_limit_ms - 60_000
    world.controller.step()
    assert len(world.store.sums(rollout) or b"") == len(sums), "until then a label may change them"
    world.clock.now += 3_700_000
    for _ in range(2):
        world.controller.step()
        left = world.store.sums(rollout)
        assert left is not None
        assert len(left) < len(sums) / 3
        assert all_shown() == (shown, explained)
        world.controller = world.new_controller()


@pytest.mark.parametrize("where", ["add", "_count"])
def test_rows_that_cannot_be_counted_stop_one_rollout_alone_and_are_read_again(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    others(world, 1)
    world.controller.start(LONG, "ada", "try it", version=1)
    world.seconds(3)

    def broken(self: RolloutAnalysis, *args: object) -> None:
        raise ValueError("a row of the future")

    with monkeypatch.context() as patched:
        patched.setattr(RolloutAnalysis, where, broken)
        world.seconds(2)
    assert "a row of the future" in caplog.text
    world.seconds(120, until=Phase.WATCHING)
    sums = world.controller.snapshot("ranker")
    read = world.log.labelled(world.store.rollout("ranker").state.evidence_seq, 10_000)
    assert sum(phase.rows for phase in sums.phases) == sums.paired == sum(len(entry.indices) for entry in read)


def test_an_endpoint_that_cannot_be_read_stops_no_other_rollout(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    others(world, 1)
    world.controller.start(LONG, "ada", "try it", version=1)
    whole = world.store.endpoint

    def one(name: str) -> Endpoint:
        if name == "shop0":
            raise NotReady("shop0 is damaged")
        return whole(name)

    def every() -> dict[str, Endpoint]:
        raise NotReady("shop0 is damaged")

    monkeypatch.setattr(world.store, "endpoint", one)
    monkeypatch.setattr(world.store, "endpoints", every)
    world.seconds(120, until=Phase.WATCHING)
