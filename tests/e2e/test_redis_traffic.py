"""A whole installation whose traffic log is in Redis: the same story as over SQLite, and Redis in trouble."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import ENDPOINT, Machine, Models, until
from redis_process import RedisProcess

from pipeline.traffic.log import Labelled, TrafficLog
from serving.cli.replay import Replay
from serving.wiring.traffic import open_traffic_log

pytestmark = pytest.mark.long

SECONDS = 12.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisProcess]:
    with RedisProcess(tmp_path / "redis", "--appendonly", "yes", "--appendfsync", "always") as server:
        yield server


@pytest.fixture
def machine(models: Models, tmp_path: Path, server: RedisProcess) -> Iterator[Machine]:
    made = Machine(tmp_path / "home", models, traffic={"attribution_window": "4s", "url": server.address.url})
    made.start()
    yield made
    made.stop()


def everything(log: TrafficLog) -> list[Labelled]:
    entries: list[Labelled] = []
    while page := log.labelled(entries[-1].seq if entries else 0):
        entries += page
    return entries


def test_labels_reach_worker_and_shadow_through_redis_once(machine: Machine, server: RedisProcess) -> None:
    begin = time.monotonic()

    def harm() -> None:
        """The control process dies, then Redis, then Redis stands still: labels are sent again until they are taken."""
        time.sleep(2.0)
        pid = machine.kill("control")
        assert pid is not None
        time.sleep(2.0)
        server.kill()
        server.start()
        time.sleep(2.0)
        server.signal(signal.SIGSTOP)
        time.sleep(1.0)
        server.signal(signal.SIGCONT)

    trouble = threading.Thread(target=harm, name="trouble")
    sender = Replay(machine.target, ENDPOINT, machine.log.schema, rate=25.0, label_delay=0.3)
    trouble.start()
    requests = machine.log.requests(0.5, 1.0)
    report = asyncio.run(sender.run(requests, lambda: time.monotonic() > begin + SECONDS))
    trouble.join()
    assert not report.errors, report.errors
    assert not (machine.home / "traffic").exists()

    log = open_traffic_log(machine.config)
    until(lambda: log.stats(0).open_predictions == 0, "every prediction is closed")
    lost = sum(machine.status("lane-0")["writer"]["dropped"].values())
    entries = everything(log)
    rows = Counter((e.prediction_id, int(i), e.revision) for e in entries for i in e.indices)
    assert max(rows.values()) == 1
    assert len({e.prediction_id for e in entries}) + lost >= report.requests
    until(lambda: not log.unscored("", 1 << 60).found, "both arms have scored every prediction")
    until(lambda: machine.status("worker").get("position", 0) > 0.8 * entries[-1].seq, "the worker keeps up")
    log.close()
