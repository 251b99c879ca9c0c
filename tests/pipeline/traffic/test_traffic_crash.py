"""Crashes of the traffic log: acknowledged entries survive kill -9 while several processes write."""

from __future__ import annotations

import multiprocessing
import random
from multiprocessing.connection import Connection

import pytest
from traffic_places import Place
from traffic_samples import WINDOW_MS, sample

from pipeline.traffic.log import ACCEPTED, FeedbackEntry, Outcome
from pipeline.traffic.prediction import PredictionIds

START = 1_000_000
PROCESSES = multiprocessing.get_context("spawn")
KEY = b"k" * 32


def feed_and_tell(place: Place, lane: int, count: int, out: Connection) -> None:
    """Write predictions and feedback, in changing order, and tell each id once its label is acknowledged."""
    ids = PredictionIds(KEY, lane)
    log = place.open()
    for i in range(count):
        prediction_id = ids.new(START + i)
        record = sample(prediction_id, START + i)
        entry = FeedbackEntry(prediction_id, (), [Outcome(i % 4, 1.0)], exposed_all=True)
        if i % 3:
            log.append_predictions([record])
        (reply,) = log.append_feedback([entry], START + i)
        if not i % 3:
            log.append_predictions([record])  # the label was parked
        if i % 10 == 9:
            log.join(START + i - WINDOW_MS // 2)
        assert reply.outcomes == (ACCEPTED,)
        out.send((prediction_id, i % 4))
    out.close()
    log.close()


def labels_of(place: Place) -> dict[tuple[str, int], float]:
    """All rows of the labelled log once everything is mature, each seen once."""
    log = place.open()
    labels: dict[tuple[str, int], float] = {}
    after = 0
    while log.join(START + 10**6):
        pass
    while batch := log.labelled(after):
        for entry in batch:
            assert entry.revision == 0
            for index, label in zip(entry.indices.tolist(), entry.labels.tolist(), strict=True):
                assert (entry.prediction_id, index) not in labels, "a row came out twice"
                labels[entry.prediction_id, index] = label
        after = batch[-1].seq
    log.close()
    return labels


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_acknowledged_labels_survive_kill_9(place: Place, seed: int) -> None:
    receive, send = PROCESSES.Pipe(duplex=False)
    child = PROCESSES.Process(target=feed_and_tell, args=(place, 0, 100_000, send))
    child.start()
    send.close()
    acknowledged = [receive.recv() for _ in range(random.Random(seed).randrange(1, 150))]
    child.kill()
    child.join()
    try:
        while True:
            acknowledged.append(receive.recv())
    except (EOFError, OSError):
        pass
    labels = labels_of(place)
    # The last one may have been killed between its acknowledgement and the prediction that it was parked for.
    *certain, last = acknowledged
    for prediction_id, index in certain:
        assert {i: labels[prediction_id, i] for i in range(4)} == {i: float(i == index) for i in range(4)}
    log = place.open()
    assert labels.get(last, 1.0) == 1.0
    assert log.stats(START).parked + ((last[0], 0) in labels) >= 1
    log.close()


def test_two_processes_write_while_a_third_joins(place: Place) -> None:
    children, pipes = [], []
    for lane in (1, 2):
        receive, send = PROCESSES.Pipe(duplex=False)
        child = PROCESSES.Process(target=feed_and_tell, args=(place, lane, 150, send))
        child.start()
        send.close()
        children.append(child)
        pipes.append(receive)
    log = place.open()
    told: set[tuple[str, int]] = set()
    for _ in range(150):
        told.update(pipe.recv() for pipe in pipes)
        log.join(START - 1)
    for child in children:
        child.join()
        assert child.exitcode == 0
    stats = log.stats(START)
    log.close()
    assert (stats.predictions, stats.feedback, stats.parked) == (300, 300, 0)
    labels = labels_of(place)
    assert len(labels) == 1200
    assert {key for key, label in labels.items() if label == 1.0} == told
