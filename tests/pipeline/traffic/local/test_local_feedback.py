"""Replies to feedback on a machine of several lanes: they need no process that joins, and no lane that is alive."""

from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from lane_logs import open_lane
from lane_samples import files_up_to
from traffic_samples import CANDIDATE, IDS, WINDOW_MS, sample

from pipeline.errors import NotReady
from pipeline.traffic.lanes.lanes import Lanes
from pipeline.traffic.local.inbox import Pending, in_turn, pack_entry
from pipeline.traffic.local.log import LocalTrafficLog
from pipeline.traffic.log import ACCEPTED, DUPLICATE, INVALID, Exposure, FeedbackEntry, Outcome

START = 1_000_000
PROCESSES = multiprocessing.get_context("spawn")


NAMES = pytest.mark.parametrize("by", ["prediction id", "request id"])


def say(
    log: LocalTrafficLog, prediction_id: str, *outcomes: Outcome, now_ms: int = START, by: str = "prediction id"
) -> tuple[str, ...]:
    entry = FeedbackEntry(prediction_id, [Exposure(0, position=2)], outcomes)
    if by == "request id":
        entry = replace(entry, prediction_id="", request_id=f"r-{prediction_id}", endpoint="ranker")
    (reply,) = log.append_feedback([entry], now_ms)
    return reply.exposed + reply.outcomes


def write(log: LocalTrafficLog, prediction_id: str) -> None:
    log.append_predictions([sample(prediction_id, START, request_id=f"r-{prediction_id}")])


def labels_of(log: LocalTrafficLog) -> list[tuple[str, int, dict[int, float]]]:
    return [
        (e.prediction_id, e.revision, dict(zip(e.indices.tolist(), e.labels.tolist(), strict=True)))
        for e in log.labelled(0, 1000)
    ]


def join_for_ever(path: Path, out: Connection) -> None:
    log = open_lane(path)
    while True:
        log.join(START)
        out.send("joined")


@NAMES
def test_replies_are_right_with_the_joining_process_killed(
    logs: list[LocalTrafficLog], tmp_path: Path, by: str
) -> None:
    receive, send = PROCESSES.Pipe(duplex=False)
    control = PROCESSES.Process(target=join_for_ever, args=(tmp_path / "traffic", send))
    control.start()
    early = IDS.new(START)
    write(logs[0], early)
    assert say(logs[0], early, Outcome(1, 1.0), by=by) == (ACCEPTED, ACCEPTED)
    receive.recv()
    receive.recv()
    assert control.pid is not None
    os.kill(control.pid, signal.SIGKILL)
    control.join()
    late = IDS.new(START)
    write(logs[1], late)
    for prediction_id in (early, late):
        assert say(logs[2], prediction_id, Outcome(9, 1.0), Outcome(None, 1.0, 5), by=by)[1:] == (INVALID, INVALID)
    assert say(logs[0], early, Outcome(1, 1.0), by=by) == (DUPLICATE, DUPLICATE)
    assert say(logs[2], early, Outcome(None, 1.0, CANDIDATE + 1), by=by) == (DUPLICATE, DUPLICATE)
    assert say(logs[0], late, Outcome(None, 1.0, CANDIDATE + 1), by=by) == (DUPLICATE, ACCEPTED)
    assert say(logs[1], late, Outcome(1, 1.0), by=by) == (DUPLICATE, DUPLICATE)
    assert say(logs[2], late, Outcome(1, 1.0, final=True), by=by) == (DUPLICATE, ACCEPTED)
    logs[1].join(START + WINDOW_MS)
    assert labels_of(logs[0]) == [(early, 0, {0: 0.0}), (late, 0, {0: 0.0})]


@NAMES
def test_what_is_said_before_its_prediction_is_a_duplicate_on_every_lane(logs: list[LocalTrafficLog], by: str) -> None:
    prediction_id = IDS.new(START)
    assert say(logs[0], prediction_id, Outcome(1, 1.0), by=by) == (ACCEPTED, ACCEPTED)
    assert say(logs[1], prediction_id, Outcome(1, 1.0), by=by) == (DUPLICATE, DUPLICATE)
    logs[2].join(START)
    assert say(logs[1], prediction_id, Outcome(1, 1.0), by=by) == (DUPLICATE, DUPLICATE)
    write(logs[2], prediction_id)
    assert say(logs[1], prediction_id, Outcome(1, 1.0), by=by) == (DUPLICATE, DUPLICATE)
    assert say(logs[0], prediction_id, Outcome(9, 1.0), by=by) == (DUPLICATE, INVALID)
    logs[0].join(START + WINDOW_MS)
    assert labels_of(logs[1]) == [(prediction_id, 0, {0: 0.0})]
    assert logs[2].stats(START).feedback == 1


def test_one_prediction_that_two_lanes_were_told_at_the_same_moment_is_one(
    logs: list[LocalTrafficLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    prediction_id = IDS.derive(START, "r")
    monkeypatch.setattr(Lanes, "find_all", lambda *_: {})  # neither sees the other's yet
    for log in logs[:2]:
        write(log, prediction_id)
    monkeypatch.undo()
    assert say(logs[2], prediction_id, Outcome(1, 1.0), by="request id") == (ACCEPTED, ACCEPTED)
    assert say(logs[0], prediction_id, Outcome(1, 1.0)) == (DUPLICATE, DUPLICATE)
    logs[1].join(START + WINDOW_MS)
    assert [entry for entry in labels_of(logs[0]) if entry[2]] == [(prediction_id, 0, {0: 0.0})]


def test_labels_count_in_the_order_in_which_a_client_sent_them_to_any_lane(logs: list[LocalTrafficLog]) -> None:
    """The clock of the second one is behind, and so is its place among the lanes."""
    made = [IDS.new(START) for _ in range(6)]
    logs[0].append_predictions([sample(prediction_id, START) for prediction_id in made])
    for i, prediction_id in enumerate(made):
        one, other = logs[i % 3], logs[(i + 2) % 3]
        say(one, prediction_id, Outcome(0, 1.0), now_ms=START + 50)
        say(other, prediction_id, Outcome(0, 0.5), now_ms=START + 10)
    logs[2].join(START + 3 * WINDOW_MS)
    assert labels_of(logs[0]) == [(prediction_id, 0, {0: 0.5}) for prediction_id in made]


def pending(lane: int, seq: int, *after: Pending) -> Pending:
    return Pending(lane, seq, "p", START, pack_entry(FeedbackEntry("p"), after))


def test_an_entry_is_taken_after_those_that_it_came_after() -> None:
    first = pending(5, 1)
    second = pending(2, 9, first)
    third = pending(5, 2, second)
    assert list(in_turn({2: [second], 5: [first, third]}, {})) == [first, second, third]
    assert list(in_turn({2: [second], 5: [third]}, {5: 1})) == [second, third]


def test_an_entry_waits_for_one_that_cannot_be_seen_yet_with_those_behind_it() -> None:
    unseen = pending(5, 1)
    waiting, behind, free = pending(2, 9, unseen), pending(2, 10), pending(3, 1)
    assert list(in_turn({2: [waiting, behind], 3: [free]}, {2: 8, 3: 0, 5: 0})) == [free]
    assert list(in_turn({2: [waiting, behind]}, {2: 8, 3: 1, 5: 1})) == [waiting, behind]


def test_an_inbox_keeps_little_that_the_join_has(logs: list[LocalTrafficLog], tmp_path: Path) -> None:
    prediction_id = IDS.new(START)
    logs[0].append_predictions([sample(prediction_id, START, 1000)])
    for i in range(600):
        say(logs[0], prediction_id, Outcome(i, 1.0))
        if i % 100 == 0:
            logs[1].join(START)
    assert len(logs[0]._lanes.inbox(3, 0, 1000)) < 400
    logs[1].join(START)
    assert logs[0].stats(START).feedback == 600


def test_figures_are_told_on_a_full_disk(logs: list[LocalTrafficLog], tmp_path: Path) -> None:
    ids = [IDS.new(START + i) for i in range(300)]
    for prediction_id in ids:
        write(logs[0], prediction_id)
        assert say(logs[1], prediction_id, Outcome(0, 1.0)) == (ACCEPTED, ACCEPTED)
    with files_up_to((tmp_path / "traffic" / "labels.db-wal").stat().st_size):
        with pytest.raises(NotReady):
            logs[2].join(START)
        told = logs[2].stats(START)
    assert (told.predictions, told.open_predictions, told.feedback) == (300, 300, 0)
    assert logs[2].stats(START).feedback == 300, "what is said is taken in once there is room"
