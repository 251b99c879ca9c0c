"""Runs of an experiment: the start of each, and its learner on the stream.

All runs have the same rows in the same order and batches of the same size on the stream. Next stop: `crossadapt`, which
feeds them the stream and judges them; `learners`, which learn a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.arrays import F32, Array
from pipeline.features import Rows
from pipeline.schema import Schema
from transfer.click_model.model import ClickModel
from transfer.click_model.state import model_from
from transfer.data.log import Log
from transfer.experiment.learners import (
    CoDistilled,
    Distilled,
    Frozen,
    LabelsOnly,
    Learner,
    RareSteps,
    keep_replay,
)
from transfer.model_zoo import Architectures
from transfer.offline.distill import OURS, PUBLISHED, Stage1Settings, transfer_offline
from transfer.offline.train import train
from transfer.offline.window import Teacher, Window
from transfer.online.adapt import AdaptSettings
from transfer.online.codistill import CoDistiller
from transfer.quality.measured import Stopwatch

__all__ = ["RUNS", "STANDARD", "Start", "Task"]


@dataclass(frozen=True)
class Task:
    """Task of one seed: what its runs have in common.

    Args:
        log: all rows.
        retained: first and last row of the window that is still on disk, as fractions; the stream follows it.
        stream_rows: rows of the stream.
        arch, width: of the student.
        architectures: what the names of teacher and student stand for.
        teacher: the state of the teacher, trained up to the end of the window.
        teacher_seconds: that this took.
        batch: rows per step on the stream.
        adapt, holdout: of co-distillation, as the worker's settings.
        calibrate_every: batches between two publications of the student; what is a minute to a worker is a few batches of
            a stream that stands for a day.
    """

    log: Log
    retained: tuple[float, float]
    stream_rows: int
    arch: str
    architectures: Architectures
    width: int
    teacher: tuple[Mapping[str, Any], Mapping[str, Array]]
    teacher_seconds: float
    seed: int
    batch: int
    adapt: AdaptSettings = field(default_factory=AdaptSettings)
    holdout: float = 0.05
    calibrate_every: int = 5
    ours: Stage1Settings = field(default_factory=lambda: replace(OURS, teacher_saw_window=True))

    def teacher_copy(self) -> ClickModel:
        """A new copy of the teacher."""
        return model_from(*self.teacher, self.architectures)

    @property
    def replay_rows(self) -> int:
        """Rows to keep for replay: as many as the largest replay ratio may draw from a stream of this length."""
        return max(1, round(0.3 * self.stream_rows))


@dataclass(frozen=True, slots=True)
class Start:
    """State of a run before the stream, and whether a transfer (stage 1) was part of it."""

    learner: Learner
    transferred: bool = False
    seconds_before: float = 0.0
    """Seconds of training from before this run, or (negative) of work within it that this kind of run does not need."""


class _LogitsOnly:
    """A teacher of which only the predictions are known."""

    def __init__(self, teacher: ClickModel) -> None:
        self._teacher = teacher
        self.schema: Schema = teacher.schema

    def calibrated_logits(self, rows: Rows) -> F32:
        return self._teacher.calibrated_logits(rows)


def _teacher_frozen(task: Task, watch: Stopwatch) -> Start:
    return Start(Frozen(task.teacher_copy()), seconds_before=task.teacher_seconds)


def _teacher_online(task: Task, watch: Stopwatch) -> Start:
    return Start(RareSteps(task.teacher_copy(), task.adapt.every), seconds_before=task.teacher_seconds)


def _scratch(task: Task, watch: Stopwatch) -> Start:
    start, stop = task.retained
    with watch.running():
        model = train(
            task.log,
            task.arch,
            width=task.width,
            start=start,
            stop=stop,
            seed=task.seed,
            architectures=task.architectures,
        )
    return Start(LabelsOnly(model))


def _warm_embeddings(task: Task, watch: Stopwatch) -> Start:
    labels_only = Stage1Settings(teacher_weight=0.0, adapt=False, dense_passes=0, teacher_saw_window=True)
    with watch.running():
        model, seconds = _stage1(task, task.teacher_copy(), labels_only, watch)
    # Labels alone need no teacher's logits.
    return Start(LabelsOnly(model), transferred=True, seconds_before=-seconds["score"])


def _plain_kd(task: Task, watch: Stopwatch) -> Start:
    teacher = task.teacher_copy()
    plain = Stage1Settings(
        teacher_weight=task.adapt.teacher_weight, adapt=False, dense_passes=0, teacher_saw_window=True
    )
    with watch.running():
        model, _ = _stage1(task, _LogitsOnly(teacher), plain, watch)
    return Start(Distilled(model, teacher, task.adapt.teacher_weight), transferred=True)


def _published(task: Task, watch: Stopwatch) -> Start:
    teacher = task.teacher_copy()
    with watch.running():
        student, _ = _stage1(task, teacher, PUBLISHED, watch)
        distiller = _distiller(task, teacher, student, adapt=False, temperature=PUBLISHED.temperature)
    return Start(CoDistilled(distiller, holdout=0.0, calibrate_every=task.calibrate_every), transferred=True)


def _ours(task: Task, watch: Stopwatch) -> Start:
    return _codistilled(task, watch, task.ours)


def _ours_all(task: Task, watch: Stopwatch) -> Start:
    return _codistilled(task, watch, replace(task.ours, window_fraction=None, warm=False))


def _codistilled(task: Task, watch: Stopwatch, settings: Stage1Settings) -> Start:
    teacher = task.teacher_copy()
    with watch.running():
        student, _ = _stage1(task, teacher, settings, watch)
        distiller = _distiller(task, teacher, student, adapt=True)
    learner = CoDistilled(distiller, holdout=task.holdout, calibrate_every=task.calibrate_every)
    return Start(learner, transferred=True)


def _stage1(
    task: Task, teacher: Teacher, settings: Stage1Settings, watch: Stopwatch
) -> tuple[ClickModel, dict[str, float]]:
    window = Window(teacher, task.log, *task.retained, clock=watch.clock)
    student, report = transfer_offline(
        window, task.arch, width=task.width, settings=settings, seed=task.seed, architectures=task.architectures
    )
    return student, report.seconds


def _distiller(
    task: Task, teacher: ClickModel, student: ClickModel, *, adapt: bool, temperature: float = 1.0
) -> CoDistiller:
    replay = keep_replay(task.log, *task.retained, teacher, task.replay_rows, task.seed)
    settings = task.adapt if adapt else replace(task.adapt, adapt=False)
    return CoDistiller(teacher, student, replay, settings=settings, seed=task.seed, temperature=temperature)


RUNS: dict[str, Callable[[Task, Stopwatch], Start]] = {
    "teacher_frozen": _teacher_frozen,
    "teacher_online": _teacher_online,
    "scratch": _scratch,
    "warm_embeddings": _warm_embeddings,
    "plain_kd": _plain_kd,
    "published": _published,
    "ours": _ours,
    "ours_all": _ours_all,
}

STANDARD = tuple(name for name in RUNS if name != "ours_all")
"""The runs of an experiment by default."""
