"""A lane whose traffic log stands still: answers go on, what is lost is counted by reason, nothing is acknowledged."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from handmade import SCHEMA, random_rows
from installation import Installation, eventually, running
from redis_process import RedisProcess

from pipeline.errors import BatonError, InvalidInput
from pipeline.features import Features
from pipeline.traffic.log import FeedbackEntry, Outcome
from serving.client import RankingClient
from serving.config import Config
from serving.wiring.traffic import open_traffic_log

FIT = ("--appendonly", "yes")


def test_answers_go_on_while_redis_stands_still(tmp_path: Path) -> None:
    with RedisProcess(tmp_path / "redis", *FIT) as server:
        settings = {"url": server.address.url, "buffer": 20, "commit_interval": "1ms"}
        made = Installation(tmp_path / "home", traffic=settings)
        features = Features.from_context(SCHEMA, random_rows(np.random.default_rng(1), 3, made.tables))
        with running(made.config) as lane, RankingClient(lane.target) as client, ThreadPoolExecutor(1) as waiting:

            def answer() -> str:
                return client.rank("ranker", SCHEMA, features, routing_key="ann").prediction_id

            before = answer()
            assert client.feedback([FeedbackEntry(before, outcomes=[Outcome(0, 1.0)])])[0].outcomes == ("accepted",)
            server.signal(signal.SIGSTOP)
            ids = [answer() for _ in range(100)]
            assert all(ids)
            label = waiting.submit(client.feedback, [FeedbackEntry(ids[0], outcomes=[Outcome(0, 1.0)])])
            dropped = lane.lane.writer.counters().dropped
            assert dropped["full"] >= 100 - 20 - 2 * 20  # what waits, and what the writer took along before and after
            assert not label.done()
            server.signal(signal.SIGCONT)
            assert label.result(30)[0].outcomes == ("accepted",)
            assert client.feedback([FeedbackEntry(answer(), exposed_all=True, outcomes=[Outcome(0, 1.0)])])
            counted = lane.lane.writer.counters()
            eventually(
                lambda: (c := lane.lane.writer.counters()).offered == 102 == c.committed + sum(c.dropped.values()),
                f"every prediction is committed or counted: {counted}",
            )
        log = open_traffic_log(made.config)
        assert log.stats(0).predictions == lane.lane.writer.counters().committed
        log.close()
        made.store.close()


def test_a_redis_that_would_lose_labels_is_refused_by_the_setting_at_fault(tmp_path: Path) -> None:
    with RedisProcess(tmp_path / "redis", *FIT, "--maxmemory-policy", "allkeys-lfu") as server:
        config = Config.model_validate({"home": tmp_path, "traffic": {"url": server.address.url}})
        with pytest.raises(InvalidInput, match="noeviction"):
            open_traffic_log(config)
    with pytest.raises(BatonError, match=r"traffic: there is no password in \$NOT_THERE"):
        open_traffic_log(
            Config.model_validate(
                {"home": tmp_path, "traffic": {"url": "redis://127.0.0.1:1", "password_env": "NOT_THERE"}}
            )
        )
