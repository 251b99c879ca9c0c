"""`kill -9` of a lane: what it said to be written is there, once and whole, and what it had begun is cut off."""

from __future__ import annotations

import multiprocessing
import random
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from lane_samples import SECRET, USER, all_rows, as_written, content, files_with, forget, planted, samples

from pipeline.clock import SystemClock
from pipeline.traffic.lanes.lane import Lane
from pipeline.traffic.lanes.lanes import Lanes
from pipeline.traffic.lanes.rows import ScoresEntry

PROCESSES = multiprocessing.get_context("spawn")
LIMITS: dict[str, int] = {"file_bytes": 300_000, "run_rows": 64}


def append_and_tell(root: Path, seed: int, out: Connection) -> None:
    """Append groups without end, each with scores and feedback, and tell the ids of each group once it is written."""
    rng = random.Random(seed)
    lane = Lane(root, 3, SystemClock(), **LIMITS)
    turn = 0
    while True:
        records = samples(rng.randrange(1, 60), size=rng.randrange(1, 5000), time_ms=1_000_000 + 1000 * turn, seed=turn)
        ids = [head.prediction_id for head, _ in records]
        assert lane.append(records) == len(records)
        lane.put_scores([ScoresEntry(ids[0], "candidate", "new", 1, records[0][1][::-1])])
        lane.put_feedback([(ids[0], turn, "shown")])
        out.send([(head.prediction_id, blob[:4]) for head, blob in records])
        if turn % 5 == 4:
            lane.keep()
        turn += 1


@pytest.mark.parametrize("seed", range(5))
def test_what_was_told_is_there_once_after_kill_9(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    told: list[list[tuple[str, bytes]]] = []
    for life in range(2):
        receive, send = PROCESSES.Pipe(duplex=False)
        child = PROCESSES.Process(target=append_and_tell, args=(tmp_path, 10 * seed + life, send))
        child.start()
        send.close()
        told += [receive.recv() for _ in range(rng.randrange(1, 40))]
        child.kill()
        child.join()
        try:
            while True:
                told.append(receive.recv())
        except (EOFError, OSError):
            pass
        receive.close()

    lane, lanes = Lane(tmp_path, 3, SystemClock(), **LIMITS), Lanes(tmp_path)
    assert lane.number == 3, "the kernel lets go of a killed lane's folder"
    read = content(lanes, 3)
    ids = [prediction_id for prediction_id, _ in read]
    assert len(ids) == len(set(ids))
    payloads = {prediction_id: payload for prediction_id, payload in read if payload is not None}
    for group in told:
        for prediction_id, begin in group:
            assert payloads[prediction_id][:4] == begin
    assert len(ids) - sum(map(len, told)) < 2 * 60, "beyond what was told, one group of each life at most"
    first = [group[0][0] for group in told]
    scored = {row.prediction_id: lanes.read(row.place(3)) for row in lanes.scores(3, 0, 10_000)}
    assert [scored[i] for i in first] == [payloads[i][::-1] for i in first]
    shown = [row.prediction_id for row in lanes.inbox(3, 0, 10_000)]
    assert [i for i in shown if i in set(first)] == first

    for file in lanes.files(3):
        assert (tmp_path / "3" / f"{file.number:08d}.log").stat().st_size == file.end
    assert len(list((tmp_path / "3").glob("*.log"))) == len(lanes.files(3))
    more = samples(5, time_ms=9_000_000)
    lane.append(more)
    assert content(lanes, 3)[-5:] == [(head.prediction_id, blob) for head, blob in more]
    lane.close()
    lanes.close()


def forget_and_tell(root: Path, out: Connection) -> None:
    """Forget a user without end, and tell when it begins."""
    lanes = Lanes(root)
    while True:
        out.send(None)
        forget(lanes)


@pytest.mark.parametrize("seed", range(2))
def test_forgetting_that_was_killed_is_finished_by_the_next(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    lane, lanes = Lane(tmp_path, 3, SystemClock(), **LIMITS), Lanes(tmp_path)
    records = planted(6000)
    batches = [records[start : start + 30] for start in range(0, 6000, 30)]
    for part in range(4):
        receive, send = PROCESSES.Pipe(duplex=False)
        child = PROCESSES.Process(target=forget_and_tell, args=(tmp_path, send))
        child.start()
        send.close()
        receive.recv()
        for batch in batches[50 * part : 50 * part + rng.randrange(5, 50)]:
            assert lane.append(batch) == 30
        child.kill()
        child.join()
        receive.close()
        for batch in batches[50 * part : 50 * part + 50]:
            lane.append([record for record in batch if record[0].routing_hash != USER])
        for row in all_rows(lanes, 3):
            lanes.read(row.place(3))  # whole, or deleted already; never damaged
    forget(lanes)
    kept = [record for record in records if record[0].routing_hash != USER]
    assert content(lanes, 3) == as_written(kept)
    assert sum(file.predictions for file in lanes.files(3)) == len(kept)
    assert files_with(tmp_path, SECRET) == []
    lane.close()
    lanes.close()
