"""Deletion on a machine of several lanes: retention by whole files, forgetting down to the bytes, damage."""

from __future__ import annotations

import multiprocessing
import random
import sqlite3
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from lane_logs import open_lane
from traffic_samples import CANDIDATE, IDS, WINDOW_MS, sample

from pipeline.clock import SystemClock
from pipeline.errors import InvalidInput, NotReady
from pipeline.traffic.lanes.lane import Lane
from pipeline.traffic.local.log import LocalTrafficLog
from pipeline.traffic.log import Exposure, FeedbackEntry, Outcome, Scores
from pipeline.traffic.record import read_head, unpack

START = 1_000_000
USER = (1 << 64) - 5
SECRET = 0x1122334455667788
PROCESSES = multiprocessing.get_context("spawn")


def predict(log: LocalTrafficLog, time_ms: int = START, routing_hash: int = 0, fill: int = 5, n: int = 40) -> str:
    """A prediction with feedback by candidate id, which is parked before the prediction is written."""
    prediction_id = IDS.new(time_ms)
    entry = FeedbackEntry(prediction_id, [Exposure(None, CANDIDATE)], [Outcome(None, 1.0, CANDIDATE, final=True)])
    log.append_feedback([entry], time_ms)
    log.append_scores([(prediction_id, Scores("candidate", "student", 3, np.full(n, 0.5, np.float32)))])
    log.append_predictions([sample(prediction_id, time_ms, n, routing_hash=routing_hash, fill=fill)])
    return prediction_id


def files_with(folder: Path, needle: bytes) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and needle in p.read_bytes())


def traces_of(folder: Path, prediction_ids: list[str]) -> list[str]:
    """Files in which anything of the user or of a prediction is found."""
    needles = [SECRET.to_bytes(8, "little"), *(prediction_id.encode() for prediction_id in prediction_ids)]
    return sorted({name for needle in needles for name in files_with(folder, needle)})


def test_a_user_is_forgotten_on_all_lanes_down_to_the_bytes(logs: list[LocalTrafficLog], tmp_path: Path) -> None:
    theirs = [predict(log, START + i, USER, SECRET) for i, log in enumerate(logs * 2)]
    others = [predict(log, START + 10 + i, 9) for i, log in enumerate(logs)]
    logs[0].join(START + 20)
    theirs += [predict(log, START + 30 + i, USER, SECRET) for i, log in enumerate(logs)]
    assert traces_of(tmp_path, theirs)
    assert logs[1].forget(USER, START + 100) == 9
    assert traces_of(tmp_path, theirs) == []
    assert logs[1].forget(USER, START + 100) == 0
    logs[0].join(START + 3 * WINDOW_MS)
    assert [e.prediction_id for e in logs[2].labelled(0)] == others
    stats = logs[2].stats(START)
    assert (stats.open_predictions, stats.parked, stats.late) == (0, 0, 0)


def test_a_prediction_that_slipped_in_while_its_user_was_forgotten_goes_when_it_closes(
    logs: list[LocalTrafficLog], tmp_path: Path
) -> None:
    other = predict(logs[1])
    logs[0].forget(USER, START + 50)
    slipped = sample(IDS.new(START), START, routing_hash=USER, fill=SECRET)
    lane = Lane(tmp_path / "traffic" / "lanes", 8, SystemClock())
    lane.append([(read_head(slipped), slipped)])  # its process had asked before, and was slow
    lane.close()
    assert logs[0].join(START) == 1
    logs[0].join(START + WINDOW_MS)
    assert [unpack(blob).prediction_id for _, blob in logs[1].predictions("")] == [other]
    assert files_with(tmp_path, SECRET.to_bytes(8, "little")) == []
    assert logs[1].stats(START).open_predictions == 0


def forget_for_ever(path: Path, out: Connection) -> None:
    log = open_lane(path, 7)
    out.send("open")
    log.forget(USER, START + 10**6)
    out.send("done")
    log.close()


@pytest.mark.parametrize("seed", range(4))
def test_forgetting_that_is_killed_is_finished_by_the_next_join(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "traffic"
    log = open_lane(path)
    theirs = [predict(log, START + i, USER, SECRET, n=4) for i in range(120)]
    other = predict(log, START + 500, 9)
    log.join(START + 60)
    receive, send = PROCESSES.Pipe(duplex=False)
    child = PROCESSES.Process(target=forget_for_ever, args=(path, send))
    child.start()
    assert receive.recv() == "open"
    child.join(random.Random(seed).uniform(0.0, 0.1))
    child.kill()
    child.join()
    log.join(START + 60)
    log.forget(USER, START + 10**6)
    assert traces_of(tmp_path, theirs) == []
    log.join(START + 500)
    assert [e.prediction_id for e in log.labelled(0)] == [other]
    assert log.stats(START).open_predictions == 0
    log.close()


def test_retention_removes_whole_files_of_every_lane(logs: list[LocalTrafficLog], tmp_path: Path) -> None:
    for i in range(300):
        predict(logs[i % 3], START + i, n=200)
    logs[0].join(START + 300)
    before = list((tmp_path / "traffic" / "lanes").rglob("*.log"))
    assert len(before) > 9
    done = logs[1].retain(START + 300)
    assert (done.predictions, done.feedback, done.labelled, done.held_back) == (300, 300, 300, False)
    left = list((tmp_path / "traffic" / "lanes").rglob("*.log"))
    assert len(left) <= 3
    assert all(path.stat().st_size == 0 for path in left)
    later = predict(logs[0], START + 400)
    logs[2].join(START + 400)
    assert [(e.seq, e.prediction_id) for e in logs[0].labelled(0)] == [(301, later)]


def test_scores_of_predictions_that_never_came_go_by_retention(logs: list[LocalTrafficLog], tmp_path: Path) -> None:
    scores = Scores("candidate", "student", 3, np.full(4, 0.1234, np.float32))
    logs[0].append_scores([(IDS.new(START), scores), (IDS.new(START + 100), scores)])
    logs[1].retain(START + 50)
    assert len(logs[1]._lanes.scores(3, 0, 10)) == 1


def test_one_flipped_byte_is_one_record_less_and_is_counted_once(logs: list[LocalTrafficLog], tmp_path: Path) -> None:
    made = [predict(logs[i % 3], START + i, fill=SECRET + i) for i in range(30)]
    logs[0].join(START + 30)
    needle = (SECRET + 12).to_bytes(8, "little")
    (name,) = files_with(tmp_path, needle)
    content = bytearray((tmp_path / name).read_bytes())
    content[content.index(needle)] ^= 1
    (tmp_path / name).write_bytes(content)
    left = [prediction_id for prediction_id in made if prediction_id != made[12]]
    for log in logs:
        assert [e.prediction_id for e in log.labelled(0)] == left
        assert [unpack(blob).prediction_id for _, blob in log.predictions("")] == left
        assert list(log.records(made)) == left
        assert len(log.latest("ranker", 100)) == 29
        assert [e.prediction_id for e in log.labelled(11, 3)] == left[11:14]
    assert logs[0].stats(START).damaged == 1
    later = Outcome(1, 1.0, final=True)
    logs[2].append_feedback([FeedbackEntry(i, [Exposure(1)], [later]) for i in made[11:14]], START + 40)
    logs[1].join(START + 40)
    revised = {e.prediction_id: e.seq for e in logs[0].labelled(30)}
    assert revised.keys() == {made[11], made[13]}, "the join goes on, too"


def test_a_folder_of_a_newer_baton_or_of_another_program_is_refused(tmp_path: Path) -> None:
    open_lane(tmp_path / "traffic").close()
    with sqlite3.connect(tmp_path / "traffic" / "labels.db") as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(InvalidInput, match=r"newer Baton \(format 99"):
        open_lane(tmp_path / "traffic")
    for folder, content, message in (
        ("cakes", None, "another program's"),
        ("text", b"no database " * 100, "not a traffic"),
    ):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "labels.db"
        if content is None:
            with sqlite3.connect(path) as db:
                db.execute("CREATE TABLE cakes (name TEXT)")
            db.close()
        else:
            path.write_bytes(content)
        with pytest.raises(InvalidInput, match=message):
            open_lane(tmp_path / folder)


def test_an_unusable_place_says_so(tmp_path: Path, logs: list[LocalTrafficLog]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotReady, match="cannot be opened"):
        open_lane(tmp_path / "file" / "traffic")
    with pytest.raises(InvalidInput, match="'3-7' is not a place"):
        logs[0].predictions("3-7")
