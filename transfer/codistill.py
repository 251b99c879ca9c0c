"""One batch of asymmetric co-distillation (after CrossAdapt, arXiv 2602.01775, stage 2).

The student takes a step on every batch, from labels and from the teacher that serves; how much it believes the teacher
follows from which of the two was right on rows that neither had trained on (`trust`). The teacher takes one step on the
mean gradient of `teacher_every` batches, from labels alone. A share of rows from the retained window is mixed in so
that the student does not forget. Scores to be judged by are taken before a row is trained on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.features import concat_rows
from transfer.model import ClickModel
from transfer.replay_store import ReplayRows
from transfer.stream import StreamBatch, StreamRows
from transfer.trust import Trust, label_losses

__all__ = ["CoDistiller", "Passed", "logit_of"]

F32 = npt.NDArray[np.float32]

# float32 probabilities carry no more than this.
_EDGE = 1e-6


def logit_of(scores: F32) -> F32:
    """Log-odds of probabilities, float32, NaN where there is none."""
    p = np.clip(scores.astype(np.float64), _EDGE, 1 - _EDGE)
    return np.log(p / (1 - p)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Passed:
    """What one batch looked like before it was learned: logits float32 before calibration, of the student's present
    weights and of the teacher that serves (NaN where it has not scored), and the student's loss."""

    student: F32
    teacher: F32
    held_student: F32
    held_teacher: F32
    loss: float


class CoDistiller:
    """Teaches `student` (and, if it can learn, `teacher`) batch by batch.

    Args:
        weight: a, the teacher's share of the student's loss while the two are equally good.
        replay_ratio: r, replayed rows per row of the stream.
        teacher_every: K, batches per teacher step.
        seed: of the replay draws.
    """

    def __init__(
        self,
        teacher: ClickModel,
        student: ClickModel,
        replay: ReplayRows | None,
        *,
        weight: float,
        replay_ratio: float,
        teacher_every: int,
        seed: int,
        teacher_learns: bool = True,
    ) -> None:
        self.teacher = teacher
        self.student = student
        self._replay = replay
        self.trust = Trust(weight)
        self.replay_ratio = replay_ratio if replay is not None else 0.0
        self.teacher_every = teacher_every
        self._seed = seed
        self._teacher_learns = teacher_learns

    def learn(self, batch: StreamBatch, number: int) -> Passed:
        """Train on batch `number` (counted from 1 over the whole life of the models)."""
        train, held = batch.train, batch.held
        # Before the step: what is measured must not have been learned.
        student, held_student = self.student.logits(train.rows), self.student.logits(held.rows)
        loss = self._teach_student(train, number)
        self._compare(train, student)
        if self._teacher_learns:
            self.teacher.accumulate(train.rows, train.labels)
            if number % self.teacher_every == 0:
                self.teacher.apply_accumulated()
        return Passed(student, self._served(train.stable), held_student, self._served(held.stable), loss)

    def _served(self, scores: F32) -> F32:
        """The serving teacher's logits before its calibration, which is that of the last version published."""
        calibration = self.teacher.calibration
        return ((logit_of(scores) - calibration.beta) / calibration.alpha).astype(np.float32)

    def _teach_student(self, train: StreamRows, number: int) -> float:
        rows, labels = train.rows, train.labels
        guide = logit_of(train.stable)
        unscored = ~np.isfinite(train.stable)
        if unscored.any():
            # The serving teacher never saw these (its lane dropped them): the one in training stands in.
            guide[unscored] = self.teacher.calibrated_logits(rows.take(np.flatnonzero(unscored)))
        count = round(self.replay_ratio * len(labels))
        if self._replay is not None and count:
            old, old_labels, old_guide = self._replay.draw(count, seed=self._seed, batch=number)
            rows = concat_rows([rows, old])
            labels, guide = np.concatenate([labels, old_labels]), np.concatenate([guide, old_guide])
        return self.student.step(rows, labels, teacher_logits=guide, a=self.trust.a)

    def _compare(self, train: StreamRows, student: F32) -> None:
        """Pair the losses of both models on rows that serving scored and neither had trained on."""
        scored = np.isfinite(train.stable) & np.isnan(train.previous)
        if scored.any():
            calibration = self.student.calibration
            mine = calibration.alpha * student[scored] + calibration.beta
            labels = train.labels[scored]
            self.trust.update(label_losses(mine, labels), label_losses(logit_of(train.stable[scored]), labels))
