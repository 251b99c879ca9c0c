"""Deletion beside a lane that appends: what is forgotten is in no file, and files that nothing points at are removed."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from lane_samples import (
    SECRET,
    USER,
    Sample,
    all_rows,
    as_written,
    content,
    crash_image,
    files_with,
    forget,
    planted,
    samples,
)

from pipeline.clock import SystemClock
from pipeline.errors import NotReady
from pipeline.traffic.lanes.files import OpenFiles
from pipeline.traffic.lanes.index import Index
from pipeline.traffic.lanes.lane import Lane
from pipeline.traffic.lanes.lanes import Lanes
from pipeline.traffic.lanes.rows import ScoresEntry


@pytest.fixture
def lanes(tmp_path: Path) -> Iterator[Lanes]:
    found = Lanes(tmp_path)
    yield found
    found.close()


def test_what_is_forgotten_is_in_no_file(tmp_path: Path, lanes: Lanes) -> None:
    writers = {number: Lane(tmp_path, number, SystemClock(), file_bytes=5000) for number in (3, 8)}
    records = {number: planted(300, number) for number in writers}
    kept: dict[int, list[Sample]] = {}
    theirs: list[str] = []
    for number, lane in writers.items():
        for start in range(0, 300, 10):
            lane.append(records[number][start : start + 10])
        kept[number] = [record for record in records[number] if record[0].routing_hash != USER]
        theirs += [head.prediction_id for head, _ in records[number] if head.routing_hash == USER]
    shadow = Lane(tmp_path, 20, SystemClock())
    others = kept[3][0][0].prediction_id
    shadow.put_scores([ScoresEntry(i, "candidate", "new", 1, b"scores of " + SECRET) for i in theirs])
    shadow.put_scores([ScoresEntry(others, "candidate", "new", 1, b"kept")])
    writers[8].put_feedback([(i, 1, f"exposed {SECRET.decode()}") for i in theirs] + [(others, 1, "kept")])
    # Trimmed before, so that no row says where it was.
    writers[3].put_feedback([(theirs[0], 1, f"exposed {SECRET.decode()}")])
    writers[3].trim(1)
    assert {name.split("/")[0] for name in files_with(tmp_path, SECRET)} == {"3", "8", "20"}

    assert forget(lanes) == 200
    assert files_with(tmp_path, SECRET) == []
    for prediction_id in theirs:
        assert files_with(tmp_path, prediction_id.encode()) == []
    for number in writers:
        assert content(lanes, number) == as_written(kept[number])
    (row,) = lanes.scores(20, 0, 1000)
    assert (row.prediction_id, lanes.read(row.place(20))) == (others, b"kept")
    assert [row.entry for row in lanes.inbox(8, 0, 1000)] == ["kept"]

    more = samples(3, 3, seed=9)
    writers[3].append(more)
    assert content(lanes, 3) == as_written(kept[3] + more)
    for lane in (*writers.values(), shadow):
        lane.close()
    assert files_with(tmp_path, SECRET) == []


def test_a_deleted_record_reads_as_nothing_by_who_knew_its_place(tmp_path: Path, lanes: Lanes) -> None:
    lane = Lane(tmp_path, 3, SystemClock())
    lane.append(planted(9))
    rows = all_rows(lanes, 3)
    assert forget(lanes) == 3
    assert [row.seq for row in rows if lanes.read(row.place(3)) is None] == [1, 4, 7]
    assert forget(lanes) == 0
    lane.close()


def test_a_record_that_is_deleted_while_it_is_read_is_not_damaged(
    tmp_path: Path, lanes: Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    lane = Lane(tmp_path, 3, SystemClock())
    lane.append(planted(3))
    (row,) = lanes.rows_of_key(3, USER, 10)
    reading = OpenFiles.read

    def overtaken(files: OpenFiles, path: Path, offset: int, size: int) -> bytes:
        before = reading(files, path, offset, size)
        forget(lanes)
        return before[:50] + reading(files, path, offset, size)[50:]

    monkeypatch.setattr(OpenFiles, "read", overtaken)
    assert lanes.read(row.place(3)) is None
    lane.close()


def test_a_deletion_that_was_cut_short_is_finished_by_the_next(tmp_path: Path) -> None:
    lane = Lane(tmp_path / "a", 3, SystemClock())
    lane.append(planted(9))
    rows = Lanes(tmp_path / "a").rows_of_key(3, USER, 10)
    crash_image(tmp_path / "a", tmp_path / "b")
    Lanes(tmp_path / "a").delete(3, rows, scrub=True)
    # The record files of the deletion, with the index as it was before it.
    overwritten = (tmp_path / "a" / "3" / "00000001.log").read_bytes()
    (tmp_path / "b" / "3" / "00000001.log").write_bytes(overwritten)
    lane.close()
    lanes = Lanes(tmp_path / "b")
    assert [payload is None for _, payload in content(lanes, 3)] == [i % 3 == 0 for i in range(9)]
    assert forget(lanes) == 3
    assert len(content(lanes, 3)) == 6
    assert lanes.files(3)[0].predictions == 6
    lanes.close()


def test_without_scrub_the_bytes_stay_until_their_file_goes(tmp_path: Path, lanes: Lanes) -> None:
    lane = Lane(tmp_path, 3, SystemClock(), file_bytes=1000)
    records = samples(30)
    for start in range(0, 30, 5):
        lane.append(records[start : start + 5])
    rows = all_rows(lanes, 3)
    assert lanes.read(rows[0].place(3)) == records[0][1]
    lanes.delete(3, rows[:9])
    assert lanes.drop_empty(3) == 0
    assert files_with(tmp_path, records[0][1]) == ["3/00000001.log"]
    before = lanes.bytes()
    lanes.delete(3, rows[9:12])
    assert lanes.drop_empty(3) == 1
    assert lanes.read(rows[0].place(3)) is None, "a place in a file that was removed, which this reader had open"
    assert lanes.bytes() < before - 1000
    assert files_with(tmp_path, records[0][1]) == []
    assert content(lanes, 3) == as_written(records[12:])
    lane.close()


def test_scores_keep_their_file(tmp_path: Path, lanes: Lanes) -> None:
    lane = Lane(tmp_path, 3, SystemClock())
    record, other = samples(2)
    lane.append([record])
    lane.put_scores([ScoresEntry(other[0].prediction_id, "candidate", "new", 1, b"scores")])
    lanes.delete(3, all_rows(lanes, 3))
    assert lanes.drop_empty(3) == 0
    (row,) = lanes.scores(3, 0, 10)
    assert lanes.read(row.place(3)) == b"scores"
    lane.append([other])
    lanes.delete(3, all_rows(lanes, 3))
    assert lanes.scores(3, 0, 10) == []
    assert lanes.drop_empty(3) == 1
    lane.close()


@pytest.mark.parametrize("restart", [False, True])
def test_the_current_file_is_removed_too_and_the_lane_begins_another(
    tmp_path: Path, lanes: Lanes, restart: bool
) -> None:
    lane = Lane(tmp_path, 3, SystemClock())
    records = samples(6)
    lane.append(records[:3])
    lanes.delete(3, all_rows(lanes, 3))
    assert lanes.drop_empty(3) == 1
    assert list((tmp_path / "3").glob("*.log")) == []
    if restart:
        lane.close()
        lane = Lane(tmp_path, 3, SystemClock())
    lane.append(records[3:])
    assert content(lanes, 3) == as_written(records[3:])
    assert [row.seq for row in all_rows(lanes, 3)] == [4, 5, 6]
    assert [row.file for row in all_rows(lanes, 3)] == [2, 2, 2]
    lane.close()


def test_a_removed_file_is_not_kept_open(tmp_path: Path, lanes: Lanes) -> None:
    lane = Lane(tmp_path, 3, SystemClock(), file_bytes=1)
    records = samples(4)
    for record in records:
        lane.append([record])
    rows = all_rows(lanes, 3)
    for row in rows[:3]:
        lanes.read(row.place(3))
    lane.keep()  # the lane itself lets go of files that it appends to no longer
    lanes.delete(3, rows[:2])
    lanes.drop_empty(3)
    assert lanes.read(rows[3].place(3)) == records[3][1]
    targets = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd)]
    lane.close()
    assert not [target for target in targets if str(tmp_path) in target and target.endswith("(deleted)")]


def _is_open(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


def test_a_write_ahead_log_in_use_is_reported_and_emptied_later(
    tmp_path: Path, lanes: Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.traffic.lanes.index._BUSY_S", 0.05)
    lane = Lane(tmp_path, 3, SystemClock())
    lane.append(planted(3))
    reader = Index(tmp_path / "3")
    with reader.write(durable=False), pytest.raises(NotReady, match="write-ahead log is in use"):
        lanes.scrub()
    lanes.scrub()
    assert (tmp_path / "3" / "index.db-wal").stat().st_size == 0
    reader.close()
    lane.close()


def test_a_lane_appends_while_others_delete_and_read(tmp_path: Path) -> None:
    lane = Lane(tmp_path, 3, SystemClock(), file_bytes=20_000, run_rows=64)
    records = planted(3000)
    faults: list[BaseException] = []
    over = threading.Event()

    def deleting() -> None:
        mine = Lanes(tmp_path)
        try:
            while not over.is_set():
                forget(mine)
                mine.drop_empty(3)
        except BaseException as error:
            faults.append(error)
        finally:
            mine.close()

    def reading() -> None:
        mine = Lanes(tmp_path)
        written = {head.prediction_id: blob for head, blob in records}
        try:
            while not over.is_set():
                for prediction_id, payload in content(mine, 3):
                    assert payload in (None, written[prediction_id])
        except BaseException as error:
            faults.append(error)
        finally:
            mine.close()

    threads = [threading.Thread(target=deleting, name="deletes"), threading.Thread(target=reading, name="reads")]
    for thread in threads:
        thread.start()
    for start in range(0, 3000, 20):
        assert lane.append(records[start : start + 20]) == 20
    over.set()
    for thread in threads:
        thread.join()
    assert faults == []
    lanes = Lanes(tmp_path)
    forget(lanes)
    assert content(lanes, 3) == as_written([record for record in records if record[0].routing_hash != USER])
    assert files_with(tmp_path, SECRET) == []
    lanes.close()
    lane.close()


def test_scores_of_predictions_that_never_came_are_dropped(tmp_path: Path, lanes: Lanes) -> None:
    lane, shadow = Lane(tmp_path, 3, SystemClock()), Lane(tmp_path, 20, SystemClock())
    records = samples(600)
    lane.append(records[1::2])
    ids = [head.prediction_id for head, _ in records]
    shadow.put_scores([ScoresEntry(i, "candidate", "new", 1, b"scores of " + i.encode()) for i in ids])
    lanes.drop_scores(ids[590], [ids[594], ids[595]])
    left = {row.prediction_id for _, row in lanes.scores_of(ids)}
    assert left == {*ids[1::2], *ids[590::2]} - {ids[594]}
    lanes.scrub()
    assert files_with(tmp_path, ids[0].encode()) == files_with(tmp_path, ids[594].encode()) == []
    shadow.close()
    lane.close()
