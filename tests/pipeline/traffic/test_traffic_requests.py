"""Feedback by the caller's own request id, and predictions told by others, on every store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from traffic_places import Place
from traffic_samples import CANDIDATE, IDS, LATE_MS, WINDOW_MS, sample

from pipeline.features import Features
from pipeline.traffic.log import (
    ACCEPTED,
    DUPLICATE,
    EXPIRED,
    INVALID,
    Exposure,
    FeedbackEntry,
    FeedbackReply,
    Outcome,
    Scores,
    TrafficLog,
)
from pipeline.traffic.observing import Observed, append_observed
from pipeline.traffic.record import PredictionRecord, unpack
from pipeline.traffic.requests import request_key

START = 1_000_000


@pytest.fixture
def log(place: Place) -> Iterator[TrafficLog]:
    log = place.open(late_ms=LATE_MS)
    yield log
    log.close()


def predict(log: TrafficLog, request_id: str, time_ms: int = START, routing_hash: int = 0) -> str:
    prediction_id = IDS.new(time_ms)
    log.append_predictions([sample(prediction_id, time_ms, request_id=request_id, routing_hash=routing_hash)])
    return prediction_id


def by(request_id: str, *outcomes: Outcome, shown: bool = True) -> FeedbackEntry:
    return FeedbackEntry("", (), outcomes, shown, request_id, "ranker")


def say(log: TrafficLog, entry: FeedbackEntry, now_ms: int = START) -> FeedbackReply:
    (reply,) = log.append_feedback([entry], now_ms)
    return reply


def click(at: int = 1, label: float = 1.0) -> Outcome:
    return Outcome(candidate_id=CANDIDATE + at, label=label)


def test_a_click_with_request_id_and_item_id_alone_is_joined(log: TrafficLog) -> None:
    prediction_id, other = predict(log, "r1"), predict(log, "r2")
    assert say(log, by("r1", click(2))).outcomes == (ACCEPTED,)
    assert say(log, by("r1", click(2))).outcomes == (DUPLICATE,)
    assert say(log, FeedbackEntry(prediction_id, (), [Outcome(2, 1.0)])).outcomes == (DUPLICATE,)
    assert log.join(START + WINDOW_MS) == 2
    entries = [(entry.prediction_id, entry.labels.tolist()) for entry in log.labelled(0)]
    assert entries == [(prediction_id, [0, 0, 1, 0]), (other, [])]
    assert say(log, by("r1", click(3)), START + WINDOW_MS).outcomes == (ACCEPTED,)
    assert log.join(START + WINDOW_MS) == 1, "a late label makes a revision"


def test_two_predictions_with_one_request_id_are_refused_and_both_named(log: TrafficLog) -> None:
    first, second = predict(log, "r1"), predict(log, "r1", START + 5)
    reply = say(log, by("r1", click()), START + 10)
    assert reply.outcomes == (INVALID,)
    assert first in reply.reason
    assert second in reply.reason
    assert say(log, FeedbackEntry(second, (), [click()], True), START + 10).outcomes == (ACCEPTED,)
    later = predict(log, "r1", START + LATE_MS + 6)
    assert say(log, by("r1", click()), START + LATE_MS + 6).outcomes == (ACCEPTED,), "the others are too old"
    log.join(START + LATE_MS + 10 * WINDOW_MS)
    assert [e.prediction_id for e in log.labelled(0) if len(e.indices)] == [second, later]


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        (replace(by("r1", click()), prediction_id=IDS.new(START)), "not both"),
        (replace(by("r1", click()), endpoint=""), "endpoint is empty"),
        (FeedbackEntry("", (), [click()]), "prediction_id is empty"),
    ],
)
def test_an_entry_names_one_prediction(log: TrafficLog, entry: FeedbackEntry, told: str) -> None:
    predict(log, "r1")
    reply = say(log, entry)
    assert reply.outcomes == (INVALID,)
    assert told in reply.reason


def test_a_request_id_is_that_of_its_endpoint_and_expires(log: TrafficLog) -> None:
    predict(log, "r1")
    assert say(log, replace(by("r1", click()), endpoint="other")).outcomes == (ACCEPTED,)
    assert log.stats(START).parked == 1, "it waits for a prediction of the other endpoint"
    assert say(log, by("r1", click()), START + LATE_MS + 1).outcomes == (EXPIRED,)


def test_feedback_before_its_prediction_is_parked_and_counts_as_of_when_it_came(log: TrafficLog) -> None:
    assert say(log, by("r1", click()), START + 1).outcomes == (ACCEPTED,)
    assert say(log, by("r1", click(), click(2)), START + 2).outcomes == (DUPLICATE, ACCEPTED)
    assert say(log, by("r1", click(99)), START + 2).outcomes == (ACCEPTED,)
    log.join(START + 3)
    assert log.stats(START).parked == 3
    prediction_id = predict(log, "r1")
    assert say(log, by("r1", click()), START + 4).outcomes == (DUPLICATE,)
    assert say(log, FeedbackEntry(prediction_id, (), [Outcome(0, 1.0)]), START + 5).outcomes == (ACCEPTED,)
    assert say(log, by("r1", click(0)), START + 6).outcomes == (DUPLICATE,)
    log.join(START + 2 * WINDOW_MS)
    assert [e.labels.tolist() for e in log.labelled(0)] == [[1, 1, 1, 0]]
    stats = log.stats(START)
    assert (stats.parked, stats.parked_refused) == (0, 1)


def test_what_waits_by_request_id_expires_like_all_that_waits(log: TrafficLog) -> None:
    say(log, by("r1", click()), START + 10)
    say(log, by("r2", click()), START + 5000)
    log.join(START)
    assert log.retain(START + 5000).parked == 1
    stats = log.stats(START)
    assert (stats.parked, stats.parked_expired) == (1, 1)
    predict(log, "r1")
    predict(log, "r2")
    log.join(START + 9000)
    assert [e.labels.tolist() for e in log.labelled(0)] == [[], [0, 1, 0, 0]]


def test_a_forgotten_user_is_forgotten_by_request_id_too(log: TrafficLog) -> None:
    predict(log, "r1", routing_hash=7)
    say(log, by("r2", click()))
    log.forget(7, START + 50)
    assert log.requested([request_key("ranker", "r1")]) == {}
    predict(log, "r2", START + 20, routing_hash=7)  # it was on its way
    log.join(START + 10)
    assert log.stats(START).parked == 0
    assert log.labelled(0) == []


@pytest.mark.parametrize("joining", [True, False], ids=["joined", "control is dead"])
def test_by_request_id_the_answers_are_those_by_prediction_id(place: Place, joining: bool) -> None:
    log = place.open(late_ms=LATE_MS)
    rng = np.random.default_rng(5)
    told: dict[str, list[FeedbackReply]] = {"a": [], "b": []}
    made = {i: (IDS.new(START + i), IDS.new(START + i)) for i in range(12)}
    written: set[int] = set()
    for step in range(150):
        now, i = START + 20 * step, int(rng.integers(0, 12))
        if rng.random() < 0.2 and i not in written:
            written.add(i)
            log.append_predictions(
                [sample(made[i][0], START + i, request_id=f"a{i}"), sample(made[i][1], START + i, request_id=f"b{i}")]
            )
        rows = rng.integers(0, 6, 2).tolist()
        outcomes = [Outcome(index=row, label=float(rng.integers(0, 2)), final=bool(rng.random() < 0.2)) for row in rows]
        shown = [Exposure(int(rng.integers(0, 5)))]
        every = bool(rng.random() < 0.1)
        told["a"] += log.append_feedback([FeedbackEntry(made[i][0], shown, outcomes, every)], now)
        told["b"] += log.append_feedback([FeedbackEntry("", shown, outcomes, every, f"b{i}", "ranker")], now)
        if joining and step % 10 == 0:
            log.join(now)
    assert told["a"] == told["b"]
    assert {s for reply in told["a"] for s in reply.outcomes} == {ACCEPTED, DUPLICATE, INVALID}
    log.join(START + 1_000_000)
    rows_of: dict[str, list[tuple[int, object, object]]] = {}
    for e in log.labelled(0, 1000):
        rows_of.setdefault(e.prediction_id, []).append((e.revision, e.indices.tolist(), e.labels.tolist()))
    for i in written:
        assert rows_of.get(made[i][0]) == rows_of.get(made[i][1])
    log.close()


def observed(request_id: str, time_ms: int = START, others: int = 4, **more: object) -> Observed:
    record = PredictionRecord(
        IDS.derive(time_ms, request_id),
        time_ms,
        "ranker",
        "stable",
        "observed:old",
        3,
        Features(4),
        np.linspace(0.1, 0.4, 4, dtype=np.float32),
        request_key=request_key("ranker", request_id),
    )
    scores = (Scores("candidate", "observed:new", 1, np.full(others, 0.5, np.float32)),) if others else ()
    return replace(Observed(record.request_key, record, scores), **more)  # type: ignore[arg-type]


def test_a_prediction_told_by_others_is_one_however_often_it_is_told(log: TrafficLog) -> None:
    first, other, old = append_observed(
        log, [observed("r1", exposed_all=True), observed("r2", others=0), observed("r3", START - LATE_MS - 1)], START
    )
    assert (first.status, other.status, old.status) == (ACCEPTED, ACCEPTED, EXPIRED)
    again, late = append_observed(log, [observed("r1", START + 1), observed("r2", record=None)], START + 5)
    assert (again.prediction_id, again.status) == (first.prediction_id, DUPLICATE)
    assert (late.prediction_id, late.status) == (other.prediction_id, ACCEPTED), "the other arm's scores came later"
    wrong, unknown = append_observed(log, [observed("r2", record=None, others=3), observed("r9", record=None)], START)
    assert (wrong.status, unknown.status) == (INVALID, INVALID)
    assert "3 scores of candidate for 4" in wrong.reason
    assert "not known yet" in unknown.reason
    assert say(log, by("r2", Outcome(1))).outcomes == (ACCEPTED,)
    log.join(START + 2 * WINDOW_MS)
    entries = log.labelled(0)
    assert [e.prediction_id for e in entries] == [first.prediction_id, other.prediction_id]
    assert [s.bundle for e in entries for s in e.other] == ["observed:new", "observed:new"]
    assert log.stats(START).predictions == 2
    assert unpack(entries[0].record).features == Features(4)
