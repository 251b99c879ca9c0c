"""Traffic log in Redis: refused servers, and the loss when a server dies."""

from __future__ import annotations

import doctest
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from redis_process import RedisProcess
from traffic_places import Place
from traffic_samples import IDS, WINDOW_MS, sample

from pipeline.errors import InvalidInput, NotReady
from pipeline.redis.address import RedisAddress
from pipeline.traffic.log import ACCEPTED, FeedbackEntry, Outcome, Scores
from pipeline.traffic.redis import reserve
from pipeline.traffic.redis.log import RedisTrafficLog
from pipeline.traffic.writer import TrafficWriter, WriterLimits

START = 1_000_000
LIMIT_S = 30.0
FIT = ("--appendonly", "yes")


class StoppedClock:
    def wall_ms(self) -> int:
        return START

    def monotonic(self) -> float:
        return 0.0


def clicked(prediction_id: str, row: int = 0) -> FeedbackEntry:
    return FeedbackEntry(prediction_id, (), [Outcome(row, 1.0, final=True)], exposed_all=True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((*FIT, "--maxmemory-policy", "allkeys-lru"), "evicts keys when memory is full .*allkeys-lru.*noeviction"),
        ((*FIT, "--maxmemory-policy", "volatile-ttl"), "evicts keys"),
        (("--appendonly", "no"), "keeps no append-only file.*appendonly yes"),
    ],
)
def test_a_server_that_would_lose_labels_is_refused(tmp_path: Path, options: tuple[str, ...], says: str) -> None:
    with RedisProcess(tmp_path, *options) as server:
        with pytest.raises(InvalidInput, match=says):
            RedisTrafficLog(server.address, IDS)
        with server.client() as client:
            assert client.dbsize() == 0


def test_a_database_of_others_or_of_a_newer_baton_is_refused(traffic_redis: RedisProcess) -> None:
    with traffic_redis.client() as client:
        client.flushall()
        client.set("cake", "apple")
        with pytest.raises(InvalidInput, match="another program's keys"):
            RedisTrafficLog(traffic_redis.address, IDS)
        other = RedisAddress(f"{traffic_redis.address.url}?db=1")
        RedisTrafficLog(other, IDS).close()
        RedisTrafficLog(other, IDS).close()
        assert client.dbsize() == 1
        with other.client(1.0) as one:
            one.set("traffic:format", 99)
        with pytest.raises(InvalidInput, match=r"newer Baton .format 99"):
            RedisTrafficLog(other, IDS)


def test_a_server_that_is_away_is_not_ready(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match="cannot be opened"):
        RedisTrafficLog(RedisAddress(f"unix://{tmp_path}/none.sock"), IDS)


def test_the_reserve_follows_the_memory_of_its_server() -> None:
    assert doctest.testmod(reserve).failed == 0


def test_places_and_watermark_are_consumer_groups(traffic_redis: RedisProcess) -> None:
    log = Place("redis", traffic_redis.address.url)
    log.empty()
    opened = log.open()
    ids = [IDS.new(START + i) for i in range(3)]
    opened.append_predictions([sample(i, START) for i in ids])
    opened.append_feedback([clicked(i) for i in ids[:2]], START)
    opened.append_feedback([FeedbackEntry(ids[0], (), [Outcome(1, 1.0, final=True)])], START)
    opened.append_feedback([FeedbackEntry(ids[0], (), [Outcome(r, 0.0, final=True) for r in (2, 3)])], START)
    opened.join(START)
    opened.commit_position("worker", 1)
    with traffic_redis.client() as client:
        groups = {
            stream: {g["name"]: g["last-delivered-id"] for g in client.xinfo_groups(f"traffic:{stream}")}
            for stream in ("predictions", "labelled")
        }
    opened.close()
    assert groups == {"predictions": {b"join": b"1-0"}, "labelled": {b"worker": b"1-0"}}


def feed(log: RedisTrafficLog, acknowledged: list[str]) -> None:
    """Write until the server is gone, and note each prediction with its label once both are acknowledged."""
    for i in range(100_000):
        prediction_id = IDS.new(START + i)
        record = sample(prediction_id, START + i)
        if i % 3:
            log.append_predictions([record])
        (reply,) = log.append_feedback([clicked(prediction_id, i % 4)], START + i)
        if not i % 3:
            log.append_predictions([record])  # the label was parked
        if i % 10 == 9:
            log.join(START + i - WINDOW_MS // 2)
        assert reply.outcomes == (ACCEPTED,)
        acknowledged.append(prediction_id)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_what_is_acknowledged_survives_kill_9_of_redis(tmp_path: Path, seed: int) -> None:
    acknowledged: list[str] = []
    with RedisProcess(tmp_path, *FIT, "--appendfsync", "always") as server:
        log = RedisTrafficLog(server.address, IDS, WINDOW_MS, timeout=5.0)
        enough = random.Random(seed).randrange(5, 150)

        def kill() -> None:
            while len(acknowledged) < enough:
                time.sleep(0.0005)
            server.kill()

        killer = threading.Thread(target=kill, name="killer")
        killer.start()
        with pytest.raises(NotReady):
            feed(log, acknowledged)
        killer.join()
        server.start()
        while log.join(START + 10**6):
            pass
        seen: set[tuple[str, int]] = set()
        positive: dict[str, list[int]] = {}
        after = 0
        while batch := log.labelled(after):
            for entry in batch:
                assert entry.revision == 0
                rows = {(entry.prediction_id, row) for row in entry.indices.tolist()}
                assert not rows & seen, "a row came out twice"
                seen |= rows
                positive[entry.prediction_id] = entry.indices[entry.labels == 1.0].tolist()
            after = batch[-1].seq
        log.close()
    assert [positive[prediction_id] for prediction_id in acknowledged] == [[i % 4] for i in range(len(acknowledged))]


def test_joins_at_the_same_time_write_each_entry_once(traffic_redis: RedisProcess) -> None:
    place = Place("redis", traffic_redis.address.url)
    place.empty()
    logs = [place.open() for _ in range(4)]
    ids = [IDS.new(START + i) for i in range(400)]
    logs[0].append_predictions([sample(prediction_id, START + i) for i, prediction_id in enumerate(ids)])
    logs[0].append_feedback([clicked(prediction_id) for prediction_id in ids], START + 400)

    def work(number: int) -> int:
        written = 0
        for i in range(40):
            written += logs[number].join(START + 400 + WINDOW_MS, 20)
            logs[number].append_feedback([FeedbackEntry(ids[(7 * i) % 400], (), [Outcome(number, 0.5)])], START + 500)
            logs[number].append_scores([(ids[i], Scores("candidate", "s", number, np.zeros(4, np.float32)))])
        return written

    with ThreadPoolExecutor(4) as pool:
        written = sum(pool.map(work, range(4)))
    while more := logs[0].join(START + 10**5):
        written += more
    entries = [e for after in range(0, 10_000, 256) for e in logs[1].labelled(after, 256) if e.seq <= after + 256]
    stats = logs[2].stats(START)
    for log in logs:
        log.close()
    assert [e.seq for e in entries] == list(range(1, written + 1))
    assert [e.prediction_id for e in entries if e.revision == 0] == ids
    assert (stats.labelled_entries, stats.open_predictions, stats.late) == (written, 0, 0)
    last = {(e.prediction_id, row): label for e in entries for row, label in zip(e.indices, e.labels, strict=True)}
    assert [last[ids[0], row] for row in range(4)] == [0.5] * 4
    assert len(next(e for e in entries if e.prediction_id == ids[0]).other) == 4


def test_a_server_that_stands_still_costs_predictions_and_delays_nobody(tmp_path: Path) -> None:
    with RedisProcess(tmp_path, *FIT) as server:
        log = RedisTrafficLog(server.address, IDS, WINDOW_MS, timeout=0.05)
        writer = TrafficWriter(
            log, StoppedClock(), WriterLimits(capacity=8, batch=4, delay_s=0.0, tries=2, backoff_s=0.001)
        )
        server.signal(signal.SIGSTOP)
        until = time.monotonic() + LIMIT_S
        while "full" not in writer.counters().dropped:
            assert time.monotonic() < until, writer.counters()
            writer.offer(sample(IDS.new(START), START))
            time.sleep(0.001)
        with pytest.raises(NotReady):
            writer.feedback([clicked(IDS.new(START))]).result(LIMIT_S)
        server.signal(signal.SIGCONT)
        prediction_id = IDS.new(START)
        while not writer.offer(sample(prediction_id, START)):
            assert time.monotonic() < until
            time.sleep(0.001)
        while True:
            try:
                (reply,) = writer.feedback([clicked(prediction_id)]).result(LIMIT_S)
                break
            except NotReady:  # the server may need a moment longer than the writer's tries
                assert time.monotonic() < until
        writer.close()
        counters = writer.counters()
        assert reply.outcomes[0] in (ACCEPTED, "duplicate")  # an answer that came too late was stored all the same
        assert counters.offered == counters.committed + sum(counters.dropped.values())
        assert log.stats(START).predictions >= counters.committed
        log.close()


def test_a_writer_closes_soon_though_the_server_stands_still(tmp_path: Path) -> None:
    with RedisProcess(tmp_path, *FIT) as server:
        log = RedisTrafficLog(server.address, IDS, WINDOW_MS, timeout=0.05)
        server.signal(signal.SIGSTOP)
        writer = TrafficWriter(log, StoppedClock(), WriterLimits(batch=1, delay_s=LIMIT_S))
        for i in range(1000):
            writer.offer(sample(IDS.new(START + i), START + i))
        closing = threading.Thread(target=writer.close, name="closing")
        closing.start()
        closing.join(LIMIT_S)  # a thousand tries of 0.05 s each would take longer
        assert not closing.is_alive()
        assert writer.counters().dropped == {"store": 1000}
        log.close()
