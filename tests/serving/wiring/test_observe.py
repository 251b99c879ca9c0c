"""What rollouts are told of the processes: read once per pass, for all of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from clocks import MillisecondClock

from pipeline.bundle.versions import Repository
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
