from __future__ import annotations

import numpy as np
from handmade import SCHEMA, random_rows
from installation import Installation, eventually, running

from pipeline.bundle.footprint import Footprint, memory_needed
from pipeline.clock import SystemClock
from pipeline.features import Features
from pipeline.model.model import Model
from serving.client import RankingClient
from serving.lane.desired import DesiredVersions
from serving.lane.loader import VersionLoader
from serving.lane.memory_budget import MemoryBudget
from serving.lane.registry import Registry
from serving.rollout.routing import ArmSpec
from serving.state.kill import KillSwitch


def test_a_version_needs_its_own_tables_and_network_and_no_mapped_base_again(installation: Installation) -> None:
    repository = installation.repository
    alone = memory_needed(repository, "student", "1")
    assert Model.load(repository, "student", "1", segments=installation.config.segments).store.bytes <= alone.shared
    assert memory_needed(repository, "student", "1", loaded={"1"}) == Footprint(alone.private, 0)
    memory_budget = MemoryBudget(repository, 0, lambda: alone.private)
    assert memory_budget.refusal(("student", "1"), []) != ""
    assert memory_budget.refusal(("student", "1"), [("teacher", "1")]) != ""  # another bundle's tables are not shared
    assert memory_budget.refusal(("student", "1"), [("student", "1")]) == ""


def test_a_version_that_does_not_fit_says_so_and_is_loaded_once_another_left(installation: Installation) -> None:
    free = 1 << 40
    repository, home = installation.repository, installation.home
    loader = VersionLoader(
        lambda name, version: Model.load(repository, name, version, segments=installation.config.segments),
        100,
        MemoryBudget(repository, 1 << 20, lambda: free),
    )
    desired = DesiredVersions(installation.store, repository, home / "loads", SystemClock())
    registry = Registry(desired, KillSwitch(home), repository, loader, SystemClock(), retry_s=3600)
    registry.reconcile()
    assert registry.arms()["ranker"]["candidate"].state == "READY"
    free = 1 << 20
    installation.publish("student", 5)
    registry.reconcile()
    registry.reconcile()  # looks again, and finds that version 2 will not do
    arm = registry.arms()["ranker"]["candidate"]
    assert (arm.version, arm.wanted) == ("1", "1")  # the old one goes on
    assert "version 2: it needs about" in arm.reason
    assert "memory_reserve_bytes" in arm.reason
    reports = {report.version: report for report in registry.models() if report.bundle == "student"}
    assert reports["2"].state == "UNAVAILABLE"
    assert "are free" in reports["2"].reason
    free = 1 << 40
    installation.set(candidate=None, weight=0)  # the candidate leaves, and with it its memory
    registry.reconcile()
    installation.set(candidate=ArmSpec(bundle="student"), weight=0)
    registry.reconcile()
    assert registry.arms()["ranker"]["candidate"].version == "2"


def test_a_version_is_warmed_with_what_was_asked(installation: Installation) -> None:
    features = Features.from_context(SCHEMA, random_rows(np.random.default_rng(3), 7, installation.tables))
    with running(installation.config) as lane, RankingClient(lane.target) as client:
        client.rank("ranker", SCHEMA, features)
        found = lane.lane.dispatcher.samples("ranker")
        assert [f.n for f, _ in found] == [7]
        assert lane.lane._samples(["ranker"]) == found
    # After a start nothing was answered yet: the log remembers.
    with running(installation.config) as lane:
        assert not lane.lane.dispatcher.samples("ranker")
        eventually(lambda: [f.n for f, _ in lane.lane._samples(["ranker"])] == [7], "the log gives the request")
        assert np.array_equal(lane.lane._samples(["ranker"])[0][0].rows(SCHEMA).ids, features.rows(SCHEMA).ids)
        assert lane.lane._samples(["nobody"]) == []
