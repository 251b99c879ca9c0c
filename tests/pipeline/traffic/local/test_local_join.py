"""Join over several lanes: one order of all predictions, whoever joins."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

from lane_logs import open_lane
from traffic_samples import IDS, WINDOW_MS, sample

from pipeline.traffic.local.log import LocalTrafficLog
from pipeline.traffic.log import ACCEPTED, Exposure, FeedbackEntry, Outcome

START = 1_000_000
PROCESSES = multiprocessing.get_context("spawn")


def predict(log: LocalTrafficLog, time_ms: int, said: str = "label") -> str:
    prediction_id = IDS.new(time_ms)
    log.append_predictions([sample(prediction_id, time_ms)])
    if said == "label":
        entry = FeedbackEntry(prediction_id, [Exposure(0)], [Outcome(0, 1.0, final=True)])
        log.append_feedback([entry], time_ms)
    elif said == "shown":
        log.append_feedback([FeedbackEntry(prediction_id, exposed_all=True)], time_ms)
    return prediction_id


def test_predictions_of_all_lanes_close_in_the_order_of_their_times(logs: list[LocalTrafficLog]) -> None:
    made = {time_ms: predict(logs[time_ms % 3], time_ms) for time_ms in range(START, START + 300)}
    later = predict(logs[0], START + 400, "shown")
    held = predict(logs[1], START + 401)
    assert logs[2].join(START + 500) == 300
    assert [(e.seq, e.prediction_id) for e in logs[0].labelled(0, 1000)] == list(enumerate(made.values(), 1))
    stats = logs[0].stats(START + 500)
    assert (stats.open_predictions, stats.watermark_ms, stats.oldest_open_ms) == (2, START + 299, 100)
    assert logs[2].join(START + 400 + WINDOW_MS) == 2
    assert [e.prediction_id for e in logs[0].labelled(300)] == [later, held]


def test_a_lane_that_comes_later_is_joined_too(logs: list[LocalTrafficLog], tmp_path: Path) -> None:
    first = predict(logs[0], START)
    assert logs[1].join(START) == 1
    late_lane = open_lane(tmp_path / "traffic", 9)
    older = predict(late_lane, START - 500)
    late_lane.close()
    assert logs[1].join(START) == 1
    assert [e.prediction_id for e in logs[0].labelled(0)] == [first, older]


def test_a_lane_whose_clock_was_ahead_holds_others_back_for_two_windows_at_most(logs: list[LocalTrafficLog]) -> None:
    for i in range(70):
        predict(logs[0], START + 10**6 + i, "none")
    ours = predict(logs[1], START)
    ahead = predict(logs[0], START + 10**6 + 70, "shown")
    assert logs[2].join(START) == 0
    assert logs[2].join(START + 2 * WINDOW_MS) == 71
    assert [e.prediction_id for e in logs[2].labelled(0) if len(e.indices)] == [ours]
    assert logs[2].stats(START).open_predictions == 0
    logs[2].join(START + 10**6 + 70 + WINDOW_MS)
    assert [e.prediction_id for e in logs[2].labelled(71)] == [ahead]


def test_times_are_set_right_on_all_lanes_at_once_where_the_clock_went_back(logs: list[LocalTrafficLog]) -> None:
    ahead = [predict(logs[i % 3], START + 10**6 + i, "shown") for i in range(9)]
    logs[0].join(START)
    assert logs[1].join(START + WINDOW_MS) == 0, "they were shown in what is the future now"
    assert logs[1].join(START + 2 * WINDOW_MS) == 0
    stats = logs[1].stats(START + 2 * WINDOW_MS)
    assert (stats.open_predictions, stats.watermark_ms) == (0, START)
    logs[1].join(START + 10**6 + 9 + WINDOW_MS)
    entries = logs[1].labelled(0)
    assert {e.prediction_id for e in entries} == set(ahead)
    assert {e.time_ms for e in entries} == {START}, "no entry is of the future"


def join_and_end(path: Path, now_ms: int) -> None:
    log = open_lane(path)
    while log.join(now_ms, 5):
        pass
    log.close()


def test_several_processes_that_join_at_once_write_each_entry_once(logs: list[LocalTrafficLog], tmp_path: Path) -> None:
    made = [predict(logs[i % 3], START + i) for i in range(200)]
    others = [PROCESSES.Process(target=join_and_end, args=(tmp_path / "traffic", START + 200)) for _ in range(2)]
    for other in others:
        other.start()
    while logs[0].join(START + 200, 7):
        pass
    for other in others:
        other.join()
        assert other.exitcode == 0
    assert [(e.revision, e.prediction_id) for e in logs[0].labelled(0, 1000)] == [(0, i) for i in made]
    stats = logs[0].stats(START + 200)
    assert (stats.feedback, stats.labelled_entries, stats.open_predictions) == (200, 200, 0)


def test_a_label_that_reached_its_lane_before_the_join_is_in_the_first_entry(logs: list[LocalTrafficLog]) -> None:
    made = [predict(logs[0], START + i, "shown") for i in range(600)]
    for i, prediction_id in enumerate(made):
        (reply,) = logs[i % 3].append_feedback([FeedbackEntry(prediction_id, (), [Outcome(1, 1.0)])], START + 600)
        assert reply.outcomes == (ACCEPTED,)
    logs[1].join(START + 3 * WINDOW_MS, 10_000)
    entries = logs[0].labelled(0, 1000)
    assert [(e.prediction_id, e.revision, e.labels.tolist()) for e in entries] == [
        (i, 0, [0.0, 1.0, 0.0, 0.0]) for i in made
    ]
