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

from pipeline.bundle.row_format import RowFormat
from pipeline.errors import InvalidInput
from pipeline.features import Rows
from transfer.click_model.blocks import TableSettings
from transfer.click_model.device import DeviceChoice, device_for
from transfer.click_model.model import LEVEL_ROWS, SCORING_ROWS, ClickModel, LearningSettings
from transfer.data.log import Log
from transfer.offline.projection import project_tables
from transfer.offline.sampling import Sample, log_k, strategic_batches
from transfer.offline.train import Held, Progress, batch_for, first_rows
from transfer.offline.window import Teacher, Window
from transfer.quality.trust import Trust, label_losses

__all__ = ["OURS", "PUBLISHED", "Stage1Report", "Stage1Settings", "transfer_offline"]

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Stage1Settings:
    """What stage 1 does.

    Args:
        a: share of the teacher's term in S1C.
        dense_a: the same in S1B.
        adapt: move the share with the evidence of paired losses (`transfer.quality.trust`), from `a` for equal models.
        temperature: T.
        batch: rows per step; None: as `transfer.offline.train.batch_for` says, or for about 200 steps on a share of the rows.
        ratio: share of the rows that S1C trains on; None: all of them, as when the teacher has no tables to hand over.
        dense_ratio: the same of S1B.
        least_rows: a share smaller than this many rows is enlarged to it; to all rows where it would be above half of them.
        balanced: a share is drawn along the whole window, one batch from every `batch / ratio` rows, half of it positives;
            else it is the newest rows, as they come.
        extend: a student that overtakes its teacher on the share goes over all rows: what it can learn there the teacher
            does not know. Never where the teacher has seen the window, or draws are balanced.
        warm: rows of the tables come with what their optimiser gathered at the teacher, so that an id that was seen
            often goes on in small steps.
        correct_offset: train the label term on `s + log k`, so that balanced draws leave no bias.
        level: start at the level of the window's labels, see `ClickModel.start_level`.
        calibrate: fit the calibration on the tail: on rows of it that the student did not train on, or, when it trains on
            all rows, on their scores from before.
        tail: last share of the window, for that.
        teacher_saw_window: the teacher has trained on these rows, so what it hands over remembers their labels. Then only
            the level (beta) is calibrated, and no metrics at birth are claimed.
        per_table, weighted, centered: of S1A, see `transfer.offline.projection.project_tables`.
        dense_passes, joint_passes: over the window, of S1B and S1C; 0 leaves a part out.
        learning: rates of the student.
        hyperparameters: of the student's architecture.
        stored: how bundles store the student's rows; calibration and metrics are of rows rounded so.
        device: where the student's network is trained; tables stay in the machine's memory.
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


OURS = Stage1Settings(ratio=0.1, dense_ratio=0.1, least_rows=4096, extend=True, warm=True)
"""What the tables know needs no rows. The newest tenth brings the network to them and both to the present; the rest is
for a student that has more to learn than its teacher knows."""
PUBLISHED = Stage1Settings(
    adapt=False,
    temperature=4.0,
    batch=4096,
    ratio=0.1,
    dense_ratio=0.1,
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
    student.to(device_for(s.device))
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
        project_tables(
            teacher, student, per_table=s.per_table, weighted=s.weighted, centered=s.centered, warm=s.warm, seed=seed
        )
        if teacher.network.transform is not None and student.network.transform is not None:
            student.network.transform.load_state_dict(teacher.network.transform.state_dict())
    else:
        student.fit_numbers(first_rows(log, start, stop)[0])
    if s.level:
        student.start_level(next(window.chunks(LEVEL_ROWS, 1.0 - (s.ratio or 1.0))).rows, window.rate)
    lap("s1a")

    for _ in range(s.dense_passes if isinstance(teacher, ClickModel) else 0):
        run.learn_dense()
    lap("s1b")

    for _ in range(s.joint_passes):
        run.learn(s.ratio)
    if s.extend and s.ratio is not None and not s.balanced and run.overtakes():
        student.tables.restart()  # what the teacher's rows had settled on is no longer what they go to
        run.learn(None)
    if s.calibrate:
        calibration, metrics = run.held.calibrate(slope=not s.teacher_saw_window)
        student.calibrate(calibration)
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
    return replace(s, ratio=ratio, dense_ratio=dense)


def _batch(rows: int, ratio: float | None) -> int:
    """Rows per step. On a share enough steps count more than what each costs: about 200, of a power of two from 64 to 2,048."""
    if ratio is None:
        return batch_for(rows)
    return 1 << min(max(round(ratio * rows / 150).bit_length() - 1, 6), 11)


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
        passes = settings.dense_passes * (settings.dense_ratio or 1.0) + settings.joint_passes * (settings.ratio or 1.0)
        self._done, self._total = 0, round(window.rows * (2.0 if settings.balanced else passes))
        self._fresh = 1.0
        """Where the rows end that S1C has not trained on."""
        self.held = Held()
        """Rows of the end of the window, scored before the tables learned from them."""

    @property
    def a(self) -> float:
        """The teacher's share in S1C."""
        return self._settings.a if self._trust is None else self._trust.a

    def overtakes(self) -> bool:
        """Whether the student, with its share learned, is ahead of its teacher by a standard error or more on the rows
        before the share; from then on that evidence sets the teacher's share.

        Never where the teacher has seen the window: it remembers labels, so it looks better than it is, and the rows that
        it hands over remember them too, so that more training on labels would only lean on that memory.
        """
        if self._trust is None:
            return False
        window, trust = self._window, Trust(self._settings.a, discount=1.0 - 1e-9)
        for chunk in window.chunks(SCORING_ROWS, *self._fresh_tail()):
            mine = label_losses(self._student.served_logits(chunk.rows), chunk.labels)
            trust.update(mine, label_losses(window.teacher_logits(chunk), chunk.labels))
        if trust.z > -1.0:
            return False
        self._trust, self._total = trust, self._total + window.rows
        return True

    def learn_dense(self) -> None:
        """S1B: a pass over the share of rows before S1C's own, the oldest where S1C takes all, with the tables frozen."""
        s = self._settings
        first = max(0.0, 1.0 - (s.ratio or 1.0) - (s.dense_ratio or 1.0))
        for batch in self._drawn(s.dense_ratio, first):
            self._step(batch, s.dense_a, train_tables=False)

    def learn(self, ratio: float | None) -> None:
        """S1C: a pass over the newest share of the rows, or all of them; rows of the end of the window are held out."""
        s = self._settings
        share = ratio or 1.0
        whole = ratio is None or s.balanced
        # Of a share the newer half: the student is still on its way in the older one.
        held = self._fresh_tail() if whole else (1.0 - share / 2, 1.0)
        self.held = Held()
        for batch in self._drawn(ratio, 1.0 - share, held if s.calibrate else None):
            self._step(batch, self.a, train_tables=True)
        if not whole:
            self._fresh = 1.0 - share
            # A share is few rows to calibrate on; those before it were not in these tables either.
            for chunk in self._window.chunks(SCORING_ROWS, *self._fresh_tail()) if s.calibrate else ():
                self.held.add(self._student.served_logits(chunk.rows), chunk.labels)

    def _fresh_tail(self) -> tuple[float, float]:
        """The newest part of the window that S1C has not trained on: from where to where, as shares."""
        tail = self._settings.tail
        return max(0.0, min(1.0 - tail, self._fresh - tail / 2)), self._fresh

    def _drawn(self, ratio: float | None, first: float, held: tuple[float, float] | None = None) -> Iterator[Sample]:
        """Batches: balanced ones along the whole window, or the share of its rows that begins at `first`, as they come."""
        s, window = self._settings, self._window
        size = s.batch or _batch(window.rows, ratio)
        if ratio is not None and s.balanced:
            chunks = self._scored(window.chunks(max(size, round(size / ratio))), held)
            return strategic_batches(chunks, batch=size, rng=self._rng)
        return self._scored(window.chunks(size, first, first + (ratio or 1.0)), held)

    def _scored(self, chunks: Iterator[Sample], held: tuple[float, float] | None) -> Iterator[Sample]:
        """The same chunks; those between these shares of the window are scored before they are handed on."""
        first, last = (round(self._window.rows * share) for share in held or (1.0, 1.0))
        for chunk in chunks:
            if first <= chunk.places[0] < last:
                self.held.add(self._student.served_logits(chunk.rows), chunk.labels)
            yield chunk
            self._done = min(self._total, self._done + len(chunk.labels))
            self._progress(self._done, self._total)

    def _step(self, batch: Sample, a: float, train_tables: bool) -> None:
        s, guide = self._settings, self._window.teacher_logits(batch)
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
