"""Offline transfer, stage 1: a student of another architecture learns from its teacher on a retained window.

S1A projects the tables, S1B trains the dense part on frozen tables, S1C trains everything. S1B and S1C walk the window
once each, in time order, on all rows or a part of them. The teacher scores a row once. `OURS` and `PUBLISHED` differ in
their `Stage1Settings`. Next stop: the online worker, which goes on from the student's bundle.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from pipeline.arrays import F32
from pipeline.bundle.row_format import RowFormat
from pipeline.errors import InvalidInput
from transfer.bundles.frozen import FrozenTeacher
from transfer.click_model.blocks import TableSettings
from transfer.click_model.device import DeviceChoice, device_for
from transfer.click_model.model import LEVEL_ROWS, SCORING_ROWS, ClickModel, LearningSettings
from transfer.model_zoo import ZOO_ALONE, Architectures
from transfer.offline.held import ASIDE_BATCHES, Held
from transfer.offline.level import Level
from transfer.offline.projection import project_tables
from transfer.offline.sampling import Sample, log_k, strategic_batches
from transfer.offline.train import Progress, batch_for, first_rows
from transfer.offline.window import Teacher, Window
from transfer.quality.trust import Trust, label_losses

__all__ = ["OURS", "PUBLISHED", "Stage1Report", "Stage1Settings", "transfer_offline"]


@dataclass(frozen=True, slots=True)
class Stage1Settings:
    """Parameters of stage 1.

    Args:
        mode: `ours`, or `published`: CrossAdapt's, whose teacher's logits are those before calibration.
        teacher_weight: a, weight of the teacher's term of the loss in S1C.
        dense_teacher_weight: the same in S1B.
        adapt: move the weight with the evidence of paired losses (`transfer.quality.trust`), from `teacher_weight` for equal
            models.
        temperature: T.
        batch: rows per step; None: as `transfer.offline.train.batch_for`, or for about 200 steps on a part of the window.
        window_fraction: fraction of the window's rows that S1C trains on; None: all of them, as when the teacher has no
            tables to project.
        dense_window_fraction: the same of S1B.
        least_rows: a part smaller than this many rows is enlarged to it; to all rows where it would be above half of them.
        balanced: a part is drawn along the whole window, one batch from every `batch / window_fraction` rows, half of it
            positives; else it is the newest rows in time order.
        extend: a student that overtakes its teacher on the part trains on all rows: what it can learn there the teacher
            does not know. Never where the teacher has seen the window, or draws are balanced.
        warm: rows of the tables come with the optimiser state of the teacher, so that an id that was seen often goes on in
            small steps.
        correct_offset: train the label term on `s + log k`, so that balanced draws leave no bias.
        level: start at the level of the window's labels, see `ClickModel.start_level`.
        calibrate: fit the calibration on the tail: on rows of it that the student did not train on, or, when it trains on
            all rows, on their scores from before.
        tail: last fraction of the window, for that.
        teacher_saw_window: the teacher has trained on these rows, so its tables and scores remember their labels. Then
            only the level (beta) is calibrated, and no metrics at birth are given.
        per_table, weighted, centered: of S1A, see `transfer.offline.projection.project_tables`.
        dense_passes, joint_passes: over the window, of S1B and S1C; 0 leaves a part out.
        learning: rates of the student.
        hyperparameters: of the student's architecture.
        stored: how bundles store the student's rows; calibration and metrics are of rows rounded so.
        device: where the student's network is trained; tables stay in the machine's memory.

    Raises:
        InvalidInput: a value is out of range.
    """

    mode: Literal["ours", "published"] = "ours"
    teacher_weight: float = 0.7
    dense_teacher_weight: float = 0.7
    adapt: bool = True
    temperature: float = 1.0
    batch: int | None = None
    window_fraction: float | None = None
    dense_window_fraction: float | None = None
    least_rows: int = 0
    balanced: bool = False
    extend: bool = False
    warm: bool = False
    correct_offset: bool = True
    level: bool = True
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
    device: DeviceChoice = "cpu"

    def __post_init__(self) -> None:
        if self.mode not in ("ours", "published"):
            raise InvalidInput(f"mode is {self.mode!r}; choose 'ours' or 'published'", "mode")
        for name in ("teacher_weight", "dense_teacher_weight"):
            if not 0.0 <= (weight := getattr(self, name)) <= 1.0:
                raise InvalidInput(f"{name} is {weight}; it lies in 0..1", name)
        if self.temperature <= 0 or (self.batch is not None and self.batch < 2) or not 0.0 < self.tail < 1.0:
            raise InvalidInput("temperature must be positive, batch at least 2 and tail between 0 and 1", "settings")
        for name in ("window_fraction", "dense_window_fraction"):
            if (fraction := getattr(self, name)) is not None and not 0.0 < fraction <= 1.0:
                raise InvalidInput(f"{name} is {fraction}; it lies in 0..1", name)
        if self.calibrate and not self.joint_passes:
            raise InvalidInput("calibration needs a joint pass; set calibrate to False without one", "joint_passes")


OURS = Stage1Settings(window_fraction=0.1, dense_window_fraction=0.1, least_rows=4096, extend=True, warm=True)
"""Projected tables need no rows. The newest tenth of the window fits the network to them and both to the present; the rest
is for a student that has more to learn than its teacher knows."""
PUBLISHED = Stage1Settings(
    mode="published",
    adapt=False,
    temperature=4.0,
    batch=4096,
    window_fraction=0.1,
    dense_window_fraction=0.1,
    balanced=True,
    correct_offset=False,
    level=False,
    calibrate=False,
    per_table=True,
    weighted=False,
    centered=True,
    learning=LearningSettings(dense_rate=1e-3, tables=TableSettings(optimiser="adam", rate=0.1, linear_rate=0.1)),
)
"""The constants of CrossAdapt (arXiv 2602.01775), as its authors ran them on Criteo."""


@dataclass(frozen=True, slots=True)
class Stage1Report:
    """Figures of a run of stage 1: rows of the window, its positive rate, log k, steps, seconds per part, the student's
    metrics on the tail before it was trained on (empty without calibration), the teacher weight at the end."""

    mode: str
    rows: int
    rate: float
    log_k: float
    steps: int
    rows_trained: int
    seconds: dict[str, float]
    metrics: dict[str, float | None]
    teacher_weight: float


def transfer_offline(
    window: Window,
    arch: str,
    *,
    width: int = 16,
    settings: Stage1Settings = OURS,
    seed: int = 0,
    progress: Progress | None = None,
    architectures: Architectures = ZOO_ALONE,
) -> tuple[ClickModel, Stage1Report]:
    """A student that starts where its teacher is.

    Args:
        window: the retained rows and the teacher. A `ClickModel` has tables to project, a frozen one those that it lends;
            any other gives logits.
        arch, width: of the student.
        settings: `OURS`, `PUBLISHED` for the paper's own constants without any correction, or others.
        seed: of weights, projection and draws.
        progress: called with rows done and rows in all.
        architectures: what `arch` may name.

    Raises:
        DataError: the window is of one class, or the teacher's logits are not finite. Before any training.
        InvalidInput: the architecture refuses its arguments.
    """
    log_odds = log_k(window.rate)
    s = _fitted(settings, window)
    student = ClickModel.create(
        window.schema,
        arch,
        width,
        seed=seed,
        hyperparameters=s.hyperparameters,
        learning=s.learning,
        architectures=architectures,
    )
    student.stored = s.stored
    student.to(device_for(s.device))
    laps = _Laps(window)
    run = _Stage1(student, window, s, log_odds, np.random.default_rng(seed), progress)
    _initialise(student, window, s, seed)
    laps.end("s1a")
    for _ in range(s.dense_passes if _lends(window.teacher) else 0):
        run.learn_dense()
    laps.end("s1b")
    for _ in range(s.joint_passes):
        run.learn(s.window_fraction)
    if s.extend and s.window_fraction is not None and not s.balanced and run.overtakes():
        student.tables.restart()  # the optimiser state of the teacher's rows does not fit what they change to now
        run.learn(None)
    if s.calibrate:
        calibration, metrics = run.held.calibrate(student, slope=not s.teacher_saw_window)
        student.calibrate(calibration)
        student.metrics = {} if s.teacher_saw_window else metrics
        student.unknown_ids = {} if s.teacher_saw_window else run.held.unknown_ids
    laps.end("s1c")
    return student, Stage1Report(
        s.mode,
        window.rows,
        window.rate,
        log_odds,
        student.steps,
        student.rows_trained,
        {"score": window.seconds, **laps.seconds},
        student.metrics,
        run.teacher_weight,
    )


def _fitted(s: Stage1Settings, window: Window) -> Stage1Settings:
    """The settings for a window of this size and this kind of teacher."""
    if not _lends(window.teacher) and not s.balanced:
        s = replace(s, window_fraction=None)  # without its tables every id has to be learned from its own rows
    least = min(1.0, s.least_rows / window.rows)
    # A part that would leave less than half of the rows aside takes all: some must be left to calibrate on.
    joint, dense = (
        None if part is None or (least > part and least > 0.5) else max(part, least)
        for part in (s.window_fraction, s.dense_window_fraction)
    )
    return replace(s, window_fraction=joint, dense_window_fraction=dense)


def _initialise(student: ClickModel, window: Window, s: Stage1Settings, seed: int) -> None:
    """S1A: the teacher's tables and number transform, where it has them, and the level of the labels."""
    teacher = window.teacher
    if isinstance(teacher, ClickModel):
        project_tables(
            teacher, student, per_table=s.per_table, weighted=s.weighted, centered=s.centered, warm=s.warm, seed=seed
        )
    elif isinstance(teacher, FrozenTeacher) and teacher.tables.names:
        project_tables(teacher.tables, student, per_table=s.per_table, centered=s.centered, seed=seed)
    known = [spec.name for spec in teacher.schema.numbers] if isinstance(teacher, ClickModel) else []
    if any(spec.name not in known for spec in student.schema.numbers):
        student.fit_numbers(window.read(first_rows(window.log, window.start, window.stop).rows))
    if isinstance(teacher, ClickModel) and known:
        student.take_transform(teacher)
    if s.level:
        newest = next(window.chunks(LEVEL_ROWS, 1.0 - (s.window_fraction or 1.0)))
        student.start_level(newest.rows, window.loss_rate, newest.stands_for)


SAMPLED_TAIL_FRACTION = 0.9
"""Fraction of the window of a sampled or weighted log whose rows may calibrate."""


def _lends(teacher: Teacher) -> bool:
    """Whether a teacher has tables to project for all fields with vectors."""
    if isinstance(teacher, FrozenTeacher):
        return {f.table_name for f in teacher.schema.embedded} <= set(teacher.tables.names)
    return isinstance(teacher, ClickModel)


def _batch(rows: int, fraction: float | None) -> int:
    """Rows per step. On a part of the window the number of steps matters more than their cost: about 200 steps, of a power
    of two from 64 to 2,048 rows."""
    if fraction is None:
        return batch_for(rows)
    return 1 << min(max(round(fraction * rows / 150).bit_length() - 1, 6), 11)


class _Laps:
    """Seconds of each part, without those of the teacher's scoring within it."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._began, self._scored = window.clock(), window.seconds
        self.seconds: dict[str, float] = {}

    def end(self, part: str) -> None:
        now, scored = self._window.clock(), self._window.seconds
        self.seconds[part] = now - self._began - (scored - self._scored)
        self._began, self._scored = self._window.clock(), scored


class _Stage1:
    """Passes of a student over the batches of a window."""

    def __init__(
        self,
        student: ClickModel,
        window: Window,
        settings: Stage1Settings,
        log_odds: float,
        rng: np.random.Generator,
        progress: Progress | None,
    ) -> None:
        self._student, self._window, self._settings, self._rng = student, window, settings, rng
        # Of balanced draws that of the draws alone: they count what a row stands for.
        self._offset = (
            (window.log.label_offset or 0.0) if not settings.balanced else log_odds if settings.correct_offset else 0.0
        )
        self._level = Level()
        # A teacher that has trained on the rows remembers labels: its losses there are no evidence.
        adapts = settings.adapt and not settings.teacher_saw_window
        self._trust = Trust(settings.teacher_weight, highest=max(0.9, settings.teacher_weight)) if adapts else None
        self._progress = progress or (lambda done, total: None)
        dense = settings.dense_passes * (settings.dense_window_fraction or 1.0)
        joint = settings.joint_passes * (settings.window_fraction or 1.0)
        self._done, self._total = 0, round(window.rows * (2.0 if settings.balanced else dense + joint))
        self._fresh = 1.0
        """End of the rows that S1C has not trained on, as a fraction of the window."""
        self.held = Held()
        """Rows of the end of the window, scored before the tables learned from them."""

    @property
    def teacher_weight(self) -> float:
        """The teacher weight in S1C."""
        return self._settings.teacher_weight if self._trust is None else self._trust.teacher_weight

    def overtakes(self) -> bool:
        """Whether the student, trained on its part of the window, is ahead of its teacher by a standard error or more on
        the rows before that part; from then on that evidence sets the teacher weight.

        Never where the teacher has seen the window: it remembers labels, so it looks better than it is. Its projected rows
        remember them too, so more training on labels would only lean on that memory.
        """
        if self._trust is None:
            return False
        window, trust = self._window, Trust(self._settings.teacher_weight, discount=1.0 - 1e-9)
        level = Level.of(self.held) if window.weighted else 0.0
        for chunk in window.chunks(SCORING_ROWS, *self._fresh_tail()):
            counts = chunk.stands_for / chunk.stands_for.mean()
            losses = counts * label_losses(self._student.served_logits(chunk.rows) + level, chunk.labels)
            trust.update(losses, counts * label_losses(self._teacher_logits(chunk), chunk.labels))
        if trust.z > -1.0:
            return False
        self._trust, self._total = trust, self._total + window.rows
        return True

    def learn_dense(self) -> None:
        """S1B: a pass over the rows before S1C's part, the oldest where S1C takes all, with the tables frozen."""
        s = self._settings
        first = max(0.0, 1.0 - (s.window_fraction or 1.0) - (s.dense_window_fraction or 1.0))
        for batch in self._batches(s.dense_window_fraction, first):
            self._step(batch, s.dense_teacher_weight, train_tables=False)

    def learn(self, fraction: float | None) -> None:
        """S1C: a pass over the newest fraction of the rows, or all of them; rows of the end of the window are held out."""
        s = self._settings
        part = fraction or 1.0
        whole = fraction is None or s.balanced
        # Of a part the newer half: the student still changes fast in the older one.
        held = self._fresh_tail() if whole else (1.0 - part / 2, 1.0)
        self.held = Held()
        for batch in self._batches(fraction, 1.0 - part, held if s.calibrate else None):
            self._step(batch, self.teacher_weight, train_tables=True)
        if not whole:
            self._fresh = 1.0 - part
            # A part is few rows to calibrate on; those before it were not in these tables either.
            for chunk in self._window.chunks(SCORING_ROWS, *self._fresh_tail()) if s.calibrate else ():
                self.held.score(self._student, chunk.rows, chunk.labels, chunk.stands_for, final=True)

    def _fresh_tail(self) -> tuple[float, float]:
        """The newest rows that S1C has not trained on: first and last, as fractions of the window. Rows of a sampled or
        weighted log tell less of the level each, so it takes more of them."""
        tail = self._settings.tail
        even = self._window.log.label_offset == 0.0 and not self._window.weighted
        length = tail / 2 if even else max(SAMPLED_TAIL_FRACTION, tail / 2)
        return max(0.0, min(1.0 - tail, self._fresh - length)), self._fresh

    def _batches(
        self, fraction: float | None, first: float, held: tuple[float, float] | None = None
    ) -> Iterator[Sample]:
        """Balanced batches along the whole window, or those of the fraction of its rows that begins at `first`, in order."""
        s, window = self._settings, self._window
        size = s.batch or _batch(window.rows, fraction)
        if fraction is not None and s.balanced:
            chunks = self._scored(window.chunks(max(size, round(size / fraction))), held)
            return strategic_batches(chunks, batch=size, rng=self._rng)
        return self._scored(window.chunks(size, first, first + (fraction or 1.0)), held)

    def _scored(self, chunks: Iterator[Sample], held: tuple[float, float] | None) -> Iterator[Sample]:
        """The same chunks; those between the fractions `held` of the window are scored before they are yielded."""
        first, last = (round(self._window.rows * fraction) for fraction in held or (1.0, 1.0))
        uneven = self._window.log.label_offset != 0.0
        scored = 0
        for chunk in chunks:
            aside = False
            if first <= chunk.places[0] < last:
                aside = uneven and scored % ASIDE_BATCHES == 0
                scored += 1
                again = aside or not uneven
                self.held.score(self._student, chunk.rows, chunk.labels, chunk.stands_for, again=again)
            if not aside:
                yield chunk
            self._done = min(self._total, self._done + len(chunk.labels))
            self._progress(self._done, self._total)

    def _teacher_logits(self, sample: Sample) -> F32:
        return self._window.teacher_logits(sample, calibrated=self._settings.mode == "ours")

    def _step(self, batch: Sample, teacher_weight: float, train_tables: bool) -> None:
        guide = self._teacher_logits(batch)
        balanced = self._settings.balanced
        factor = (
            batch.weight if balanced else batch.loss_factor(self._window.log.label_offset) / self._window.mean_factor
        )
        self._student.step(
            batch.rows,
            batch.labels,
            teacher_logits=guide,
            teacher_weight=teacher_weight,
            temperature=self._settings.temperature,
            label_offset=self._offset,
            row_weight=factor,
            train_tables=train_tables,
        )
        if self._trust is not None:
            # Both on the log-odds of the labels as drawn, so that the pair is fair whatever the sampling.
            offset = self._offset if balanced else 0.0
            counts = np.ones_like(guide) if balanced else batch.stands_for / batch.stands_for.mean()
            student, teacher = self._student.last_logits + offset, guide + offset
            if self._window.weighted:
                student = self._level.corrected(student, batch.labels, counts)
            losses, others = label_losses(student, batch.labels), label_losses(teacher, batch.labels)
            self._trust.update(counts * losses, counts * others)
