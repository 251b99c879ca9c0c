"""What rollouts are told of the processes: read once per pass, for all of them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from clocks import MillisecondClock
from handmade import random_tables, write_bundle

from pipeline.bundle.bundle import GateReport
from pipeline.bundle.versions import Repository
from pipeline.schema import FieldSpec, Schema
from pipeline.traffic.writer import WriterCounters
from serving.rollout.routing import ArmSpec, Endpoint
from serving.rollout.spec import Rollout
from serving.rollout.state import Phase, begin
from serving.rollout.store import StoredRollout
from serving.runtime import status
from serving.runtime.status import LaneArm, LaneStatus, RecentTotals, ScoreSums, ShadowStatus
from serving.state.kill import KillSwitch
from serving.wiring.observe import Observer

NAMES = ("ranker", "shop")


def rollout(name: str) -> StoredRollout:
    spec = Rollout.parse(
        f"{{endpoint: {name}, candidate: {{bundle: new}}, guards: {{}}, steps: [{{weight: 10, bias_below: 0.1}}]}}"
    )
    return StoredRollout(f"{name}-1", spec, begin(spec, 1, 0, 0), 0, 1)


def report(folder: Path, clock: MillisecondClock, requests: int) -> None:
    recent = RecentTotals(seconds=5, requests=requests, p99_ms=1.0, counts={0: requests})
    arms = {name: {"candidate": LaneArm(recent=recent)} for name in NAMES}
    for lane in ("lane-0", "lane-1"):
        status.write(folder, lane, LaneStatus(process=lane, time_ms=clock.now, endpoints=arms))
    paired = {name: ScoreSums(seconds=5, rows=requests, stable=1.0, candidate=2.0) for name in NAMES}
    status.write(folder, "shadow", ShadowStatus(process="shadow", time_ms=clock.now, paired=paired))


def test_all_rollouts_of_a_pass_see_the_same_statuses(tmp_path: Path) -> None:
    clock, folder = MillisecondClock(), tmp_path / "status"
    folder.mkdir()
    observer = Observer(folder, Repository(tmp_path / "bundles"), KillSwitch(tmp_path / "kill"), clock)
    report(folder, clock, 10)
    endpoints = {name: Endpoint(name=name, stable=ArmSpec(bundle="old", version=1)) for name in NAMES}
    seen = observer()
    first = seen(rollout("ranker"), endpoints["ranker"])
    assert (first.requests, first.scored_rows, first.predicted_candidate) == (20, 10, 2.0)
    report(folder, clock, 50)
    assert seen(rollout("shop"), endpoints["shop"]).requests == 20, "what was read when the pass began"
    assert observer()(rollout("shop"), endpoints["shop"]).requests == 100


def test_an_ended_rollout_asks_for_no_versions(tmp_path: Path) -> None:
    clock, folder = MillisecondClock(), tmp_path / "status"
    folder.mkdir()

    class Asked(Repository):
        def versions(self, bundle: str) -> list[str]:
            raise AssertionError("the repository is not listed for it")

    observer = Observer(folder, Asked(tmp_path / "bundles"), KillSwitch(tmp_path / "kill"), clock)
    one = rollout("ranker")
    ended = replace(one, state=replace(one.state, phase=Phase.COMPLETED))
    assert observer()(ended, Endpoint(name="ranker", stable=ArmSpec(bundle="old", version=1))).versions == ()


def test_a_rollout_is_told_of_whole_versions_alone_and_of_repaired_ones_later(tmp_path: Path) -> None:
    clock, folder = MillisecondClock(), tmp_path / "status"
    folder.mkdir()
    repository = Repository(tmp_path / "bundles")
    tables = random_tables(1, 20)
    write_bundle(repository, tables, name="old")
    paths = [write_bundle(repository, tables, name="new", metrics={"score_shift": 0.1}).path for _ in range(4)]
    other = Schema(fields=(FieldSpec(name="user", role="candidate"), FieldSpec(name="item", role="candidate")))
    write_bundle(repository, {name: tables[name] for name in ("user", "item")}, name="new", schema=other)
    whole = (paths[2] / "manifest.json").read_bytes()
    (paths[2] / "manifest.json").write_text("")
    verdicts: dict[str, str | None] = {"2": None, "4": "it died"}
    observer = Observer(
        folder, repository, KillSwitch(tmp_path / "kill"), clock, lambda bundle, version: verdicts.get(version, "")
    )
    endpoint = Endpoint(name="ranker", stable=ArmSpec(bundle="old"))

    def versions() -> list[int]:
        return [each.number for each in observer()(rollout("ranker"), endpoint).versions]

    assert versions() == []  # of 2 it is not known yet, 3 has no manifest, 4 died, 5 has inputs of its own
    verdicts["2"] = ""
    (paths[2] / "manifest.json").write_bytes(whole)
    assert versions() == [2, 3]


def test_a_shift_is_told_against_what_serves_and_not_against_the_version_before(tmp_path: Path) -> None:
    clock, folder, repository = MillisecondClock(), tmp_path / "status", Repository(tmp_path / "bundles")
    folder.mkdir()
    tables = random_tables(1, 20)
    write_bundle(repository, tables, name="old")

    def publish(shift: float | None, since: str | None, judged: bool = True) -> Path:
        metrics = {} if shift is None else {"score_shift": shift}
        gate = GateReport(passed=True) if judged else None
        made = write_bundle(
            repository, tables, name="new", metrics=metrics, shift_from=since, gate=gate, publisher="worker"
        )
        return made.path

    publish(None, None)
    publish(-0.3, "1")
    publish(0.008, "2")
    publish(0.01, "1", judged=False)
    observer = Observer(folder, repository, KillSwitch(tmp_path / "kill"), clock)
    endpoint = Endpoint(name="ranker", stable=ArmSpec(bundle="old"))
    seen = observer()(rollout("ranker"), endpoint).versions
    assert [(each.number, each.passed, each.publisher) for each in seen] == [
        (2, True, "worker"),
        (3, True, "worker"),
        (4, False, "worker"),
    ]
    assert seen[1].shift == pytest.approx(0.7 * 1.008 - 1)
    shutil.rmtree(repository.path("new", "2"))
    assert observer()(rollout("ranker"), endpoint).versions[0].shift == pytest.approx(0.7 * 1.008 - 1), (
        "it is remembered"
    )


def test_serving_that_is_ill_is_told(tmp_path: Path) -> None:
    clock, folder = MillisecondClock(), tmp_path / "status"
    folder.mkdir()
    lanes = ["lane-0", "lane-1", "lane-2"]
    observer = Observer(folder, Repository(tmp_path / "bundles"), KillSwitch(tmp_path / "kill"), clock, lanes=lanes)
    endpoint = Endpoint(name="ranker", stable=ArmSpec(bundle="old", version=1))
    report(folder, clock, 10)
    assert observer()(rollout("ranker"), endpoint).ill == "", "a lane that has never told anything is being started"
    clock.now += 20_000
    full = WriterCounters(away="no space left")
    status.write(folder, "lane-1", LaneStatus(process="lane-1", time_ms=clock.now, writer=full))
    other = {"ranker": {"candidate": LaneArm(version="7", recent=RecentTotals(seconds=5, requests=9, counts={0: 9}))}}
    status.write(folder, "lane-2", LaneStatus(process="lane-2", time_ms=clock.now, endpoints=other))
    one = rollout("ranker")
    just = replace(one, state=replace(one.state, changed_ms=clock.now))
    seen = observer()(just, endpoint)
    for words in (
        "lane-0 is gone",
        "lane-1 cannot write the traffic log: no space left",
        "lane-2 answers with another",
    ):
        assert words in seen.ill
    assert seen.requests == 0, "what another version answered is not this one's"
    clock.now += 61_000
    status.write(folder, "lane-2", LaneStatus(process="lane-2", time_ms=clock.now, endpoints=other))
    assert observer()(just, endpoint).requests == 9, "a lane that never follows is judged by what it answers"
