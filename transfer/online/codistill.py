"""One batch of asymmetric co-distillation (after CrossAdapt, arXiv 2602.01775, stage 2).

The student takes a step on every batch, from labels and, with the teacher weight a, from the logged scores of the teacher
that serves. A teacher that learns here takes one step on the mean gradient of K batches, from labels alone; any other is
known by its logged scores, which are enough. Replayed rows of the retained window, r per
row of the stream, are mixed in so that the student does not forget. Models are compared by scores from before a row is
trained on, and a, r and K follow from them (`transfer.online.adapt`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from pipeline.arrays import F32
from pipeline.features import Rows, concat_rows
from transfer.click_model.model import ClickModel
from transfer.online.adapt import Adaptation, Adapted, AdaptSettings, Seen
from transfer.online.replay_store import ReplayRows
from transfer.online.stream import StreamBatch, StreamRows
from transfer.quality.levels import relative

__all__ = ["CoDistiller", "Passed", "logit_of"]


# float32 probabilities carry no more than this.
_EDGE_PROBABILITY = 1e-6

EXPLODED_LOGIT = 1e3
"""A |logit| from which no later batch leads back."""


def logit_of(scores: F32) -> F32:
    """Log-odds of probabilities, float32; NaN stays NaN."""
    p = np.clip(scores.astype(np.float64), _EDGE_PROBABILITY, 1 - _EDGE_PROBABILITY)
    return np.log(p / (1 - p)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Passed:
    """Scores of one batch from before it was learned, and the results of learning it: logits float32 before calibration,
    of the student's present weights and of the teacher that serves (NaN where it has not scored; after calibration where it
    does not learn here); the losses of both; the adaptation record; rows without a finite score of any teacher."""

    student: F32
    teacher: F32
    held_student: F32
    held_teacher: F32
    loss: float
    teacher_loss: float | None
    adapted: Adapted
    unguided: int


@dataclass(frozen=True, slots=True)
class _Replayed:
    """Rows of the retained window with labels and the teacher's logits from when they were kept."""

    rows: Rows
    labels: F32
    teacher: F32


class CoDistiller:
    """Teaches `student` (and, if it can learn, `teacher`) batch by batch.

    Args:
        teacher: the one in training; None: it does not learn here.
        replay: rows of the retained window; None: no replay.
        settings: start values of a, r and K, and whether they adapt.
        seed: of the replay draws.
        temperature: T of the teacher's term.
    """

    def __init__(
        self,
        teacher: ClickModel | None,
        student: ClickModel,
        replay: ReplayRows | None,
        *,
        settings: AdaptSettings,
        seed: int,
        temperature: float = 1.0,
    ) -> None:
        self._temperature = temperature
        self.teacher = teacher
        self.student = student
        self._replay = replay
        self.adaptation = Adaptation(
            settings if replay else dataclasses.replace(settings, replay=0.0), len(student.schema.ids)
        )
        self._seed = seed

    def retire_teacher(self, retired: bool) -> None:
        """Whether the student serves alone. It then learns from labels only, and its teacher stops learning."""
        self.adaptation.retired = retired

    def learn(self, batch: StreamBatch, number: int) -> Passed:
        """Train on batch `number` (counted from 1 over the whole life of the models).

        Raises:
            DataError: the batch cannot be learned from; neither model has changed.
            Diverged: the student has; neither model has learned from this batch.
        """
        train, held = batch.train, batch.held
        # Before the step: rows to measure on must not have been learned.
        held_student = self.student.logits(held.rows)
        old = self._replayed(len(train), number)
        loss, student, old_student, unguided = self._teach_student(train, old)
        record = self.adaptation.update(number, self._seen(train, student, old, old_student))
        teacher_loss = None
        if self.teacher is not None and not self.adaptation.retired:
            teacher_loss = self.teacher.accumulate(
                train.for_teacher, train.labels, row_weight=_row_weight(train.stands_for, 0)
            )
            if self.teacher.pending_batches >= self.adaptation.every:
                self.teacher.apply_accumulated()
        guides = self._served(train.stable), self._served(held.stable)
        return Passed(student, guides[0], held_student, guides[1], loss, teacher_loss, record, unguided)

    def _served(self, scores: F32) -> F32:
        """The serving teacher's logits before its calibration, which is that of the last version published; after it for a
        teacher that does not learn, whose own logits nobody needs."""
        if self.teacher is None:
            return logit_of(scores)
        calibration = self.teacher.calibration
        return ((logit_of(scores) - calibration.beta) / calibration.alpha).astype(np.float32)

    def _replayed(self, rows: int, number: int) -> _Replayed | None:
        count = round(self.adaptation.replay * rows)
        if self._replay is None or not count:
            return None
        return _Replayed(*self._replay.draw(count, seed=self._seed, batch=number))

    def _teach_student(self, train: StreamRows, old: _Replayed | None) -> tuple[float, F32, F32, int]:
        """A step on the batch; its loss, the logits from before it, of the stream's rows and of the replayed ones, and the
        number of rows without a teacher's."""
        rows, labels = train.rows, train.labels
        guide = logit_of(train.stable)
        unscored = ~np.isfinite(train.stable)
        if self.teacher is not None and unscored.any() and self.adaptation.teacher_weight:
            # The serving teacher did not score these (its lane dropped them): the one in training does.
            guide[unscored] = self.teacher.calibrated_logits(train.for_teacher.take(np.flatnonzero(unscored)))
        if old is not None:
            rows = concat_rows([rows, old.rows])
            labels, guide = np.concatenate([labels, old.labels]), np.concatenate([guide, old.teacher])
        # A row that no teacher has a finite score for is learned from its label alone.
        unguided = ~np.isfinite(guide)
        weight = np.where(unguided, 0.0, self.adaptation.teacher_weight).astype(np.float32)
        guide = np.where(unguided, np.float32(0.0), guide)
        before = None if self.student.steady else self.student.logits(rows)
        loss = self.student.step(
            rows,
            labels,
            teacher_logits=guide,
            teacher_weight=weight,
            temperature=self._temperature,
            row_weight=_row_weight(train.stands_for, len(rows) - len(train)),
            most=EXPLODED_LOGIT,
        )
        # The step has run the network on these rows already; a second time only where it runs another way in training.
        before = self.student.last_logits if before is None else before
        return loss, before[: len(train)], before[len(train) :], int(unguided.sum())

    def _seen(self, train: StreamRows, student: F32, old: _Replayed | None, old_student: F32) -> Seen:
        first = np.isnan(train.previous)  # a revised label belongs to a row that was trained on
        none = np.empty(0, np.float32)
        return Seen(
            self._calibrated(student[first]),
            logit_of(train.stable[first]),
            train.labels[first],
            train.rows.ids[first],
            self._calibrated(old_student),
            none if old is None else old.teacher,
            none if old is None else old.labels,
            train.stands_for[first],
        )

    def _calibrated(self, logits: F32) -> F32:
        calibration = self.student.calibration
        return (calibration.alpha * logits + calibration.beta).astype(np.float32)


def _row_weight(stands_for: F32, replayed: int) -> F32 | None:
    """What each row stands for, 1 in the mean of the stream: a row that was recorded with probability 0.1 is ten rows of
    traffic. None where all are alike. Replayed rows, which come last, are 1."""
    counts = relative(stands_for)
    if (counts == 1).all():
        return None
    return np.concatenate([counts, np.ones(replayed)]).astype(np.float32)
