"""The retained window of stage 1: rows, labels and the teacher's logits, each row scored at most once.

A row is scored when it is first drawn; rows that are never drawn cost nothing. It knows nothing of students.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from pipeline.arrays import F32
from pipeline.errors import DataError, InvalidInput
from pipeline.features import Rows
from pipeline.schema import Schema
from transfer.click_model.model import ClickModel
from transfer.data.log import Log
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
        log: rows in time order, labelled.
        start, stop: row quantiles.
        score: gives the teacher's logits instead of the teacher, `TeacherPool.spread` for example.
        clock: seconds, for `seconds` and the report of stage 1.

    Attributes:
        rows: number of rows.
        rate: fraction of positives.
        seconds: time that the teacher took so far.

    Raises:
        DataError: there are no rows.
        InvalidInput: teacher and log have different fields.
    """

    def __init__(
        self,
        teacher: Teacher,
        log: Log,
        start: float = 0.0,
        stop: float = 1.0,
        *,
        score: Callable[[Rows], F32] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        difference = teacher.schema.inputs_match(log.schema)
        if difference is not None:
            raise InvalidInput(f"the teacher and the log must have the same fields: {difference}", "schema")
        self.teacher, self.log, self.start, self.stop = teacher, log, start, stop
        self._score = score
        self.clock = clock
        self.seconds = 0.0
        sizes = [(len(chunk), float(chunk.labels.sum())) for chunk in log.chunks(start, stop)]
        self.rows = sum(rows for rows, _ in sizes)
        if not self.rows:
            raise DataError(f"there are no rows between {start} and {stop} of the log; widen the window", "from")
        self.rate = sum(positives for _, positives in sizes) / self.rows
        self._logits: F32 = np.full(self.rows, np.nan, np.float32)

    def chunks(self, chunk_rows: int, first: float = 0.0, last: float = 1.0) -> Iterator[Sample]:
        """The rows between about these fractions of the window, once, in time order, in chunks of about that many."""
        length = self.stop - self.start
        start, stop = (self.start + fraction * length for fraction in (first, min(last, 1.0)))
        at = self.rows - self.log.rows_between(start, self.stop)
        for chunk in self.log.chunks(start, stop, chunk_rows):
            n = len(chunk.labels)
            yield Sample(chunk.rows, chunk.labels, np.arange(at, at + n))
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
            rows = sample.rows if unknown.all() else sample.rows.take(index)
            teacher = self.teacher
            own = teacher.logits if isinstance(teacher, ClickModel) and not calibrated else teacher.calibrated_logits
            logits = (self._score or own)(rows)
            if not np.isfinite(logits).all():
                raise DataError("the teacher's logits hold NaN or infinity; no student can learn from it", "teacher")
            self._logits[sample.places[index]] = logits
            self.seconds += self.clock() - began
        known: F32 = self._logits[sample.places]
        return known
