"""Bounded writer with a real log: order, drops, failures, close."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from traffic_samples import IDS, LATE_MS, WINDOW_MS, sample

from pipeline.errors import LogFull, NotReady, Overloaded
from pipeline.traffic.local.log import LocalTrafficLog
from pipeline.traffic.log import ACCEPTED, INVALID, FeedbackEntry, FeedbackReply, Outcome
from pipeline.traffic.writer import TrafficWriter, WriterLimits

START = 1_000_000
LIMIT_S = 30.0


class StoppedClock:
    def wall_ms(self) -> int:
        return START

    def monotonic(self) -> float:
        return 0.0


class GatedLog(LocalTrafficLog):
    """The real log, whose writes wait at a gate and fail as often as told."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, IDS, WINDOW_MS, LATE_MS)
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Event()
        self.failures: list[Exception] = []

    def append_predictions(self, records: Sequence[bytes]) -> None:
        self._pass()
        super().append_predictions(records)

    def append_feedback(self, entries: Sequence[FeedbackEntry], now_ms: int) -> list[FeedbackReply]:
        self._pass()
        return super().append_feedback(entries, now_ms)

    def _pass(self) -> None:
        self.waiting.set()
        assert self.gate.wait(LIMIT_S)
        if self.failures:
            raise self.failures.pop()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[GatedLog]:
    log = GatedLog(tmp_path / "traffic")
    yield log
    log.close()


def eventually(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


def entry(prediction_id: str, label: float = 1.0) -> FeedbackEntry:
    return FeedbackEntry(prediction_id, (), [Outcome(0, label)], exposed_all=True)


def test_feedback_finds_the_predictions_offered_before_it(log: GatedLog) -> None:
    writer = TrafficWriter(log, StoppedClock(), WriterLimits(batch=4, delay_s=LIMIT_S))
    ids = [IDS.new(START + i) for i in range(10)]
    for i, prediction_id in enumerate(ids):
        assert writer.offer(sample(prediction_id, START + i))
    futures = [writer.feedback([entry(prediction_id)]) for prediction_id in ids]
    bad = writer.feedback([entry("nonsense"), entry(ids[0], 0.5)])
    assert [f.result(LIMIT_S)[0].outcomes for f in futures] == [(ACCEPTED,)] * 10
    assert [r.outcomes for r in bad.result(LIMIT_S)] == [(INVALID,), (ACCEPTED,)]
    assert writer.feedback([]).result(LIMIT_S) == []
    writer.close()
    stats = log.stats(START)
    assert (stats.predictions, stats.parked) == (10, 0)
    counters = writer.counters()
    assert (counters.offered, counters.committed, counters.feedback) == (10, 10, 12)
    assert (counters.dropped, counters.refused, counters.queued, counters.queued_bytes) == ({}, {}, 0, 0)


def test_a_full_queue_drops_predictions_and_refuses_feedback(log: GatedLog) -> None:
    log.gate.clear()
    writer = TrafficWriter(log, StoppedClock(), WriterLimits(capacity=2, feedback_capacity=1))
    first = writer.feedback([entry(IDS.new(START))])
    assert log.waiting.wait(LIMIT_S)  # the writer is busy now and takes nothing more
    assert [writer.offer(sample(IDS.new(START), START)) for _ in range(4)] == [True, True, False, False]
    second = writer.feedback([entry(IDS.new(START))])
    with pytest.raises(Overloaded):
        writer.feedback([entry(IDS.new(START))])
    log.gate.set()
    assert first.result(LIMIT_S)[0].outcomes == second.result(LIMIT_S)[0].outcomes == (ACCEPTED,)
    writer.close()
    counters = writer.counters()
    assert (counters.dropped, counters.refused, counters.committed) == ({"full": 2}, {"full": 1}, 2)


def test_bytes_are_bounded_too(log: GatedLog) -> None:
    record = sample(IDS.new(START), START)
    writer = TrafficWriter(log, StoppedClock(), WriterLimits(capacity_bytes=len(record) - 1))
    assert not writer.offer(record)
    writer.close()


def test_close_writes_what_waits_and_refuses_what_comes_later(log: GatedLog) -> None:
    writer = TrafficWriter(log, StoppedClock(), WriterLimits(delay_s=LIMIT_S))
    for i in range(5):
        writer.offer(sample(IDS.new(START + i), START + i))
    writer.close()
    assert log.stats(START).predictions == 5
    assert not writer.offer(sample(IDS.new(START), START))
    with pytest.raises(NotReady):
        writer.feedback([entry(IDS.new(START))])
    assert writer.counters().dropped == {"closed": 1}


def test_a_bad_record_does_not_take_its_neighbours_along(log: GatedLog) -> None:
    writer = TrafficWriter(log, StoppedClock())
    for record in (sample(IDS.new(START), START), b"garbage", sample(IDS.new(START), START)):
        writer.offer(record)
    writer.close()
    assert log.stats(START).predictions == 2
    assert writer.counters().dropped == {"invalid": 1}


def test_a_store_that_fails_for_a_moment_loses_nothing(log: GatedLog) -> None:
    log.failures = [NotReady("disk full")] * 2
    writer = TrafficWriter(log, StoppedClock(), WriterLimits(tries=3, backoff_s=0.001))
    assert writer.feedback([entry(IDS.new(START))]).result(LIMIT_S)[0].outcomes == (ACCEPTED,)
    writer.close()
    assert writer.counters().retries == 2


def test_a_store_that_goes_on_failing_is_told_and_the_writer_lives(log: GatedLog) -> None:
    log.failures = [NotReady("disk full")] * 2
    writer = TrafficWriter(log, StoppedClock(), WriterLimits(tries=2, backoff_s=0.001))
    with pytest.raises(NotReady, match="disk full"):
        writer.feedback([entry(IDS.new(START))]).result(LIMIT_S)
    log.failures = [RuntimeError("a fault of ours")]
    prediction_id = IDS.new(START)
    with pytest.raises(RuntimeError):
        writer.feedback([entry(prediction_id, 0.5)]).result(LIMIT_S)
    assert writer.feedback([entry(prediction_id, 0.5)]).result(LIMIT_S)[0].outcomes == (ACCEPTED,)
    writer.close()
    counters = writer.counters()
    assert (counters.dropped, counters.refused) == ({}, {"store": 1, "error": 1})


def test_predictions_wait_for_a_store_that_is_away_and_no_more_than_fit(log: GatedLog) -> None:
    log.failures = [NotReady("away")] * 1_000_000
    writer = TrafficWriter(log, StoppedClock(), WriterLimits(capacity=3, batch=2, tries=2, backoff_s=0.001))
    ids = [IDS.new(START + at) for at in range(5)]
    assert [writer.offer(sample(i, START)) for i in ids] == [True, True, True, False, False]
    with pytest.raises(NotReady, match="away"):  # what labels are for is not written yet
        writer.feedback([entry(ids[0])]).result(LIMIT_S)
    log.failures.clear()
    eventually(lambda: not writer.counters().queued)
    assert writer.feedback([entry(i) for i in ids[:3]]).result(LIMIT_S)[2].outcomes == (ACCEPTED,)
    writer.close()
    stats, counters = log.stats(START), writer.counters()
    assert (stats.predictions, stats.parked, counters.committed) == (3, 0, 3)
    assert counters.dropped == {"full": 2}
    assert (counters.queued, counters.queued_bytes) == (0, 0)


def test_predictions_wait_at_the_reserve_of_the_log_while_labels_go_on(
    log: GatedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(records: Sequence[bytes]) -> None:
        raise LogFull("stops")

    monkeypatch.setattr(log, "append_predictions", stops)
    writer = TrafficWriter(log, StoppedClock(), WriterLimits(capacity=2))
    ids = [IDS.new(START + at) for at in range(4)]
    assert writer.offer(sample(ids[0], START))
    assert writer.feedback([entry(ids[0])]).result(LIMIT_S)[0].outcomes == (ACCEPTED,)
    eventually(lambda: isinstance(writer._away, LogFull))
    assert [writer.offer(sample(i, START)) for i in ids[1:]] == [True, False, False]
    log.failures = [LogFull("stops")]
    with pytest.raises(LogFull):
        writer.feedback([entry(ids[0])]).result(LIMIT_S)
    assert (writer.counters().dropped, writer.counters().refused) == ({"reserve": 2}, {"reserve": 1})
    monkeypatch.undo()
    writer.close()
    counters = writer.counters()
    assert (counters.committed, counters.retries, log.stats(START).parked) == (2, 0, 0)


def test_who_closes_does_not_wait_for_a_store_that_is_away(log: GatedLog) -> None:
    log.failures = [NotReady("away")] * 1_000_000
    writer = TrafficWriter(log, StoppedClock(), WriterLimits(tries=2, backoff_s=0.001))
    for _ in range(3):
        assert writer.offer(sample(IDS.new(START), START))
    assert log.waiting.wait(LIMIT_S)
    writer.close()
    assert writer.counters().dropped == {"store": 3}


def test_a_lock_held_by_another_process_is_waited_for(log: GatedLog, tmp_path: Path) -> None:
    log.append_predictions([sample(IDS.new(START), START)])
    (index,) = (tmp_path / "traffic" / "lanes").glob("*/index.db")
    other = sqlite3.connect(index, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    writer = TrafficWriter(log, StoppedClock())
    future = writer.feedback([entry(IDS.new(START))])
    assert log.waiting.wait(LIMIT_S)
    assert not future.done()
    other.execute("COMMIT")
    other.close()
    assert future.result(LIMIT_S)[0].outcomes == (ACCEPTED,)
    writer.close()


def test_feedback_given_up_by_its_caller_does_not_hinder_others(log: GatedLog) -> None:
    log.gate.clear()
    writer = TrafficWriter(log, StoppedClock())
    writer.feedback([entry(IDS.new(START))])
    assert log.waiting.wait(LIMIT_S)
    given_up, wanted = (writer.feedback([entry(IDS.new(START))]) for _ in range(2))
    assert given_up.cancel()
    log.gate.set()
    assert wanted.result(LIMIT_S)[0].outcomes == (ACCEPTED,)
    writer.close()
    assert log.stats(START).parked == 2
