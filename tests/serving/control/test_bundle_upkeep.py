"""Which versions and segments the control process throws away, and which it must not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from installation import statuses

from pipeline.bundle.bundle import GateReport
from pipeline.bundle.versions import Repository
from pipeline.features import Rows
from pipeline.hashing import hash_value
from pipeline.model.model import Model
from pipeline.schema import FieldSpec, Schema
from serving.control.bundle_upkeep import BundleUpkeep
from serving.rollout.routing import ArmSpec, Endpoint
from serving.rollout.sqlite_store import SqliteControlStore
from serving.rollout.store import Who
from transfer.bundles.publish import Provenance, save
from transfer.click_model.model import ClickModel

SCHEMA = Schema(fields=(FieldSpec(name="user", role="context"), FieldSpec(name="item", role="candidate")))


WHO = Who("ada", "test", 1)


class Home:
    """A repository with two bases of five deltas each, versions 1 to 12, and one upkeep over it."""

    def __init__(self, path: Path) -> None:
        self.repository, self.segments = Repository(path / "bundles"), path / "segments"
        self.store = SqliteControlStore(path / "control.db")
        model = ClickModel.create(SCHEMA, "fm", 4, seed=0)
        for base in (1, 7):
            save(model, self.repository, "m")
            for number in range(base + 1, base + 6):
                ids = np.array([[hash_value("user", number), hash_value("item", number)]])
                model.step(Rows(ids, np.empty((1, 0), np.float32)), np.ones(1, np.float32))
                chain = [str(v) for v in range(base, number)]
                version = self.repository.reserve("m")
                save(model, self.repository, "m", chain=chain, version=version)
        self.model = model

    def step(self, processes: dict[str, Any] | None = None, *, keep: int = 1, worker: bool = False) -> dict[str, int]:
        upkeep = BundleUpkeep(self.repository, self.segments, self.store, keep=keep, worker=worker)
        upkeep.step(statuses(processes or {}))
        return dict(upkeep.counters())

    @property
    def versions(self) -> list[int]:
        return [int(v) for v in self.repository.versions("m")]

    def load(self, *versions: int) -> None:
        for version in versions:
            Model.load(self.repository, "m", str(version), segments=self.segments)

    @property
    def mapped(self) -> list[str]:
        folder = self.segments / "m"
        return sorted(p.name.split(".")[0] for p in folder.iterdir() if not p.name.startswith("."))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def lane(version: str, wanted: str = "") -> dict[str, Any]:
    return {"endpoints": {"ranker": {"candidate": {"bundle": "m", "version": version, "wanted": wanted}}}}


def test_the_newest_and_what_they_build_on_stay(home: Home) -> None:
    assert home.step(keep=100)["versions_removed"] == 0
    assert home.step(keep=2)["versions_removed"] == 6
    assert home.versions == [7, 8, 9, 10, 11, 12]
    assert home.repository.reserve("m") == "13"


def test_what_is_served_or_wanted_stays(home: Home) -> None:
    assert home.step({"lane-0": lane("3", "8")})["versions_removed"] == 3
    assert home.versions == [1, 2, 3, 7, 8, 9, 10, 11, 12]
    home.load(3, 8)


def test_what_endpoints_pin_and_steps_began_with_stays(home: Home) -> None:
    pinned = Endpoint(name="ranker", stable=ArmSpec(bundle="m", version=2), candidate=ArmSpec(bundle="m"))
    home.store.put_endpoint(pinned, Who("someone", "test", 0))
    home.step({"control": {"endpoints": {"ranker": {"step_version": "4"}}}})
    assert home.versions == [1, 2, 3, 4, 7, 8, 9, 10, 11, 12]


def test_without_word_from_the_worker_nothing_of_it_goes(home: Home) -> None:
    assert home.step(worker=True)["versions_removed"] == 0
    home.step({"worker": {"chains": {"m": ["1", "2", "3"]}}}, worker=True)
    assert home.versions == [1, 2, 3, 7, 8, 9, 10, 11, 12]


def test_the_newest_that_may_serve_stays_behind_refused_ones(home: Home) -> None:
    for _ in range(3):
        save(home.model, home.repository, "m", provenance=Provenance(gate=GateReport(passed=False)))
    home.step()
    assert home.versions == [7, 8, 9, 10, 11, 12, 15]


def test_segments_are_merged_and_swept(home: Home) -> None:
    home.load(1, 5, 12)
    assert "2-2" in home.mapped
    done = home.step({"lane-0": lane("12")}, keep=100)
    assert done["segments_merged"] == 1  # deltas 8 to 11; 12 stands alone
    # Of versions 10 and 11, which are kept as well, two deltas of the first run are not in the merged one.
    assert home.mapped == ["10-10", "12-12", "7", "8-11", "8-8", "9-9"]
    home.load(12)
    again = home.step({"lane-0": lane("12")}, keep=100)
    assert (again["segments_merged"], again["segments_removed"], again["failures"]) == (0, 0, 0)


def test_a_damaged_version_that_is_in_use_keeps_what_it_may_build_on_and_nothing_else(home: Home) -> None:
    home.load(6, 11)
    (home.repository.path("m", "12") / "manifest.json").write_text("{")
    for _ in range(4):
        save(ClickModel.create(SCHEMA, "fm", 4, seed=1), home.repository, "other")
    done = home.step({"lane-0": lane("12")})
    assert done["failures"] == 0
    assert home.versions == [7, 8, 9, 10, 11, 12]
    assert home.repository.versions("other") == ["4"]
    assert {"7", "8-8", "11-11"} <= set(home.mapped), "its segments may be any of these"
    assert home.step({})["failures"] == 0
    assert home.versions == [7, 8, 9, 10, 11, 12], "the newest stays, used or not"


@pytest.mark.parametrize("harm", ["manifest", "no manifest", "a file", "tables"])
def test_a_damaged_version_holds_up_no_other_and_is_reported(tmp_path: Path, harm: str) -> None:
    home = Home(tmp_path)
    for name in ("a", "z"):  # before and after it by name
        for _ in range(3):
            save(home.model, home.repository, name)
    folder = home.repository.path("m", "9")
    if harm == "manifest":
        (folder / "manifest.json").write_text("{")
    elif harm == "no manifest":
        (folder / "manifest.json").unlink()
    elif harm == "a file":
        shutil.rmtree(folder)
        folder.write_text("not a folder")
    else:
        next((folder / "tables").iterdir()).unlink()
    home.store.put_endpoint(Endpoint(name="e", stable=ArmSpec(bundle="m", version=9)), WHO)
    upkeep = BundleUpkeep(home.repository, home.segments, home.store, keep=1, worker=False)
    upkeep.look()
    upkeep.step(statuses({}))
    assert list(upkeep.damaged) == ["m/9"]
    assert "9" in upkeep.damaged["m/9"]
    assert home.repository.versions("a") == home.repository.versions("z") == ["3"]
    left = set(home.versions)
    assert left.isdisjoint(range(1, 7)), "what it does not build on went"
    assert {7, 8, 12} <= left, "what it may build on stayed"
    assert folder.exists()
    assert upkeep.counters()["failures"] == 0
