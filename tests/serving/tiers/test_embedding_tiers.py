"""A lane with a device cache above its segments: what it counts, and what the next start begins with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from handmade import random_rows
from installation import Installation, running

from pipeline.features import Features
from serving.client import RankingClient
from serving.telemetry import METRICS_DIR


def test_a_lane_caches_rows_counts_them_and_begins_warm_the_next_time(tmp_path: Path) -> None:
    made = Installation(tmp_path, embedding={"tiers": ["device", "segment"], "device": {"capacity_rows": 5000}})
    schema = made.repository.open("teacher").manifest.model_schema
    features = Features.from_context(schema, random_rows(np.random.default_rng(0), 20, made.tables))
    scores = []
    with running(made.config) as lane:
        with RankingClient(lane.target) as client:
            for _ in range(3):
                scores.append(client.rank("ranker", schema, features, routing_key="u").scores)
        told = lane.lane.status().embedding
    np.testing.assert_array_equal(scores[0], scores[1])
    item = told.lookups["teacher"]["item"]
    assert item["device"]["hit"] > item["segment"]["hit"] > 0
    assert [tier["tier"] for tier in told.models["teacher/1"]] == ["device", "segment"]
    unknown = told.unknown["ranker"]["stable"]["item"]
    assert unknown.ids == sum(sum(cases.get(c, 0) for c in ("hit", "stale")) for cases in item.values())
    assert unknown.unknown == item.get("default", {}).get("hit", 0)
    metrics = (made.home / METRICS_DIR / "lane-0.prom").read_text()
    assert 'baton_unknown_ids_ratio{arm="stable",endpoint="ranker",process="lane-0",table="item"}' in metrics
    assert (
        'baton_embedding_ids_total{bundle="teacher",case="hit",process="lane-0",table="item",tier="device"}' in metrics
    )
    assert (made.home / "hotkeys" / "teacher" / "4.keys").is_file()
    with running(made.config) as lane:
        told = lane.lane.status().embedding
        with RankingClient(lane.target) as client:
            again = client.rank("ranker", schema, features, routing_key="u").scores
        after = lane.lane.status().embedding.lookups["teacher"]["item"]
    np.testing.assert_array_equal(scores[0], again)
    assert told.models["teacher/1"][0]["rows"] > 0
    assert after["device"]["hit"] > 0
