"""Upgrade of the traffic log of version 0.1: everything goes on, however often it is killed on the way."""

from __future__ import annotations

import multiprocessing
import random
import re
import sqlite3
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lane_logs import open_lane
from namespaces import in_namespace
from old_log import write_old
from traffic_samples import CANDIDATE, IDS, LATE_MS, WINDOW_MS, sample

from pipeline.errors import InvalidInput
from pipeline.traffic.local.log import LocalTrafficLog
from pipeline.traffic.log import Exposure, FeedbackEntry, Outcome, Scores, TrafficLog

START = 1_000_000
USER = (1 << 64) - 7
PROCESSES = multiprocessing.get_context("spawn")


def opened(path: Path) -> LocalTrafficLog:
    return open_lane(path, late_ms=LATE_MS)


def lived(log: TrafficLog, count: int) -> dict[str, list[str]]:
    """A log with predictions in every state; their ids by state."""
    rng = random.Random(count)
    made: dict[str, list[str]] = {"closed": [], "open": [], "parked": [], "forgotten": []}

    def say(prediction_id: str, now_ms: int, *outcomes: Outcome) -> None:
        log.append_feedback([FeedbackEntry(prediction_id, [Exposure(0), Exposure(2)], outcomes)], now_ms)

    for i in range(count):
        prediction_id = IDS.new(START + i)
        log.append_predictions([sample(prediction_id, START + i, routing_hash=i + 1)])
        made["closed"].append(prediction_id)
        if rng.random() < 0.7:
            say(prediction_id, START + i, *[Outcome(0, 1.0)] * (i % 2))
        if rng.random() < 0.3:
            scores = Scores("candidate", "student", 3, np.full(4, i / count, np.float32))
            log.append_scores([(prediction_id, scores)])
    now = START + count + 2 * WINDOW_MS
    log.join(now)
    log.retain(START + count // 4)
    log.commit_position("worker", 5)
    for prediction_id in made["closed"][count // 2 :: 5]:
        say(prediction_id, now, Outcome(0, 0.5), Outcome(3, 1.0))
    log.join(now)
    for prediction_id in made["closed"][count // 2 + 1 :: 5]:
        log.append_feedback([FeedbackEntry(prediction_id, [Exposure(1)])], now)
    for i in range(20):
        made["open"].append(IDS.new(now + i))
        log.append_predictions([sample(made["open"][-1], now + i)])
        if i % 2:
            say(made["open"][-1], now + i, Outcome(2, 1.0))
    for i in range(3):
        made["parked"].append(IDS.new(now + i))
        say(made["parked"][-1], now, Outcome(None, 1.0, CANDIDATE + 1))
    made["forgotten"] = [IDS.new(now)]
    log.forget(USER, now)
    log.join(now)
    return made


def state_of(log: TrafficLog) -> dict[str, Any]:
    """All that can be read of a log, but for counts by endpoint, which version 0.1 did not have."""
    stats = asdict(log.stats(START + 10**6))
    del stats["bytes"], stats["endpoints"]
    entries = [
        (e.seq, e.prediction_id, e.revision, e.time_ms, e.indices.tolist(), e.labels.tolist(), e.positions.tolist(),
         [None if np.isnan(p) else p for p in e.previous.tolist()], e.record,
         [(o.arm, o.bundle, o.version, o.scores.tolist()) for o in e.other])
        for e in log.labelled(0, 10_000)
    ]  # fmt: skip
    predictions = [blob for _, blob in log.predictions("", 10_000)]
    return {"stats": stats, "entries": entries, "predictions": predictions, "worker": log.position("worker")}


def go_on(log: TrafficLog, made: dict[str, list[str]]) -> list[Any]:
    """Use the log further; what it answered."""
    now = START + 10_000
    known = [made["closed"][-1], made["closed"][-2], *made["open"][-2:], *made["parked"]]
    entries = [FeedbackEntry(i, [Exposure(0), Exposure(1)], [Outcome(0, 0.25), Outcome(9, 1.0)]) for i in known]
    # Delays are by the lane's clock, which version 0.1 had set right where it was ahead.
    replies: list[Any] = [replace(reply, delay_ms=None) for reply in log.append_feedback(entries, now)]
    log.append_predictions([sample(i, START, routing_hash=USER) for i in made["forgotten"]])
    log.append_predictions([sample(i, now) for i in made["parked"]])
    replies += [log.join(now + 3 * WINDOW_MS, 10_000), log.retain(START + 100_000)]
    log.append_predictions([sample(made["later"][0], now)])
    log.append_feedback([FeedbackEntry(made["later"][0], exposed_all=True)], now)
    replies.append(log.join(now + 6 * WINDOW_MS))
    return replies


@pytest.mark.parametrize("file_format", [1, 2])
def test_everything_goes_on(tmp_path: Path, file_format: int) -> None:
    log = opened(tmp_path / "one" / "traffic")
    made = lived(log, 400)
    if file_format == 1:
        log._file._writer.execute("DELETE FROM forgotten")
        made["forgotten"] = []
    made["later"] = [IDS.new(START + 10_000)]
    (tmp_path / "other").mkdir()
    write_old(tmp_path / "other" / "traffic.db", tmp_path / "one" / "traffic", 3, WINDOW_MS, file_format)
    again = opened(tmp_path / "other" / "traffic")
    assert not list((tmp_path / "other").glob("traffic.db*")), "records of users to forget are in no file of old"
    assert state_of(again) == state_of(log)
    assert go_on(again, made) == go_on(log, made)
    assert state_of(again) == state_of(log)
    again.close()
    log.close()


def test_a_log_that_was_never_used_is_brought_over(tmp_path: Path) -> None:
    log = opened(tmp_path / "one" / "traffic")
    log.append_predictions([sample(IDS.new(START), START)])
    log.join(START)
    write_old(tmp_path / "traffic.db", tmp_path / "one" / "traffic", 3, WINDOW_MS)
    with sqlite3.connect(tmp_path / "traffic.db") as db:
        for table in ("predictions", "records", "counters"):
            db.execute(f"DELETE FROM {table}")
    db.close()
    again = opened(tmp_path / "traffic")
    assert again.predictions("") == again.labelled(0) == []
    again.append_predictions([sample(IDS.new(START), START)])
    assert len(again.predictions("")) == 1
    again.close()
    log.close()


def open_it(path: Path) -> None:
    opened(path).close()


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in (1, 2))])
def test_it_goes_on_where_it_was_killed(tmp_path: Path, seed: int) -> None:
    log = opened(tmp_path / "one" / "traffic")
    made = lived(log, 3000)
    made["later"] = [IDS.new(START + 10_000)]
    (tmp_path / "other").mkdir()
    path = tmp_path / "other" / "traffic"
    write_old(path.with_suffix(".db"), tmp_path / "one" / "traffic", 3, WINDOW_MS)
    rng = random.Random(seed)
    for place in (0, 400, 1000, 2000):
        child = PROCESSES.Process(target=open_it, args=(path,))
        child.start()
        wait_for(lambda child=child, place=place: brought_over(path) > place or not child.is_alive())
        time.sleep(rng.uniform(0, 0.02))
        child.kill()
        child.join()
    again = opened(path)
    assert not path.with_suffix(".db").exists()
    assert state_of(again) == state_of(log)
    assert go_on(again, made) == go_on(log, made)
    assert state_of(again) == state_of(log)
    again.close()
    log.close()


def wait_for(condition: Any, limit_s: float = 60.0) -> None:
    until = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


def brought_over(path: Path) -> int:
    """Predictions brought over by now."""
    try:
        with sqlite3.connect(f"file:{path}/labels.db?mode=ro", uri=True) as db:
            found = db.execute("SELECT value FROM counters WHERE name = 'upgraded_count'").fetchone()
        return int(found[0]) if found else 0
    except sqlite3.Error:
        return 0


def test_an_old_log_beside_one_that_is_in_use_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "traffic"
    log = opened(path)
    lived(log, 40)
    log.close()
    write_old(path.with_suffix(".db"), path, 3, WINDOW_MS)
    with pytest.raises(InvalidInput, match="predictions of its own"):
        opened(path)


def test_an_old_log_of_another_program_or_of_a_newer_baton_is_refused(tmp_path: Path) -> None:
    old = tmp_path / "traffic.db"
    for statement, message in (
        ("CREATE TABLE cakes (name TEXT)", "another program's"),
        ("PRAGMA application_id=1112821297", "newer Baton"),
    ):
        with sqlite3.connect(old) as db:
            db.execute(statement)
            db.execute("PRAGMA user_version=99")
        db.close()
        with pytest.raises(InvalidInput, match=message):
            opened(tmp_path / "traffic")
    old.write_bytes(b"not a database at all" * 100)
    with pytest.raises(InvalidInput, match="not a traffic log"):
        opened(tmp_path / "traffic")
    assert old.exists()


ON_A_FULL_DISK = """
import shutil, subprocess, sys
from pathlib import Path
from lane_logs import open_lane
from namespaces import in_namespace
from pipeline.errors import NotReady

old, disk = map(Path, sys.argv[1:])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", disk], check=True)
shutil.copy(old, disk / "traffic.db")
filler = disk / "filler"
filler.write_bytes(bytes(shutil.disk_usage(disk).free - (2 << 20)))
before = (disk / "traffic.db").read_bytes()
try:
    open_lane(disk / "traffic")
except NotReady as error:
    print(error)
assert (disk / "traffic.db").read_bytes() == before
assert not list(disk.rglob("*.log")), "nothing is brought over by halves"
filler.unlink()
log = open_lane(disk / "traffic")
print(len(log.predictions("", 10_000)))
log.close()
"""


def test_an_upgrade_that_has_no_room_says_how_much_is_missing_and_begins_nothing(tmp_path: Path) -> None:
    log = opened(tmp_path / "one" / "traffic")
    lived(log, 100)
    write_old(tmp_path / "traffic.db", tmp_path / "one" / "traffic", 3, WINDOW_MS)
    count = len(log.predictions("", 10_000))
    log.close()
    (tmp_path / "disk").mkdir()
    program = ("-c", ON_A_FULL_DISK, tmp_path / "traffic.db", tmp_path / "disk")
    said, brought = in_namespace(tmp_path / "disk", *program).splitlines()
    missing = re.search(r"takes ([\d,]+) bytes .* beside it, and ([\d,]+) of them are missing; make room", said)
    assert missing is not None, said
    needed, lacking = (int(number.replace(",", "")) for number in missing.groups())
    assert lacking <= needed - (1 << 20), "less is missing than is needed, since some is free"
    assert int(brought) == count, "with room it goes on as if nothing had been"
