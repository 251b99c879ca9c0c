"""A lane whose bundles lie behind a URL: it serves what is there, and what comes later, from its own copy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from handmade import SCHEMA, Reference, random_rows
from installation import WHO, Installation, eventually, running

from pipeline.features import Features
from serving.client import RankingClient
from serving.config import Config
from serving.rollout.routing import ArmSpec, Endpoint
from serving.rollout.sqlite_store import SqliteControlStore


def test_a_lane_serves_from_a_url_and_follows_what_is_published_there(tmp_path: Path) -> None:
    there = Installation(tmp_path / "there")
    path = tmp_path / "baton.yaml"
    path.write_text(f"home: here\nbundles: file://{there.config.repository}\nlisten: {{grpc_port: 0}}\n")
    config = Config.load(path)
    store = SqliteControlStore(config.control_db)
    store.put_endpoint(
        Endpoint(name="ranker", stable=ArmSpec(bundle="teacher"), candidate=None, weight=0, salt="ranker"), WHO
    )
    features = Features.from_context(SCHEMA, random_rows(np.random.default_rng(1), 10, there.tables))
    with running(config) as lane, RankingClient(lane.target) as client:
        for version, seed in (("1", None), ("2", 5)):
            if seed is not None:
                there.publish("teacher", seed)
            eventually(
                lambda v=version: client.rank("ranker", SCHEMA, features).version == v, f"version {version}", 60.0
            )
            expected = Reference([there.repository.open("teacher", version)]).score(features.rows(SCHEMA))
            np.testing.assert_allclose(client.rank("ranker", SCHEMA, features).scores, expected, atol=1e-6)
    fetched = {str(found.relative_to(config.repository).parent) for found in config.repository.glob("*/*/dense.onnx")}
    assert fetched == {"teacher/1", "teacher/2"}  # the student is nobody's arm here
    store.close()
