"""Sampling of recorded traffic: by request and by key, and answers that are not recorded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from handmade import SCHEMA, random_rows
from installation import Installation, eventually, running

from pipeline.features import Features
from pipeline.traffic.log import FeedbackEntry, Outcome
from pipeline.traffic.prediction import PredictionIds
from pipeline.traffic.record import unpack
from pipeline.traffic.sampling import TrafficSample
from serving.client import RankingClient
from serving.wiring.traffic import open_traffic_log

KEYS = [f"user-{i}" for i in range(60)]


@pytest.mark.parametrize("by", ["request", "key"])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_the_share_is_the_rate_and_a_higher_rate_only_adds(by: str, rate: float) -> None:
    ids = PredictionIds(bytes(32))
    dice = np.random.default_rng(3)
    drawn = [(ids.derive(i, str(i)), int(h)) for i, h in enumerate(dice.integers(1, 1 << 63, 20_000))]
    kept = {request for request in drawn if TrafficSample(rate, by).keeps(*request)}  # type: ignore[arg-type]
    assert len(kept) == pytest.approx(20_000 * rate, abs=4 * (20_000 * rate * (1 - rate)) ** 0.5)
    assert TrafficSample(rate, by).probability == rate  # type: ignore[arg-type]
    assert kept <= {request for request in drawn if TrafficSample(min(1.0, rate + 0.2), by).keeps(*request)}  # type: ignore[arg-type]


def test_by_key_all_of_a_key_or_nothing_is_recorded(tmp_path: Path) -> None:
    made = Installation(tmp_path / "home", traffic={"sample": {"rate": 0.5, "by": "key"}})
    features = Features.from_context(SCHEMA, random_rows(np.random.default_rng(1), 3, made.tables))
    log = open_traffic_log(made.config)
    with running(made.config) as lane, RankingClient(lane.target) as client:
        answers = {key: [client.rank("ranker", SCHEMA, features, routing_key=key) for _ in range(3)] for key in KEYS}
        recorded = {key: {bool(a.prediction_id) for a in given} for key, given in answers.items()}
        assert {frozenset(r) for r in recorded.values()} == {frozenset({True}), frozenset({False})}
        ids = {a.prediction_id for given in answers.values() for a in given} - {""}
        assert lane.lane.status().counters["unsampled"] == 3 * len(KEYS) - len(ids)
        eventually(lambda: lane.lane.writer.counters().committed == len(ids), "all are committed")
        assert {unpack(blob).prediction_id for _, blob in log.predictions("", 1000)} == ids
        (reply,) = client.feedback([FeedbackEntry("", outcomes=[Outcome(0, 1.0)])])
        assert reply.outcomes == ("invalid",)
        assert "was not recorded" in reply.reason
    log.close()
    made.store.close()
