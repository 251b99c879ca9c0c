"""Predictions of a routing hash: the runs find what a scan of the index would, whatever came, went or was cut short."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from lane_samples import START_MS, all_rows, samples

from pipeline.clock import SystemClock
from pipeline.traffic.lanes.lane import Lane
from pipeline.traffic.lanes.lanes import Lanes
from pipeline.traffic.lanes.rows import Row

RUN_ROWS = 4
HASHES = [0, 1, 2, 1 << 63, (1 << 63) - 1, (1 << 64) - 1]
"""The ends of what SQLite and the runs sort by, and rows without a routing key."""


def runs_of(folder: Path) -> list[tuple[int, int]]:
    return sorted((int(p.stem[:16]), int(p.stem[17:])) for p in folder.glob("*.keys"))


def check(lanes: Lanes) -> None:
    rows = all_rows(lanes, 3)
    for routing_hash in HASHES[1:]:
        mine = [row for row in rows if row.routing_hash == routing_hash]
        for limit in (1, 3, 1000):
            assert lanes.rows_of_key(3, routing_hash, limit) == mine[:limit]
    newest: dict[int, list[Row]] = {}
    for row in reversed(rows):
        if row.request_key and len(of := newest.setdefault(row.request_key, [])) < 2:
            of.append(row)
    assert {key: [row for _, row in found] for key, found in lanes.requested(HASHES[1:]).items()} == newest


def test_every_row_of_a_key_and_the_newest_of_a_request_are_found(tmp_path: Path) -> None:
    rng = random.Random(1)
    lane, lanes = Lane(tmp_path, 3, SystemClock(), run_rows=RUN_ROWS), Lanes(tmp_path)
    for turn in range(60):
        count = rng.randrange(1, 15)
        new = [
            (head._replace(routing_hash=rng.choice(HASHES), request_key=rng.choice(HASHES) if turn % 4 else 0), blob)
            for head, blob in samples(count, time_ms=START_MS + 100 * turn, seed=turn)
        ]
        lane.append(new)
        check(lanes)
        if turn % 3:
            lane.keep()
            check(lanes)
        if turn % 10 == 9:
            rows = all_rows(lanes, 3)
            lanes.delete(3, rows[: len(rows) // 3])
            lanes.delete(3, rng.sample(all_rows(lanes, 3), 5))
            check(lanes)
    lane.close()
    lanes.close()


def test_runs_of_one_length_become_one_and_those_of_deleted_rows_go(tmp_path: Path) -> None:
    lane, lanes = Lane(tmp_path, 3, SystemClock(), run_rows=RUN_ROWS), Lanes(tmp_path)
    lane.append(
        [(head._replace(routing_hash=HASHES[i % 6]), blob) for i, (head, blob) in enumerate(samples(4 * 75 + 3))]
    )
    lane.keep()
    assert runs_of(tmp_path / "3") == [(1, 256), (257, 288), (289, 292), (293, 296), (297, 300)]
    check(lanes)
    rows = all_rows(lanes, 3)
    lanes.delete(3, rows[:290])
    lane.keep()
    assert runs_of(tmp_path / "3") == [(289, 292), (293, 296), (297, 300)]
    check(lanes)
    lanes.delete(3, rows[290:])
    lane.keep()
    assert runs_of(tmp_path / "3") == [(297, 300)]
    lane.append([(head._replace(routing_hash=1), blob) for head, blob in samples(9, seed=1)])
    lane.keep()
    assert runs_of(tmp_path / "3") == [(301, 304), (305, 308), (309, 312)]
    check(lanes)
    lane.close()
    lanes.close()


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_run_that_is_lost_is_made_again(tmp_path: Path, lost: int) -> None:
    lane, lanes = Lane(tmp_path, 3, SystemClock(), run_rows=RUN_ROWS), Lanes(tmp_path)
    lane.append([(head._replace(routing_hash=HASHES[i % 6]), blob) for i, (head, blob) in enumerate(samples(13))])
    lane.keep()
    first = runs_of(tmp_path / "3")[lost][0]
    next((tmp_path / "3").glob(f"{first:016d}-*.keys")).unlink()
    check(lanes)
    lane.keep()
    check(lanes)
    lane.close()
    lanes.close()


def test_parts_of_a_longer_run_that_a_crash_left_change_nothing(tmp_path: Path) -> None:
    lane, lanes = Lane(tmp_path, 3, SystemClock(), run_rows=RUN_ROWS), Lanes(tmp_path)
    records = [(head._replace(routing_hash=HASHES[i % 6]), blob) for i, (head, blob) in enumerate(samples(40))]
    lane.append(records[:16])
    lane.keep()
    parts = {path: path.read_bytes() for path in (tmp_path / "3").glob("*.keys")}
    lane.append(records[16:])
    lane.keep()
    assert runs_of(tmp_path / "3")[0] == (1, 32)
    for path, content in parts.items():
        path.write_bytes(content)
    check(lanes)
    lane.keep()
    assert runs_of(tmp_path / "3") == [(1, 32), (33, 36), (37, 40)]
    check(lanes)
    lane.close()
    lanes.close()


def test_an_index_of_format_1_is_read_and_gets_request_keys_once_its_lane_is_claimed(tmp_path: Path) -> None:
    first, second = samples(2)
    with closing(Lane(tmp_path, 3, SystemClock())) as lane:
        lane.append([first])
    with closing(sqlite3.connect(tmp_path / "3" / "index.db", isolation_level=None)) as db:
        db.execute("ALTER TABLE predictions DROP COLUMN request_key")
        db.execute("PRAGMA user_version=1")
    with closing(Lanes(tmp_path)) as lanes:
        assert [row.request_key for row in all_rows(lanes, 3)] == [0]
        assert lanes.requested([7]) == {}
        with closing(Lane(tmp_path, 3, SystemClock())) as lane:
            lane.append([(second[0]._replace(request_key=7), second[1])])
            assert [row.request_key for row in all_rows(lanes, 3)] == [0, 7]
            assert [row.prediction_id for _, row in lanes.requested([7])[7]] == [second[0].prediction_id]
