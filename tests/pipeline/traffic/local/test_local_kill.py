"""Crashes on a machine of several lanes: lanes and control are killed and started again while all of them work.

By hand a hundred times: KILLS=100.
"""

from __future__ import annotations

import multiprocessing
import os
import random
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from lane_logs import open_lane
from traffic_samples import WINDOW_MS, sample

from pipeline.traffic.log import ACCEPTED, FeedbackEntry, Outcome
from pipeline.traffic.prediction import PredictionIds

START = 1_000_000
LANES = (1, 2)
CONTROL = 0
KILLS = int(os.environ.get("KILLS", "10"))
PROCESSES = multiprocessing.get_context("spawn")


def write(path: Path, lane: int, after: int, out: Connection) -> None:
    """Write predictions and feedback, in changing order, and tell each id once its label is acknowledged."""
    ids, log = PredictionIds(b"k" * 32, lane), open_lane(path, lane)
    for i in range(after, 1 << 30):
        prediction_id = ids.new(START + i)
        entry = FeedbackEntry(prediction_id, (), [Outcome(i % 4, 1.0)], exposed_all=True)
        if i % 3:
            log.append_predictions([sample(prediction_id, START + i)])
        (reply,) = log.append_feedback([entry], START + i)
        if not i % 3:
            log.append_predictions([sample(prediction_id, START + i)])  # the label was parked
        assert reply.outcomes == (ACCEPTED,)
        out.send((prediction_id, i % 4, i))


def control(path: Path, lane: int, after: int, out: Connection) -> None:
    """Join what is due for ever."""
    log = open_lane(path, lane)
    now_ms = START + WINDOW_MS
    while True:
        log.join(now_ms, 5)
        now_ms += 1
        out.send((str(now_ms), 0, 0))


class Running:
    """One process, and what it told."""

    def __init__(self, path: Path, lane: int) -> None:
        self._path, self.lane = path, lane
        self.told: dict[str, int] = {}
        self.last = ""
        self._next = 0
        self.start()

    def start(self) -> None:
        self._receive, send = PROCESSES.Pipe(duplex=False)
        body = control if self.lane == CONTROL else write
        self._child = PROCESSES.Process(target=body, args=(self._path, self.lane, self._next, send))
        self._child.start()
        send.close()

    def hear(self, count: int) -> None:
        for _ in range(count):
            self._take(self._receive.recv())

    def kill(self) -> None:
        self._child.kill()
        self._child.join()
        try:
            while True:
                self._take(self._receive.recv())
        except (EOFError, OSError):
            pass

    def _take(self, said: tuple[str, int, int]) -> None:
        self.last, index, i = said
        self.told[self.last] = index
        self._next = i + 1


@pytest.mark.parametrize("seed", [1, 2])
def test_what_is_acknowledged_comes_out_once_whoever_is_killed(tmp_path: Path, seed: int) -> None:
    rng, path = random.Random(seed), tmp_path / "traffic"
    running = [Running(path, lane) for lane in (CONTROL, *LANES)]
    cut: set[str] = set()
    for _ in range(KILLS):
        for one in running:
            one.hear(rng.randrange(1, 15))
        one = rng.choice(running)
        one.kill()
        cut.add(one.last)
        one.start()
    for one in running:
        one.hear(1)
        one.kill()
        cut.add(one.last)
    log = open_lane(path, 9)
    while log.join(START + 10**6):
        pass
    labels: dict[tuple[str, int], float] = {}
    revisions: set[tuple[str, int]] = set()
    for entry in log.labelled(0, 100_000):
        assert (entry.prediction_id, entry.revision) not in revisions, "an entry came out twice"
        revisions.add((entry.prediction_id, entry.revision))
        for index, label in zip(entry.indices.tolist(), entry.labels.tolist(), strict=True):
            labels[entry.prediction_id, index] = label
    for prediction_id, index in {i: n for one in running[1:] for i, n in one.told.items()}.items():
        # One may have been killed between its acknowledgement and the prediction that it was parked for.
        if prediction_id not in cut or (prediction_id, 0) in labels:
            assert [labels[prediction_id, i] for i in range(4)] == [float(i == index) for i in range(4)]
    predictions = log.predictions("", 100_000)
    stats = log.stats(START + 10**6)
    assert len({blob for _, blob in predictions}) == len(predictions) == stats.predictions
    assert (stats.open_predictions, stats.late, stats.damaged) == (0, 0, 0)
    assert stats.labelled_rows >= 4 * sum(len(one.told) - KILLS for one in running[1:])
    log.close()
