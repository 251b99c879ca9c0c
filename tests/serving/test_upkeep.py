"""What the control process throws away, and what it must not."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.features import Features, IdPart, Rows
from pipeline.hashing import hash_value
from pipeline.model import Model
from pipeline.prediction import PredictionIds, load_secret
from pipeline.schema import FieldSpec, Schema
from pipeline.traffic.log import FeedbackEntry, Outcome
from pipeline.traffic.record import PredictionRecord, pack
from pipeline.versions import Repository
from serving.config import Config, TrafficConfig, WorkerConfig
from serving.rollout.store import ControlStore
from serving.traffic import open_traffic_log
from serving.upkeep import retain_traffic, sweep_segments
from transfer.model import ClickModel

SCHEMA = Schema(fields=(FieldSpec(name="user", role="context"), FieldSpec(name="item", role="candidate")))


def test_segments_that_served_and_newest_versions_are_made_of_stay(tmp_path: Path) -> None:
    repository, segments = Repository(tmp_path / "bundles"), tmp_path / "segments"
    model = ClickModel.create(SCHEMA, "fm", 4, seed=0)
    model.save_bundle(repository, "m")
    for number in range(2, 9):
        ids = np.array([[hash_value("user", number), hash_value("item", number)]])
        model.step(Rows(ids, np.empty((1, 0), np.float32)), np.ones(1, np.float32))
        deltas = [str(v) for v in range(2, number)]
        model.save_delta(repository, "m", base="1", deltas=deltas, version=repository.reserve("m"))
    for _ in range(3):
        model.save_bundle(repository, "m")
    for version in repository.versions("m"):
        Model.load(repository, "m", version, segments=segments)
    lane = {"endpoints": {"ranker": {"candidate": {"bundle": "m", "version": "3", "wanted": "4"}}}}
    assert sweep_segments(segments, repository, {"lane-0": lane}) == 4
    left = sorted(path.name.split(".")[0] for path in (segments / "m").iterdir() if not path.name.startswith("."))
    assert left == ["1", "10", "11", "2-2", "3-3", "4-4", "9"]
    assert sweep_segments(segments, repository, {"lane-0": lane}) == 0


def test_rows_that_the_worker_would_read_again_after_a_crash_are_kept(tmp_path: Path) -> None:
    config = Config(home=tmp_path, worker=WorkerConfig(endpoint="ranker"), traffic=TrafficConfig(retention=1.0))
    store, log = ControlStore(config.control_db), open_traffic_log(config)
    ids = PredictionIds(load_secret(config.secret))
    features = Features(2, (IdPart(np.zeros(1, np.int32), np.ones((2, 1), np.int64)),))
    scores = np.full(2, 0.5, np.float32)
    made = [ids.new(1000 + at) for at in range(10)]
    log.append_predictions(
        [pack(PredictionRecord(one, 1000, "ranker", "stable", "m", 1, features, scores)) for one in made]
    )
    shown = [Outcome(i, 1.0, final=True) for i in range(2)]
    log.append_feedback([FeedbackEntry(one, outcomes=shown, exposed_all=True) for one in made], 2000)
    assert log.join(3000) == 10
    retain_traffic(config, log, store, {"position": 10, "committed": 4}, 60_000)
    assert [entry.seq for entry in log.labelled(0)] == [5, 6, 7, 8, 9, 10]
    retain_traffic(config, log, store, None, 60_000)
    assert len(log.labelled(0)) == 6
    log.close()
    store.close()
