"""The retained window of stage 1: rows, labels and the teacher's logits, each row scored at most once.

A row is scored when it is first drawn; rows that are never drawn cost nothing. It knows nothing of students.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from pipeline.arrays import F32, F64
from pipeline.errors import DataError
from pipeline.features import Rows
from pipeline.schema import Schema
from transfer.click_model.model import ClickModel
from transfer.data.log import Log, LogChunk
from transfer.data.own_fields import own_fields
from transfer.offline.sampling import Sample

__all__ = ["Teacher", "Window"]


class Teacher(Protocol):
    """A model that scores rows: a `ClickModel`, or a frozen model from elsewhere (then S1A is skipped)."""

    schema: Schema

    def calibrated_logits(self, rows: Rows) -> F32: ...


class Window:
    """Rows from `start` to `stop` of a log, with a teacher to score them.

    Args:
        teacher: the model that serves today.
        log: rows in time order, labelled, with the fields of teacher and student.
        start, stop: row quantiles.
        schema: fields of the student; None: those of the log.
        score: gives the teacher's logits instead of the teacher, `TeacherPool.spread` for example.
        clock: seconds, for `seconds` and the report of stage 1.

    Attributes:
        rows: number of rows.
        rate: fraction of positives, of the traffic that the rows stand for.
        loss_rate: the same with `weight`: the level of a student that has learned.
        mean_factor: mean factor of a row's loss.
        weighted: whether rows have weights other than 1, so that the student's level is no probability's until it is calibrated.
        seconds: time that the teacher took so far.

    Raises:
        DataError: there are no rows.
        InvalidInput: the log lacks a field of the teacher or of the student, or a field means something else there.
    """

    def __init__(
        self,
        teacher: Teacher,
        log: Log,
        start: float = 0.0,
        stop: float = 1.0,
        *,
        schema: Schema | None = None,
        score: Callable[[Rows], F32] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.schema = schema or log.schema
        self.read = own_fields(log.schema, self.schema)
        """Rows of the log as the student reads them."""
        self.read_by_teacher = own_fields(log.schema, teacher.schema)
        """Rows of the log as the teacher reads them."""
        self._apart = self.schema.columns != teacher.schema.columns
        self.teacher, self.log, self.start, self.stop = teacher, log, start, stop
        self._score = score
        self.clock = clock
        self.seconds = 0.0
        sums = np.sum([_sums(chunk, log.label_offset) for chunk in log.chunks(start, stop)], axis=0)
        if not np.any(sums):
            raise DataError(f"there are no rows between {start} and {stop} of the log; widen the window", "from")
        rows, stand_for, positives, weights, weighted_positives, factors, odd = sums.tolist()
        self.rows, self.weighted = int(rows), odd > 0
        self.rate = positives / stand_for
        self.loss_rate = weighted_positives / weights if 0 < weighted_positives < weights else self.rate
        self.mean_factor = factors / rows or 1.0
        self._logits: F32 = np.full(self.rows, np.nan, np.float32)

    def chunks(self, chunk_rows: int, first: float = 0.0, last: float = 1.0) -> Iterator[Sample]:
        """The rows between about these fractions of the window, once, in time order, in chunks of about that many."""
        length = self.stop - self.start
        start, stop = (self.start + fraction * length for fraction in (first, min(last, 1.0)))
        at = self.rows - self.log.rows_between(start, self.stop)
        for chunk in self.log.chunks(start, stop, chunk_rows):
            n = len(chunk.labels)
            taught = self.read_by_teacher(chunk.rows) if self._apart else None
            levels = {"probability": chunk.probability, "weight": chunk.weight}
            yield Sample(self.read(chunk.rows), chunk.labels, np.arange(at, at + n), taught, **levels)
            at += n

    def teacher_logits(self, sample: Sample, *, calibrated: bool) -> F32:
        """The teacher's logits of drawn rows, float32 `[n]`.

        Args:
            sample: the rows.
            calibrated: after the teacher's calibration; else as its network gives them, where it is a `ClickModel`. A
                `score` of the window's own decides this by itself.

        Raises:
            DataError: they are not finite.
        """
        unknown = np.isnan(self._logits[sample.places])
        if unknown.any():
            began = self.clock()
            index = np.flatnonzero(unknown)
            rows = sample.for_teacher if unknown.all() else sample.for_teacher.take(index)
            teacher = self.teacher
            own = teacher.logits if isinstance(teacher, ClickModel) and not calibrated else teacher.calibrated_logits
            logits = (self._score or own)(rows)
            if not np.isfinite(logits).all():
                raise DataError("the teacher's logits hold NaN or infinity; no student can learn from it", "teacher")
            self._logits[sample.places[index]] = logits
            self.seconds += self.clock() - began
        known: F32 = self._logits[sample.places]
        return known


def _sums(chunk: LogChunk, label_offset: float | None) -> F64:
    """Of a chunk: rows, what they stand for, positives of that, both with weights, factors of the loss, rows of a weight other than 1."""
    counts, weighted = chunk.stands_for.astype(np.float64), chunk.loss_factor(None).astype(np.float64)
    y = chunk.labels.astype(np.float64)
    factors = float(chunk.loss_factor(label_offset).sum(dtype=np.float64))
    odd = float((chunk.weight != 1).sum())
    return np.array([len(y), counts.sum(), counts @ y, weighted.sum(), weighted @ y, factors, odd])
