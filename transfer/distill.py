"""Offline transfer, stage 1: a student of another architecture learns what its teacher knows from a retained window.

S1A projects the tables, S1B trains the dense part on frozen tables, S1C trains everything; each of the latter walks the
window once, in time order, on all rows or on a share of them. The teacher scores a row once. `ours` and `published` differ
in the ways that `Stage1Settings` names. Next stop: the online worker, which goes on from the student's bundle.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.errors import InvalidInput
from pipeline.features import Rows
from pipeline.row_format import RowFormat
from transfer.blocks import TableSettings
from transfer.data.log import Log
from transfer.model import ClickModel, LearningSettings
from transfer.projection import project_tables
from transfer.sampling import Drawn, even_batches, log_k, strategic_batches
from transfer.train import Held, Progress, batch_for, first_rows
from transfer.trust import Trust, label_losses
from transfer.window import Teacher, Window

__all__ = ["OURS", "PUBLISHED", "Stage1Report", "Stage1Settings", "transfer_offline"]

F32 = npt.NDArray[np.float32]
CALIBRATION_ERROR = 0.01
"""Standard error of beta beyond which more rows of the tail are scored, if there are."""


@dataclass(frozen=True, slots=True)
class Stage1Settings:
    """What stage 1 does.

    Args:
        a: share of the teacher's term in S1C.
        dense_a: the same in S1B.
        adapt: move the share with the evidence of paired losses (`transfer.trust`), from `a` for equal models.
        temperature: T.
        batch: rows per step; None: as `transfer.train.batch_for` says, or for about 200 steps on a share of the rows.
        ratio: share of the rows that S1C trains on, drawn from chunks of `batch / ratio` rows; None: all of them, as
            when the teacher has no tables to hand over.
        dense_ratio: the same of S1B.
        least_rows: a share smaller than this many rows is enlarged to it; to all rows where it would be above half of them.
        balanced: half of the drawn rows are positives; else they come at their natural rate.
        correct_offset: train the label term on `s + log k`, so that balanced draws leave no bias.
        calibrate: fit the calibration on the tail: on rows of it that the student did not train on, or, when it trains on
            all rows, on their scores from before.
        tail: last share of the window, for that.
        teacher_saw_window: the teacher has trained on these rows, so what it hands over remembers their labels. Then only
            the level (beta) is calibrated, and no metrics at birth are claimed.
        per_table, weighted, centered: of S1A, see `transfer.projection.project_tables`.
        dense_passes, joint_passes: over the window, of S1B and S1C; 0 leaves a part out.
        learning: rates of the student.
        hyperparameters: of the student's architecture.
        stored: how bundles store the student's rows; calibration and metrics are of rows rounded so.
    """

    a: float = 0.7
    dense_a: float = 0.7
    adapt: bool = True
    temperature: float = 1.0
    batch: int | None = None
    ratio: float | None = None
    dense_ratio: float | None = None
    least_rows: int = 0
    balanced: bool = False
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
        for name, share in (("a", self.a), ("dense_a", self.dense_a)):
            if not 0.0 <= share <= 1.0:
                raise InvalidInput(f"{name} is {share}; the teacher's share lies in 0..1", name)
        if self.temperature <= 0 or (self.batch is not None and self.batch < 2) or not 0.0 < self.tail < 1.0:
            raise InvalidInput("temperature must be positive, batch at least 2 and tail between 0 and 1", "settings")
        for name, part in (("ratio", self.ratio), ("dense_ratio", self.dense_ratio)):
            if part is not None and not 0.0 < part <= 1.0:
                raise InvalidInput(f"{name} is {part}; the sampled share lies in 0..1", name)
        if self.calibrate and not self.joint_passes:
            raise InvalidInput("calibration needs a joint pass; set calibrate to False without one", "joint_passes")


OURS = Stage1Settings(dense_ratio=0.1, least_rows=4096)
"""A tenth of the rows brings the network to the tables that were handed over; all of them then train both. With a tenth
for that too (`ratio`) it takes a quarter of the time and starts with less AUC where the teacher is far behind."""
PUBLISHED = Stage1Settings(
    adapt=False,
    temperature=4.0,
    batch=4096,
    ratio=0.1,
    dense_ratio=0.1,
    balanced=True,
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
    score: Callable[[Rows], F32] | None = None,
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
        score: gives the teacher's logits in its place, calibrated as the mode wants them; see `Window`.
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
    window = Window(teacher, log, start, stop, calibrated=mode == "ours", score=score, clock=clock)
    began, asked = clock(), 0.0

    def lap(part: str) -> None:
        """Note a part's seconds without those of the teacher's scoring within it."""
        nonlocal began, asked
        seconds[part] = clock() - began - (window.seconds - asked)
        began, asked = clock(), window.seconds

    offset = log_k(window.rate)
    if not isinstance(teacher, ClickModel) and not s.balanced:
        s = replace(s, ratio=None)  # without its tables every id has to be learned from its own rows
    s = _fitted(s, window.rows)
    run = _Stage1(student, window, s, offset, np.random.default_rng(seed), progress)
    if isinstance(teacher, ClickModel):
        project_tables(teacher, student, per_table=s.per_table, weighted=s.weighted, centered=s.centered, seed=seed)
        if teacher.network.transform is not None and student.network.transform is not None:
            student.network.transform.load_state_dict(teacher.network.transform.state_dict())
    else:
        student.fit_numbers(first_rows(log, start, stop))
    lap("s1a")

    for _ in range(s.dense_passes if isinstance(teacher, ClickModel) else 0):
        run.learn(s.dense_ratio, s.dense_a, train_tables=False)
    lap("s1b")

    spare = s.ratio is not None and not s.balanced
    for passed in range(s.joint_passes):
        last = s.calibrate and passed == s.joint_passes - 1
        run.learn(s.ratio, s.a, train_tables=True, hold_out=last and not spare)
    if s.calibrate:
        if spare:
            run.score_tail()
        student.calibration, metrics = run.held.calibrate(slope=not s.teacher_saw_window)
        student.metrics = {} if s.teacher_saw_window else metrics
    lap("s1c")
    return student, Stage1Report(
        mode,
        window.rows,
        window.rate,
        offset,
        student.steps,
        student.rows_trained,
        {"score": window.seconds, **seconds},
        student.metrics,
        run.a,
    )


def _fitted(s: Stage1Settings, rows: int) -> Stage1Settings:
    """The settings for a window of so many rows."""
    least = min(1.0, s.least_rows / rows)
    # A part that would leave less than half of the rows aside takes all: some must be left to calibrate on.
    ratio, dense = (
        None if r is None or (least > r and least > 0.5) else max(r, least) for r in (s.ratio, s.dense_ratio)
    )
    batch = s.batch
    if batch is None:
        share = None if ratio is None else 1 << min(max(round(ratio * rows / 150).bit_length() - 1, 6), 11)
        batch = share or batch_for(rows)
    return replace(s, ratio=ratio, dense_ratio=dense, batch=batch)


class _Stage1:
    """Steps of one kind on the batches of a window."""

    def __init__(
        self,
        student: ClickModel,
        window: Window,
        settings: Stage1Settings,
        offset: float,
        rng: np.random.Generator,
        progress: Progress | None,
    ) -> None:
        self._student, self._window, self._settings, self._rng = student, window, settings, rng
        self._offset = offset if settings.balanced and settings.correct_offset else 0.0
        # A teacher that has trained on the rows remembers labels: its losses there say nothing of whom to believe.
        adapts = settings.adapt and not settings.teacher_saw_window
        self._trust = Trust(settings.a, highest=max(0.9, settings.a)) if adapts else None
        self._progress = progress or (lambda done, total: None)
        self._done, self._total = 0, window.rows * (settings.dense_passes + settings.joint_passes)
        self._used = np.zeros(window.rows, np.bool_)
        self.held = Held()
        """Rows of the last part of the window, scored by the student before it trained on them, or without."""

    @property
    def a(self) -> float:
        """The teacher's share in S1C."""
        return self._settings.a if self._trust is None else self._trust.a

    def learn(self, ratio: float | None, a: float, *, train_tables: bool, hold_out: bool = False) -> None:
        """One pass over the window, on a share of its rows."""
        s, window = self._settings, self._window
        assert s.batch is not None
        chunks = self._watched(window.chunks(s.batch if ratio is None else max(s.batch, round(s.batch / ratio))))
        if hold_out:
            chunks = self._scored(chunks, round(window.rows * (1.0 - s.tail)))
        for batch in self._drawn(chunks, ratio):
            self._step(batch, self.a if train_tables else a, train_tables)

    def _scored(self, chunks: Iterator[Drawn], first: int) -> Iterator[Drawn]:
        """The same chunks; those from row `first` on are held out: scored before they are handed on."""
        for chunk in chunks:
            if chunk.places[0] >= first:
                self.held.add(self._student.served_logits(chunk.rows), chunk.labels)
            yield chunk

    def score_tail(self) -> None:
        """Hold out the newest rows that no step was taken on: the whole tail, or as many as give beta to 1 %.

        Only after draws at the natural rate: what balanced ones leave behind has too few positives.
        """
        s, window = self._settings, self._window
        enough = 1.0 / (CALIBRATION_ERROR**2 * window.rate * (1.0 - window.rate))
        for chunk in window.chunks(8192, newest=min(s.tail, enough / window.rows)):
            unused = np.flatnonzero(~self._used[chunk.places])
            if len(unused):
                self.held.add(self._student.served_logits(chunk.rows.take(unused)), chunk.labels[unused])

    def _drawn(self, chunks: Iterator[Drawn], ratio: float | None) -> Iterator[Drawn]:
        s = self._settings
        assert s.batch is not None
        if ratio is None:
            return chunks
        if s.balanced:
            return strategic_batches(chunks, batch=s.batch, rng=self._rng)
        return even_batches(chunks, ratio=ratio, rng=self._rng)

    def _step(self, batch: Drawn, a: float, train_tables: bool) -> None:
        s, guide = self._settings, self._window.teacher_logits(batch)
        self._used[batch.places] = True
        self._student.step(
            batch.rows,
            batch.labels,
            teacher_logits=guide,
            a=a,
            temperature=s.temperature,
            label_offset=self._offset,
            train_tables=train_tables,
        )
        if self._trust is not None:
            # Both on the log-odds of the labels as drawn, so that the pair is fair whatever the sampling.
            mine, theirs = self._student.last_logits + self._offset, guide + self._offset
            self._trust.update(label_losses(mine, batch.labels), label_losses(theirs, batch.labels))

    def _watched(self, chunks: Iterator[Drawn]) -> Iterator[Drawn]:
        for chunk in chunks:
            yield chunk
            self._done = min(self._total, self._done + len(chunk.labels))
            self._progress(self._done, self._total)
