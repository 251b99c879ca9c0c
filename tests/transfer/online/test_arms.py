"""A worker while the arms of its endpoint change: who is taught, from where on, and what a retired teacher still does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from worker_world import SCHEMA, fill, models, open_log, settings

from pipeline.bundle.versions import Repository
from transfer.bundles.publish import save
from transfer.click_model.model import ClickModel
from transfer.online.arms import Arms, Follower
from transfer.online.worker import Worker

LIMIT = 120.0


class World:
    """An endpoint whose arms a test sets, and the follower of it on a thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repository: Repository = models(folder)
        save(ClickModel.create(SCHEMA, "dnn", 8, seed=4), self.repository, "next")
        self.log = open_log(folder)
        self.arms: Arms | None = Arms("teacher", "student")
        self.made: list[tuple[Arms, int]] = []
        self.stop = threading.Event()
        self.follower = Follower(lambda: self.arms, self._make)

    def _make(self, arms: Arms, begin: int) -> Worker:
        self.made.append((arms, begin))
        pair = f"{arms.teacher}+{arms.student}"
        told = settings(self.folder, teacher=arms.teacher, student=arms.student)
        told = replace(told, folder=self.folder / "worker" / pair)
        return Worker(told, self.log, self.repository, begin=begin)

    def until(self, said: str, holds: object) -> None:
        waited = threading.Event()
        for _ in range(round(LIMIT / 0.05)):
            if holds():  # type: ignore[operator]
                return
            waited.wait(0.05)
        raise AssertionError(f"not within {LIMIT} s: {said}")

    def status(self) -> dict[str, object]:
        path = self.folder / "status" / "worker.json"
        found: dict[str, object] = json.loads(path.read_text()) if path.exists() else {}
        return found


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.log.close()


@contextmanager
def followed(world: World) -> Iterator[None]:
    thread = threading.Thread(target=world.follower.run, args=(world.stop,), name="follower")
    thread.start()
    try:
        yield
    finally:
        world.stop.set()
        thread.join(LIMIT)
        assert not thread.is_alive()


def test_another_student_is_taught_from_where_the_one_before_stood(world: World) -> None:
    fill(world.log, 60)
    with followed(world):
        world.until("the first student learns", lambda: world.status().get("trained_rows"))
        world.arms = None
        world.until("nobody is taught", lambda: world.follower.worker is None)
        first = world.made[0]
        world.arms = Arms("teacher", "next")
        world.until("the next student has a worker", lambda: len(world.made) == 2)
        assert first == (Arms("teacher", "student"), 0)
        assert world.made[1][0] == world.arms
        begin = world.made[1][1]
        assert begin > 0
        fill(world.log, 60, seed=1)
        world.until("it learns what comes now", lambda: "next" in world.status().get("versions", {}))  # type: ignore[operator]
        world.until("it trains", lambda: world.status().get("trained_rows"))
        worker = world.follower.worker
        assert worker is not None
        assert worker.place.position > begin
    assert len(list((world.folder / "worker").iterdir())) == 2


def test_a_retired_teacher_learns_no_more_and_steers_nobody(world: World) -> None:
    fill(world.log, 60)
    world.arms = Arms("teacher", "student", retired=True)
    with followed(world):
        world.until("the student learns alone", lambda: world.status().get("trained_rows"))
        assert world.status()["teacher_retired"] is True
        assert world.status()["weight"] == 0.0
        worker = world.follower.worker
        assert worker is not None
        steps = worker._teacher.model.rows_trained
        world.arms = Arms("teacher", "student")  # the rollout was undone
        world.until("it is told", lambda: not worker._distiller.adaptation.retired)
        fill(world.log, 60, seed=1)
        world.until("the teacher learns again", lambda: worker._teacher.model.rows_trained > steps)
    assert world.repository.versions("teacher")[0] == "1"
    assert len(world.made) == 1


def test_a_pair_that_cannot_work_is_waited_out_at_the_start_and_later(world: World) -> None:
    impossible = Arms("teacher", "teacher")
    world.arms = impossible
    with followed(world):
        for made in (1, 3):
            world.until("nothing can be learned", lambda made=made: len(world.made) == made)
            world.until("nobody learns", lambda: world.follower.worker is None)
            world.arms = Arms("teacher", "student")
            world.until("it works", lambda: world.follower.worker is not None)
            world.arms = impossible
