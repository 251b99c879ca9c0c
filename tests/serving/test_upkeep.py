"""What the control process throws away, and what it must not."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.features import Rows
from pipeline.hashing import hash_value
from pipeline.model import Model
from pipeline.schema import FieldSpec, Schema
from pipeline.versions import Repository
from serving.upkeep import sweep_segments
from transfer.model import ClickModel

SCHEMA = Schema(fields=(FieldSpec(name="user", role="context"), FieldSpec(name="item", role="candidate")))


def test_segments_of_served_and_newest_versions_and_their_bases_stay(tmp_path: Path) -> None:
    repository, segments = Repository(tmp_path / "bundles"), tmp_path / "segments"
    model = ClickModel.create(SCHEMA, "fm", 4, seed=0)
    model.save_bundle(repository, "m")
    for number in range(2, 9):
        ids = np.array([[hash_value("user", number), hash_value("item", number)]])
        model.step(Rows(ids, np.empty((1, 0), np.float32)), np.ones(1, np.float32))
        deltas = [str(v) for v in range(2, number)]
        model.save_delta(repository, "m", base="1", deltas=deltas, version=repository.reserve("m"))
    for version in repository.versions("m"):
        Model.load(repository, "m", version, segments=segments)
    lane = {"endpoints": {"ranker": {"candidate": {"bundle": "m", "version": "3", "wanted": "4"}}}}
    assert sweep_segments(segments, repository, {"lane-0": lane}) == 2
    left = sorted(path.name.split(".")[0] for path in (segments / "m").iterdir() if not path.name.startswith("."))
    assert left == ["1", "3", "4", "6", "7", "8"]
    assert sweep_segments(segments, repository, {"lane-0": lane}) == 0
