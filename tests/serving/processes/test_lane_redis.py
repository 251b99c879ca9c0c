"""A lane whose rows are in Redis: what clients get while Redis is killed, paused, flushed and back."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from handmade import random_rows
from installation import Installation, RunningLane, eventually, running, status
from prometheus_client.parser import text_string_to_metric_families
from redis_process import RedisProcess

from pipeline.clock import SystemClock
from pipeline.features import Features
from pipeline.model.model import Model
from serving.client import RankingClient
from serving.runtime.status import dumps, parse
from serving.tiers.cache import CacheUpkeep


class Ranker:
    """A client with one request, and what it should be answered."""

    def __init__(self, made: Installation, client: RankingClient) -> None:
        self._client = client
        segments = Model.load(made.repository, "teacher", "1", segments=made.home / "segments")
        self._schema = segments.schema
        rows = random_rows(np.random.default_rng(0), 20, made.tables)
        self._features = Features.from_context(self._schema, rows)
        self._right = segments.score(self._features)

    def __call__(self) -> list[str]:
        """Ask; every answer is a score per candidate, and the right one unless it says that it is degraded."""
        answer = self._client.rank("ranker", self._schema, self._features, routing_key="u", timeout=2.0)
        assert answer.scores.shape == (20,)
        assert np.isfinite(answer.scores).all()
        if not answer.degraded:
            np.testing.assert_allclose(answer.scores, self._right, atol=1e-5)
        return list(answer.degraded)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisProcess]:
    with RedisProcess(tmp_path / "redis") as process:
        yield process


@pytest.fixture
def made(tmp_path: Path, server: RedisProcess) -> Iterator[Installation]:
    redis = {"url": server.address.url, "breaker_longest_pause": 0.2}
    made = Installation(tmp_path / "home", embedding={"tiers": ["redis"], "budget": 0.05, "redis": redis})
    yield made
    made.store.close()


def refresh(made: Installation, lane: RunningLane) -> None:
    """What the control process does every second."""
    assert made.config.embedding.redis is not None
    upkeep = CacheUpkeep(made.config.embedding.redis, made.repository, SystemClock(), lambda: False)
    upkeep.step(parse({"lane-0": dumps(lane.lane.status())}, 0))
    assert upkeep.report()["error"] is None
    upkeep.close()


def test_clients_are_answered_whatever_redis_does(made: Installation, server: RedisProcess) -> None:
    with running(made.config) as lane, RankingClient(lane.target) as client:
        rank = Ranker(made, client)
        assert rank() == ["embedding: redis incomplete"]
        refresh(made, lane)
        eventually(lambda: rank() == [], "rows come from redis")

        server.signal(signal.SIGSTOP)
        eventually(lambda: rank() == ["embedding: redis open"], "the breaker opens")
        server.signal(signal.SIGCONT)
        eventually(lambda: rank() == [], "redis is back")

        server.kill()
        eventually(lambda: rank() == ["embedding: redis open"], "the breaker opens")
        (tier,) = lane.lane.status().embedding.models["teacher/1"]
        assert tier["breaker"] in ("open", "half_open")
        assert float(tier["late"]) >= 1
        server.start()
        eventually(lambda: rank() == ["embedding: redis incomplete"], "redis is back, and empty")
        refresh(made, lane)
        eventually(lambda: rank() == [], "rows are back")

        def told(name: str, **labels: str) -> float:
            text = (made.home / "run" / "metrics" / "lane-0.prom").read_text()
            samples = [s for family in text_string_to_metric_families(text) for s in family.samples if s.name == name]
            return sum(s.value for s in samples if labels.items() <= s.labels.items())

        eventually(lambda: told("baton_degraded_total", reason="embedding: redis open") > 0, "metrics tell of it")
        tier_of = {"arm": "stable", "tier": "redis"}
        eventually(lambda: told("baton_embedding_tier", **tier_of, figure="breaker_opened") >= 1, "the breaker opened")
        for case in ("hit", "open", "incomplete"):
            eventually(partial(told, "baton_embedding_ids_total", tier="redis", case=case), case)
        assert status(made, "lane-0")["state"] == "ready"
