"""Every fed row comes back once and in order, whatever becomes of the members."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_log import SmallLog

from pipeline.arrays import F32
from pipeline.errors import DataError, NotReady
from pipeline.features import Rows
from transfer.bundles.publish import load, save
from transfer.click_model.model import ClickModel
from transfer.teachers.pool import TRIES, MemberGone, TeacherPool
from transfer.teachers.process import BundleTeacher, ProcessMember


def chunk(start: int, rows: int) -> Rows:
    return Rows(np.arange(start, start + rows, dtype=np.int64)[:, None], np.empty((rows, 0), np.float32), ())


def chunks(sizes: list[int]) -> list[Rows]:
    ends = np.cumsum(sizes)
    return [chunk(int(end) - size, size) for end, size in zip(ends, sizes, strict=True)]


class Scripted:
    """Answers the ids it is sent; the n-th call does what the script says instead."""

    def __init__(self, name: str, script: dict[int, str] | None = None, slots: int = 1) -> None:
        self.name, self.slots = name, slots
        self._script = script or {}
        self._lock = threading.Lock()
        self.calls = 0
        self.closed = False

    def score(self, rows: Rows) -> F32:
        with self._lock:
            what = self._script.get(self.calls, "answer")
            self.calls += 1
        if what == "fail":
            raise ValueError("a bad moment")
        if what == "gone":
            raise MemberGone("it died")
        logits = rows.ids[:, 0].astype(np.float32)
        return logits[:-1] if what == "short" else logits

    def close(self) -> None:
        self.closed = True


def collected(pool: TeacherPool, sizes: list[int]) -> F32:
    return np.concatenate([np.empty(0, np.float32), *pool.score(chunks(sizes))])


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 5), max_size=30),
    scripts=st.lists(
        st.dictionaries(st.integers(0, 12), st.sampled_from(["fail", "gone", "short"]), max_size=6), max_size=4
    ),
    slots=st.integers(1, 3),
)
def test_rows_come_back_once_and_in_order(sizes: list[int], scripts: list[dict[int, str]], slots: int) -> None:
    pool = TeacherPool()
    members = [Scripted(f"m{at}", script, slots) for at, script in enumerate(scripts)]
    for member in [*members, Scripted("steady")]:
        pool.join(member)
    answered = None
    with contextlib.suppress(DataError):
        answered = collected(pool, sizes).tolist()
    pool.close()
    if answered is None:  # three members in turn took the same chunk for the last time
        assert sum("fail" in script.values() or "short" in script.values() for script in scripts) >= 3
        return
    assert answered == list(range(sum(sizes)))
    assert pool.counters.fed == pool.counters.returned == sum(sizes)
    assert all(member.closed for member in members)


def test_a_failing_member_is_tried_three_times_and_left_to_itself() -> None:
    pool = TeacherPool()
    bad = Scripted("bad", dict.fromkeys(range(100), "fail"))
    pool.join(bad)
    answers: list[F32] = []
    scoring = threading.Thread(target=lambda: answers.extend(pool.score(chunks([3, 2]))))
    scoring.start()
    while pool.members:
        time.sleep(0.001)
    assert (bad.calls, bad.closed, pool.counters.put_back) == (TRIES, True, 1)
    pool.join(Scripted("good"))  # what came late is as welcome
    scoring.join(30)
    assert np.concatenate(answers).tolist() == [0, 1, 2, 3, 4]
    pool.close()


def test_a_chunk_that_nobody_can_score_is_named() -> None:
    pool = TeacherPool()
    for at in range(3):
        pool.join(Scripted(f"m{at}", dict.fromkeys(range(100), "fail")))
    with pytest.raises(DataError, match="3 teachers in turn could not score chunk 0: a bad moment"):
        list(pool.score(chunks([2])))
    pool.close()


def test_without_members_it_gives_up_after_its_patience() -> None:
    pool = TeacherPool(patience=0.05)
    with pytest.raises(NotReady, match="no teacher"):
        list(pool.score(chunks([2])))
    late = Scripted("late", slots=2)
    pool.join(late)
    assert collected(pool, [2, 1]).tolist() == [0, 1, 2], "and may be used again"
    pool.leave("late")
    while not late.closed:
        time.sleep(0.001)
    with pytest.raises(NotReady):
        list(pool.score(chunks([2])))
    pool.close()


def test_reading_ahead_is_bounded() -> None:
    pool = TeacherPool(ahead=2)
    pool.join(Scripted("one", slots=2))
    drawn = 0

    def source() -> Iterator[Rows]:
        nonlocal drawn
        for rows in chunks([1] * 50):
            drawn += 1
            yield rows

    answers = pool.score(source())
    next(answers)
    assert drawn <= 5
    assert sum(1 for _ in answers) == 49
    pool.close()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    log = SmallLog(4_000, seed=3)
    model = ClickModel.create(log.schema, "dnn", 4, seed=1)
    path = tmp_path_factory.mktemp("teacher") / "teacher"
    save(model, path, "teacher")
    return path


def scored(pool: TeacherPool, log: SmallLog, rows: int, told: Callable[[int], None] = lambda at: None) -> F32:
    found = []
    for at, logits in enumerate(pool.score(part.rows for part in log.chunks(0.0, 1.0, rows))):
        told(at)
        found.append(logits)
    return np.concatenate(found)


@pytest.mark.long
def test_members_killed_at_random_lose_and_double_no_row(bundle: Path) -> None:
    log = SmallLog(4_000, seed=3)
    model = load(bundle)
    expected = np.concatenate([model.calibrated_logits(part.rows) for part in log.chunks(0.0, 1.0, 100)])
    pool = TeacherPool()
    teacher = BundleTeacher(bundle)
    members = [ProcessMember(f"p{at}", teacher) for at in range(2)]
    for member in members:
        pool.join(member)
    random_ = random.Random(7)
    victim, when = random_.choice(members), random_.randrange(5, 15)

    def kill(at: int) -> None:
        if at == when:
            assert victim.process.pid is not None
            os.kill(victim.process.pid, signal.SIGKILL)

    found = scored(pool, log, 100, kill)
    assert np.array_equal(found, expected)
    assert pool.counters.fed == pool.counters.returned == len(expected)
    pool.close()
    assert not any(member.process.is_alive() for member in members)


def test_a_teacher_that_cannot_be_loaded_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(MemberGone, match="manifest"):
        ProcessMember("none", BundleTeacher(tmp_path))
