"""Offline transfer, stage 1: a student of another architecture learns what its teacher knows from a retained window.

S1A projects the tables, S1B trains the dense part on frozen tables, S1C trains everything; each of the latter walks the
window once, in time order. The teacher scores the window once. `ours` and `published` differ in the ways that
`Stage1Settings` names. Next stop: the online worker, which goes on from the student's bundle.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.errors import DataError, InvalidInput
from pipeline.features import Rows
from pipeline.row_format import RowFormat
from pipeline.schema import Schema
from transfer.data.log import Log
from transfer.model import ClickModel, LearningSettings
from transfer.projection import project_tables
from transfer.sampling import Batch, log_k, strategic_batches
from transfer.tables import TableSettings
from transfer.train import Held, Progress, batch_for, first_rows, window_rows
from transfer.trust import Trust, label_losses

__all__ = ["OURS", "PUBLISHED", "Stage1Report", "Stage1Settings", "Teacher", "transfer_offline"]

F32 = npt.NDArray[np.float32]


class Teacher(Protocol):
    """Whoever can score rows: a `ClickModel`, or a frozen model from elsewhere (then S1A is skipped)."""

    schema: Schema

    def calibrated_logits(self, rows: Rows) -> F32: ...


@dataclass(frozen=True, slots=True)
class Stage1Settings:
    """What stage 1 does.

    Args:
        a: share of the teacher's term.
        adapt: move the share with the evidence of paired losses (`transfer.trust`), from `a` for equal models.
        temperature: T.
        batch: rows per step; None: as `transfer.train.batch_for` says.
        ratio: share of the rows that is trained on, by balanced draws from chunks of `batch / ratio` rows; None: all
            rows, at their natural rate.
        correct_offset: train the label term on `s + log k`, so that balanced draws leave no bias.
        calibrate: fit the calibration on the tail, scored before it is trained on.
        tail: last share of the window, held out in time for that.
        teacher_saw_window: the teacher has trained on these rows, so what it hands over remembers their labels. Then only
            the level (beta) is calibrated, and no metrics at birth are claimed.
        per_table, weighted, centered: of S1A, see `transfer.projection.project_tables`.
        dense_passes, joint_passes: over the window, of S1B and S1C; 0 leaves a part out.
        learning: rates of the student.
        hyperparameters: of the student's architecture.
        stored: how bundles store the student's rows; calibration and metrics are of rows rounded so.
    """

    a: float = 0.7
    adapt: bool = True
    temperature: float = 1.0
    batch: int | None = None
    ratio: float | None = None
    correct_offset: bool = True
    calibrate: bool = True
    tail: float = 0.2
    teacher_saw_window: bool = False
    per_table: bool = False
    weighted: bool = True
    centered: bool = False
    dense_passes: int = 1
    joint_passes: int = 1
    learning: LearningSettings = field(default_factory=LearningSettings)
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    stored: RowFormat = "float32"

    def __post_init__(self) -> None:
        if not 0.0 <= self.a <= 1.0:
            raise InvalidInput(f"a is {self.a}; the teacher's share lies in 0..1", "a")
        if self.temperature <= 0 or (self.batch is not None and self.batch < 2) or not 0.0 < self.tail < 1.0:
            raise InvalidInput("temperature must be positive, batch at least 2 and tail between 0 and 1", "settings")
        if self.ratio is not None and not 0.0 < self.ratio <= 1.0:
            raise InvalidInput(f"ratio is {self.ratio}; the sampled share lies in 0..1", "ratio")
        if self.calibrate and not self.joint_passes:
            raise InvalidInput("calibration needs a joint pass; set calibrate to False without one", "joint_passes")


OURS = Stage1Settings()
PUBLISHED = Stage1Settings(
    adapt=False,
    temperature=4.0,
    batch=4096,
    ratio=0.1,
    correct_offset=False,
    calibrate=False,
    per_table=True,
    weighted=False,
    centered=True,
    learning=LearningSettings(dense_rate=1e-3, tables=TableSettings(optimiser="adam", rate=0.1, linear_rate=0.1)),
)
"""The constants of CrossAdapt (arXiv 2602.01775), as its authors ran them on Criteo."""


@dataclass(frozen=True, slots=True)
class Stage1Report:
    """What stage 1 did: rows of the window, its positive share, log k, seconds per part, steps, and the student's metrics
    on the tail before it was trained on (empty without calibration), the teacher's share `a` at the end."""

    mode: str
    rows: int
    rate: float
    log_k: float
    steps: int
    rows_trained: int
    seconds: dict[str, float]
    metrics: dict[str, float | None]
    a: float


def transfer_offline(
    teacher: Teacher,
    log: Log,
    arch: str,
    *,
    width: int = 16,
    start: float = 0.0,
    stop: float = 1.0,
    mode: Literal["ours", "published"] = "ours",
    settings: Stage1Settings | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[ClickModel, Stage1Report]:
    """A student that starts where its teacher is.

    Args:
        teacher: the model that serves today. Only a `ClickModel` has tables to project; any other gives logits.
        log: rows in time order, labelled.
        arch, width: of the student.
        start, stop: row quantiles of the retained window.
        mode: `ours`, or `published` for the paper's own constants without any correction.
        settings: instead of the mode's own.
        seed: of weights, projection and draws.
        progress: told of rows done.
        clock: seconds, for the report.

    Raises:
        DataError: the window is empty or of one class, or the teacher's logits are not finite. Before any training.
        InvalidInput: teacher and log take different fields, or the architecture refuses its arguments.
    """
    if mode not in ("ours", "published"):
        raise InvalidInput(f"mode is {mode!r}; choose 'ours' or 'published'", "mode")
    s = settings or (OURS if mode == "ours" else PUBLISHED)
    difference = teacher.schema.inputs_match(log.schema)
    if difference is not None:
        raise InvalidInput(f"the teacher and the log must have the same fields: {difference}", "schema")
    student = ClickModel.create(
        log.schema, arch, width, seed=seed, hyperparameters=s.hyperparameters, learning=s.learning
    )
    student.stored = s.stored
    seconds: dict[str, float] = {}
    began = clock()

    def lap(part: str) -> None:
        nonlocal began
        seconds[part] = clock() - began
        began = clock()

    window = window_rows(log, start, stop)
    s = replace(s, batch=s.batch or batch_for(window))
    count = _Counter(window * (1 + s.dense_passes + s.joint_passes), progress)
    cached = _score_window(teacher, log, start, stop, calibrated=mode == "ours", count=count)
    window, offset = len(cached.logits), log_k(cached.rate)
    lap("score")

    if isinstance(teacher, ClickModel):
        project_tables(teacher, student, per_table=s.per_table, weighted=s.weighted, centered=s.centered, seed=seed)
        if teacher.network.transform is not None and student.network.transform is not None:
            student.network.transform.load_state_dict(teacher.network.transform.state_dict())
    else:
        student.fit_numbers(first_rows(log, start, stop))
    lap("s1a")

    run = _Stage1(student, s, offset if s.correct_offset and s.ratio is not None else 0.0, np.random.default_rng(seed))
    for _ in range(s.dense_passes if isinstance(teacher, ClickModel) else 0):
        run.learn(cached.chunks(log, start, stop, run.chunk_rows, count), train_tables=False)
    lap("s1b")

    held = Held()
    for passed in range(s.joint_passes):
        last = passed == s.joint_passes - 1
        body = round(window * (1.0 - s.tail)) if last and s.calibrate else window
        chunks = cached.chunks(log, start, stop, run.chunk_rows, count)
        run.learn(_scoring(chunks, student, held, body), train_tables=True)
    if s.calibrate:
        student.calibration, metrics = held.calibrate(slope=not s.teacher_saw_window)
        student.metrics = {} if s.teacher_saw_window else metrics
    lap("s1c")
    return student, Stage1Report(
        mode,
        window,
        cached.rate,
        offset,
        student.steps,
        student.rows_trained,
        seconds,
        student.metrics,
        s.a if run.trust is None else run.trust.a,
    )


class _Stage1:
    """Steps of one kind on the batches of a window."""

    def __init__(self, student: ClickModel, settings: Stage1Settings, offset: float, rng: np.random.Generator) -> None:
        self._student, self._settings, self._offset, self._rng = student, settings, offset, rng
        # A teacher that has trained on the rows remembers labels: its losses there say nothing of whom to believe.
        adapts = settings.adapt and not settings.teacher_saw_window
        self.trust = Trust(settings.a, highest=max(0.9, settings.a)) if adapts else None

    @property
    def chunk_rows(self) -> int:
        s = self._settings
        assert s.batch is not None
        return s.batch if s.ratio is None else max(s.batch, round(s.batch / s.ratio))

    def learn(self, chunks: Iterator[Batch], *, train_tables: bool) -> None:
        s = self._settings
        assert s.batch is not None
        batches = chunks if s.ratio is None else strategic_batches(chunks, batch=s.batch, rng=self._rng)
        for batch in batches:
            self._student.step(
                batch.rows,
                batch.labels,
                teacher_logits=batch.teacher_logits,
                a=s.a if self.trust is None else self.trust.a,
                temperature=s.temperature,
                label_offset=self._offset,
                train_tables=train_tables,
            )
            if self.trust is not None:
                # Both on the log-odds of the labels as drawn, so that the pair is fair whatever the sampling.
                mine, theirs = self._student.last_logits + self._offset, batch.teacher_logits + self._offset
                self.trust.update(label_losses(mine, batch.labels), label_losses(theirs, batch.labels))


class _Counter:
    """Rows done, told to whoever shows progress."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total, self._progress, self._done = total, progress, 0

    def __call__(self, rows: int) -> None:
        self._done = min(self._total, self._done + rows)  # a window's edge may move by one request
        if self._progress is not None:
            self._progress(self._done, self._total)


@dataclass(frozen=True, slots=True)
class _Scored:
    """The teacher's logits beside the rows of a window, float32 `[window]`, and the window's positive share."""

    logits: F32
    rate: float

    def chunks(self, log: Log, start: float, stop: float, chunk_rows: int, count: _Counter) -> Iterator[Batch]:
        at = 0
        for chunk in log.chunks(start, stop, chunk_rows):
            n = len(chunk.labels)
            yield Batch(chunk.rows, chunk.labels, self.logits[at : at + n])
            at += n
            count(n)


def _score_window(
    teacher: Teacher, log: Log, start: float, stop: float, *, calibrated: bool, count: _Counter
) -> _Scored:
    logits: list[F32] = []
    positives = 0.0
    for chunk in log.chunks(start, stop, 16_384):
        if calibrated or not isinstance(teacher, ClickModel):
            logits.append(teacher.calibrated_logits(chunk.rows))
        else:
            logits.append(teacher.logits(chunk.rows))
        if not np.isfinite(logits[-1]).all():
            raise DataError("the teacher's logits hold NaN or infinity; no student can learn from it", "teacher")
        positives += float(chunk.labels.sum())
        count(len(chunk.labels))
    if not logits:
        raise DataError(f"there are no rows between {start} and {stop} of the log; widen the window", "from")
    joined = np.concatenate(logits)
    return _Scored(joined, positives / len(joined))


def _scoring(chunks: Iterator[Batch], student: ClickModel, held: Held, body: int) -> Iterator[Batch]:
    """The same chunks; those after the first `body` rows are scored before they are handed on."""
    seen = 0
    for chunk in chunks:
        if seen >= body:
            held.add(student.served_logits(chunk.rows), chunk.labels)
        seen += len(chunk.labels)
        yield chunk
