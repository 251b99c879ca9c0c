"""A lane's folder: what is appended is read by any reader, once, from files that roll; damage of one is damage of one."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from clocks import HandClock
from lane_samples import START_MS, all_rows, as_written, content, crash_image, files_up_to, samples

from pipeline.clock import SystemClock
from pipeline.errors import Damaged, InvalidInput, NotReady
from pipeline.traffic.lanes.index import Index
from pipeline.traffic.lanes.lane import Lane
from pipeline.traffic.lanes.lanes import Lanes
from pipeline.traffic.lanes.rows import ScoresEntry
from pipeline.traffic.prediction import smallest_id

SMALL_BYTES = 1000


@pytest.fixture
def lanes(tmp_path: Path) -> Iterator[Lanes]:
    found = Lanes(tmp_path)
    yield found
    found.close()


@pytest.fixture
def lane(tmp_path: Path) -> Iterator[Lane]:
    found = Lane(tmp_path, 3, SystemClock())
    yield found
    found.close()


def test_what_is_appended_is_read_in_order_with_its_head(lane: Lane, lanes: Lanes) -> None:
    records = samples(150, routing_hash=(1 << 64) - 5)
    for start in range(0, 150, 50):
        assert lane.append(records[start : start + 50]) == 50
    assert content(lanes, 3) == as_written(records)
    for seq, (row, (head, blob)) in enumerate(zip(all_rows(lanes, 3), records, strict=True), 1):
        assert (row.seq, row.length) == (seq, len(blob))
        for name in head._fields:
            assert getattr(row, name) == getattr(head, name)
        assert lanes.find(head.prediction_id) == (3, row)
    assert lanes.last_seq(3) == 150
    assert lanes.rows(3, 149, 10) == all_rows(lanes, 3)[149:]


def test_a_group_has_any_size(lane: Lane, lanes: Lanes) -> None:
    records = samples(1500, size=20)
    assert lane.append(records) == 1500
    assert lane.append([]) == 0
    assert content(lanes, 3) == as_written(records)


def test_a_prediction_is_written_once(lane: Lane, lanes: Lanes) -> None:
    first, second, third = samples(3)
    assert lane.append([first, second, (first[0], b"other")]) == 2
    assert lane.append([(second[0], b"other"), third, first]) == 1
    assert content(lanes, 3) == as_written([first, second, third])


def test_a_prediction_of_another_lane_is_written_once_in_all(lane: Lane, lanes: Lanes, tmp_path: Path) -> None:
    records = samples(4, lane=3)
    lane.append(records[:2])
    other = Lane(tmp_path, 9, SystemClock())
    assert other.append([(head, b"other") for head, _ in records]) == 2
    assert other.append(records) == 0
    found = lanes.find_all([head.prediction_id for head, _ in records])
    assert [found[head.prediction_id][0] for head, _ in records] == [3, 3, 9, 9]
    other.close()


def test_readers_see_new_lanes_and_new_files(tmp_path: Path, lanes: Lanes) -> None:
    assert lanes.numbers() == []
    assert lanes.find(samples(1)[0][0].prediction_id) is None
    assert (lanes.rows(3, 0, 10), lanes.files(3), lanes.last_seq(3), lanes.bytes()) == ([], [], 0, 0)
    for number in (3, 1, 12):
        lane = Lane(tmp_path, number, SystemClock(), SMALL_BYTES)
        records = samples(40, number)
        for start in range(0, 40, 5):
            lane.append(records[start : start + 5])
            assert content(lanes, number) == as_written(records[: start + 5])
        files = lanes.files(number)
        assert [file.predictions for file in files] == [10, 10, 10, 10]
        assert [file.newest_ms for file in files] == [START_MS + i for i in (9, 19, 29, 39)]
        assert sum(file.end for file in files) == sum(p.stat().st_size for p in (tmp_path / str(number)).glob("*.log"))
        lane.close()
    assert lanes.numbers() == [1, 3, 12]
    assert lanes.bytes() > 3 * 40 * 100


def test_a_lane_that_comes_within_the_same_tick_of_the_clock_is_seen(tmp_path: Path, lanes: Lanes) -> None:
    Lane(tmp_path, 3, SystemClock()).close()
    assert lanes.numbers() == [3]
    changed = tmp_path.stat()
    Lane(tmp_path, 4, SystemClock()).close()
    os.utime(tmp_path, ns=(changed.st_atime_ns, changed.st_mtime_ns))
    assert lanes.numbers() == [3, 4]


def test_a_lane_is_seen_when_it_has_an_index(tmp_path: Path, lanes: Lanes) -> None:
    Lane(tmp_path, 3, SystemClock()).close()
    (tmp_path / "4").mkdir()
    os.utime(tmp_path, (1_000_000, 1_000_000))
    assert lanes.numbers() == [3]
    assert (lanes.rows(4, 0, 1), lanes.drop_empty(4)) == ([], 0)
    Index.create(tmp_path / "4")
    assert lanes.numbers() == [3, 4]


def test_rows_are_found_by_their_ids_in_the_order_of_time(lane: Lane, lanes: Lanes) -> None:
    records = samples(20)
    lane.append(records[10:])
    lane.append(records[:10])
    ids = [head.prediction_id for head, _ in records]
    assert [row.prediction_id for row in lanes.rows_before(3, smallest_id(START_MS + 15), "", 100)] == ids[:15]
    assert [row.prediction_id for row in lanes.rows_before(3, ids[15], ids[3], 5)] == ids[4:9]


def test_the_newest_time_of_a_file_is_that_of_any_record(lane: Lane, lanes: Lanes) -> None:
    for time_ms in (5000, 9000, 7000):
        lane.append(samples(2, time_ms=time_ms))
    assert [file.newest_ms for file in lanes.files(3)] == [9001]


def test_a_file_is_begun_every_hour(tmp_path: Path, lanes: Lanes) -> None:
    clock = HandClock()
    lane = Lane(tmp_path, 3, clock, file_ms=60_000)
    records = samples(4)
    for record, files in zip(records, (1, 1, 2, 2), strict=True):
        lane.append([record])
        assert len(lanes.files(3)) == files
        clock.now += 30
    lane.close()
    assert content(lanes, 3) == as_written(records)


def test_more_files_and_lanes_than_are_kept_open(tmp_path: Path, lanes: Lanes) -> None:
    records = samples(100)
    lane = Lane(tmp_path, 3, SystemClock(), file_bytes=1)
    for record in records:
        lane.append([record])
    lane.close()
    for number in range(100, 180):
        Lane(tmp_path, number, SystemClock()).close()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        assert content(lanes, 3) == as_written(records)
        assert lanes.find(samples(1, 300)[0][0].prediction_id) is None
    assert len(os.listdir("/proc/self/fd")) - before <= 64 + 3 * 64


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    first, second, third = (Lane(tmp_path, 7, SystemClock()) for _ in range(3))
    assert [first.number, second.number, third.number] == [7, 8, 9]
    second.close()
    again = Lane(tmp_path, 7, SystemClock())
    assert again.number == 8
    for lane in (first, again, third):
        lane.close()


def test_a_closed_lane_and_a_closed_reader_say_so(tmp_path: Path) -> None:
    lane, lanes = Lane(tmp_path, 3, SystemClock()), Lanes(tmp_path)
    lane.append(samples(1))
    (row,) = lanes.rows(3, 0, 1)
    for _ in range(2):
        lane.close()
        lanes.close()
    for call in (
        lambda: lane.append(samples(1)),
        lambda: lane.put_feedback([("x", 1, "y")]),
        lambda: lane.put_scores([ScoresEntry("x", "stable", "b", 1, b"")]),
        lambda: lane.trim(1),
        lambda: lanes.rows(3, 0, 1),
        lambda: lanes.read(row.place(3)),
        lanes.numbers,
    ):
        with pytest.raises(NotReady):
            call()


def test_everything_goes_on_after_a_restart(tmp_path: Path, lanes: Lanes) -> None:
    records = samples(30)
    for start in range(0, 30, 3):
        lane = Lane(tmp_path, 3, SystemClock(), SMALL_BYTES)
        assert lane.append(records[: start + 3]) == 3
        lane.close()
    assert content(lanes, 3) == as_written(records)
    assert [row.seq for row in all_rows(lanes, 3)] == list(range(1, 31))


def test_files_are_their_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        lane = Lane(tmp_path, 3, SystemClock(), run_rows=2)
        lane.append(samples(5, routing_hash=1))
        lane.put_feedback([("x", 1, "y")])
        lane.keep()
        lane.close()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "3").stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "3").iterdir()}
    assert set(modes) >= {"lane.lock", "index.db", "00000001.log", f"{1:016d}-{2:016d}.keys"}
    assert set(modes.values()) == {0o600}


def test_a_torn_append_is_cut_off(tmp_path: Path) -> None:
    records = samples(6)
    lane = Lane(tmp_path / "a", 3, SystemClock())
    lane.append(records[:4])
    crash_image(tmp_path / "a", tmp_path / "b")
    lane.close()
    path = tmp_path / "b" / "3" / "00000001.log"
    whole = path.stat().st_size
    with path.open("ab") as file:
        file.write(b"BLF1" + bytes(500))
    for name in ("00000002.log", ".0000000000000001-0000000000000004.keys.0123"):
        (path.parent / name).write_bytes(b"begun, and not committed")
    lanes = Lanes(tmp_path / "b")
    assert content(lanes, 3) == as_written(records[:4])
    lane = Lane(tmp_path / "b", 3, SystemClock())
    assert {p.name for p in path.parent.iterdir() if not p.name.startswith("index.db")} == {"lane.lock", "00000001.log"}
    assert path.stat().st_size == whole
    lane.append(records)
    assert content(lanes, 3) == as_written(records)
    lane.close()
    lanes.close()


@pytest.mark.parametrize("where", [0, 5, 20, 115])
def test_one_flipped_byte_in_an_older_file_is_one_damaged_record(tmp_path: Path, lanes: Lanes, where: int) -> None:
    lane = Lane(tmp_path, 3, SystemClock(), SMALL_BYTES)
    records = samples(30)
    for start in range(0, 30, 5):
        lane.append(records[start : start + 5])
    rows = all_rows(lanes, 3)
    with (tmp_path / "3" / f"{rows[4].file:08d}.log").open("r+b") as file:
        file.seek(rows[4].offset + where)
        (byte,) = file.read(1)
        file.seek(rows[4].offset + where)
        file.write(bytes([byte ^ 1]))
    for row, (_, blob) in zip(rows, records, strict=True):
        if row.seq == 5:
            with pytest.raises(Damaged, match=rf"00000001\.log: the record at byte {rows[4].offset} is damaged"):
                lanes.read(row.place(3))
        else:
            assert lanes.read(row.place(3)) == blob
    lane.close()


def test_bytes_that_power_loss_took_are_damaged_records(tmp_path: Path, lanes: Lanes) -> None:
    records = samples(20)
    lane = Lane(tmp_path, 3, SystemClock())
    lane.append(records[:10])
    lane.close()
    path = tmp_path / "3" / "00000001.log"
    os.truncate(path, path.stat().st_size - 150)
    lane = Lane(tmp_path, 3, SystemClock())
    lane.append(records[10:])
    lane.close()
    read: list[bytes | None] = []
    for row in all_rows(lanes, 3):
        try:
            read.append(lanes.read(row.place(3)))
        except Damaged:
            read.append(b"damaged")
    blobs = [blob for _, blob in records]
    assert read == [*blobs[:8], b"damaged", b"damaged", *blobs[10:]]


def test_a_file_that_someone_removed_is_damage(tmp_path: Path, lanes: Lanes) -> None:
    lane = Lane(tmp_path, 3, SystemClock(), SMALL_BYTES)
    for record in samples(30):
        lane.append([record])
    (tmp_path / "3" / "00000002.log").unlink()
    gone = [row for row in all_rows(lanes, 3) if row.file == 2]
    assert gone
    for row in gone:
        with pytest.raises(Damaged, match=r"00000002\.log is gone"):
            lanes.read(row.place(3))
    lane.close()


@pytest.mark.parametrize("limit", ["records", "index"])
def test_a_full_disk_leaves_nothing_and_the_next_append_works(tmp_path: Path, lanes: Lanes, limit: str) -> None:
    lane = Lane(tmp_path, 3, SystemClock())
    large, small = samples(20, size=100_000), samples(20, size=10, seed=1)
    lane.append(large[:10])
    path = tmp_path / "3" / "00000001.log"
    before = path.stat().st_size
    group = large[10:] if limit == "records" else small
    room = before + 250_000 if limit == "records" else (tmp_path / "3" / "index.db-wal").stat().st_size
    with files_up_to(room):
        for _ in range(2):
            with pytest.raises(NotReady, match=r"traffic log|cannot be written: File too large"):
                lane.append(group)
    assert path.stat().st_size == before
    assert content(lanes, 3) == as_written(large[:10])
    assert lane.append(group) == len(group)
    assert content(lanes, 3) == as_written(large[:10] + group)
    lane.close()


def test_feedback_and_deletion_on_a_full_disk_leave_nothing(tmp_path: Path, lanes: Lanes) -> None:
    lane = Lane(tmp_path, 3, SystemClock())
    records = samples(10)
    lane.append(records)
    rows = all_rows(lanes, 3)
    with files_up_to((tmp_path / "3" / "index.db-wal").stat().st_size):
        for call in (
            lambda: lane.put_feedback([("a", 1, "one")]),
            lambda: lane.put_scores([ScoresEntry("a", "candidate", "new", 1, b"scores")]),
            lambda: lanes.delete(3, rows[:5]),
        ):
            with pytest.raises(NotReady, match="traffic log"):
                call()
    assert content(lanes, 3) == as_written(records)
    assert (lanes.inbox(3, 0, 10), lanes.scores(3, 0, 10)) == ([], [])
    lane.put_feedback([("a", 1, "one")])
    lanes.delete(3, rows[:5])
    assert content(lanes, 3) == as_written(records[5:])
    assert len(lanes.inbox(3, 0, 10)) == 1
    lane.close()


def test_a_full_disk_when_a_file_is_begun(tmp_path: Path, lanes: Lanes) -> None:
    lane = Lane(tmp_path, 3, SystemClock(), file_bytes=1)
    records = samples(2, size=1_000_000)
    lane.append(records[:1])
    with files_up_to(500_000), pytest.raises(NotReady, match="File too large"):
        lane.append(records[1:])
    assert [p.name for p in (tmp_path / "3").glob("*.log")] == ["00000001.log"]
    assert lane.append(records[1:]) == 1
    assert content(lanes, 3) == as_written(records)
    lane.close()


@pytest.mark.parametrize("file_bytes", [1, 1 << 20])
def test_what_was_committed_just_before_an_interrupt_stays(
    tmp_path: Path, lanes: Lanes, monkeypatch: pytest.MonkeyPatch, file_bytes: int
) -> None:
    committing = Index.write

    @contextmanager
    def interrupted(index: Index, *, durable: bool) -> Iterator[sqlite3.Connection]:
        with committing(index, durable=durable) as db:
            yield db
        raise KeyboardInterrupt

    lane = Lane(tmp_path, 3, SystemClock(), file_bytes)
    records = samples(9)
    lane.append(records[:3])
    with monkeypatch.context() as interrupting:
        interrupting.setattr(Index, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            lane.append(records[3:6])
    assert content(lanes, 3) == as_written(records[:6])
    assert lane.append(records) == 3
    assert content(lanes, 3) == as_written(records)
    lane.close()


def test_other_arms_scores_are_written_once_for_each_version(lane: Lane, lanes: Lanes) -> None:
    a, b = (head.prediction_id for head, _ in samples(2))
    first = ScoresEntry(a, "candidate", "new", 1, b"1" * 400)
    entries = [first, ScoresEntry(b, "candidate", "new", 1, b"2"), ScoresEntry(a, "candidate", "new", 2, b"3")]
    assert lane.put_scores([*entries, first._replace(scores=b"other")]) == 3
    assert lane.put_scores([first._replace(scores=b"other"), ScoresEntry(b, "stable", "old", 7, b"")]) == 1
    rows = lanes.scores(3, 0, 10)
    assert [(r.seq, *r[1:5], lanes.read(r.place(3))) for r in rows] == [
        (1, a, "candidate", "new", 1, b"1" * 400),
        (2, b, "candidate", "new", 1, b"2"),
        (3, a, "candidate", "new", 2, b"3"),
        (4, b, "stable", "old", 7, b""),
    ]
    assert lanes.scores(3, 2, 1) == rows[2:3]
    assert lanes.scores_of([b]) == [(3, rows[1]), (3, rows[3])]


def test_feedback_waits_in_the_inbox_until_it_is_trimmed(lane: Lane, lanes: Lanes, tmp_path: Path) -> None:
    other = Lane(tmp_path, 1, SystemClock())
    lane.put_feedback([("a", 1, "one"), ("b", 2, "two")])
    other.put_feedback([("a", 3, "three")])
    lane.put_feedback([("a", 4, "four")])
    rows = lanes.inbox(3, 0, 10)
    assert [tuple(row) for row in rows] == [(1, "a", 1, "one"), (2, "b", 2, "two"), (3, "a", 4, "four")]
    assert lanes.inbox(3, 1, 1) == rows[1:2]
    assert [(number, row.entry) for number, row in lanes.inbox_of(["a", "c"])] == [
        (1, "three"),
        (3, "one"),
        (3, "four"),
    ]
    lane.trim(2)
    assert lanes.inbox(3, 0, 10) == rows[2:]
    lane.trim(3)
    lane.put_feedback([("c", 5, "five")])
    assert [row.seq for row in lanes.inbox(3, 0, 10)] == [4]
    assert (lanes.last_inbox_seq(3), lanes.last_inbox_seq(9)) == (4, 0)
    other.close()


def test_feedback_is_not_taken_before_the_records_that_it_is_about_are_on_disk(
    lane: Lane, lanes: Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", failing)
        lane.append(samples(1))
        for _ in range(2):
            with pytest.raises(NotReady, match="Input/output error"):
                lane.put_feedback([("a", 1, "one")], 1)
        assert lanes.inbox(3, 0, 10) == []
        lane.put_feedback([("parked", 1, "one")])
    lane.put_feedback([("a", 1, "one")], 1)
    assert len(lanes.inbox(3, 0, 10)) == 2


def test_a_root_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotReady, match=r"traffic log .*file/3 cannot be opened"):
        Lane(tmp_path / "file", 3, SystemClock())
    with pytest.raises(NotReady, match="cannot be read"):
        Lanes(tmp_path / "file").numbers()
    with pytest.raises(NotReady, match="hold every lane from 65536 on"):
        Lane(tmp_path, 65536, SystemClock())


def test_what_is_no_lanes_index_is_refused(tmp_path: Path) -> None:
    Lane(tmp_path, 3, SystemClock()).close()
    path = tmp_path / "3" / "index.db"
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    for opened in (lambda: Lane(tmp_path, 3, SystemClock()), lambda: Lanes(tmp_path).rows(3, 0, 1)):
        with pytest.raises(InvalidInput, match="newer Baton"):
            opened()
    path.unlink()
    sqlite3.connect(path).execute("CREATE TABLE t (x)").connection.close()
    with pytest.raises(InvalidInput, match="another program's"):
        Lane(tmp_path, 3, SystemClock())
    path.write_bytes(b"x" * 5000)
    with pytest.raises(InvalidInput, match="not an index"):
        Lane(tmp_path, 3, SystemClock())
    path.unlink()
    lane = Lane(tmp_path, 3, SystemClock())
    assert lane.number == 3, "a lane that cannot be opened is not held"
    lane.close()
