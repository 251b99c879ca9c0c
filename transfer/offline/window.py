"""The retained window as stage 1 walks it: rows, labels and the teacher's logits, each row scored at most once.

A row is scored when it is first drawn; what is never drawn costs nothing. It knows nothing of students.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pipeline.errors import DataError
from pipeline.features import Rows
from pipeline.schema import Schema
from transfer.click_model.model import ClickModel
from transfer.data.log import Log
from transfer.offline.sampling import Sample

__all__ = ["Teacher", "Window"]

F32 = npt.NDArray[np.float32]


class Teacher(Protocol):
    """Whoever can score rows: a `ClickModel`, or a frozen model from elsewhere (then S1A is skipped)."""

    schema: Schema

    def calibrated_logits(self, rows: Rows) -> F32: ...


class Window:
    """Rows from `start` to `stop` of a log.

    Args:
        calibrated: the teacher's logits after its calibration; without it, as its network gives them (published).
        score: who gives them in the teacher's place, `TeacherPool.spread` for example; the teacher unless said.
        clock: seconds, for `seconds`.

    Attributes:
        rows: number of rows.
        rate: share of positives.
        seconds: that the teacher took so far.

    Raises:
        DataError: there are no rows.
    """

    def __init__(
        self,
        teacher: Teacher,
        log: Log,
        start: float,
        stop: float,
        *,
        calibrated: bool,
        score: Callable[[Rows], F32] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._log, self._start, self._stop = log, start, stop
        self._score = score or (
            teacher.logits if isinstance(teacher, ClickModel) and not calibrated else teacher.calibrated_logits
        )
        self._clock = clock
        self.seconds = 0.0
        sizes = [(len(chunk), float(chunk.labels.sum())) for chunk in log.chunks(start, stop)]
        self.rows = sum(rows for rows, _ in sizes)
        if not self.rows:
            raise DataError(f"there are no rows between {start} and {stop} of the log; widen the window", "from")
        self.rate = sum(positives for _, positives in sizes) / self.rows
        self._logits: F32 = np.full(self.rows, np.nan, np.float32)

    def chunks(self, chunk_rows: int, first: float = 0.0, last: float = 1.0) -> Iterator[Sample]:
        """The rows between about these shares of the window, once, in time order, in chunks of about that many."""
        start, stop = (self._start + share * (self._stop - self._start) for share in (first, min(last, 1.0)))
        at = self.rows - self._log.rows_between(start, self._stop)
        for chunk in self._log.chunks(start, stop, chunk_rows):
            n = len(chunk.labels)
            yield Sample(chunk.rows, chunk.labels, np.arange(at, at + n))
            at += n

    def teacher_logits(self, drawn: Sample) -> F32:
        """The teacher's logits of drawn rows, float32 `[n]`.

        Raises:
            DataError: they are not finite.
        """
        unknown = np.isnan(self._logits[drawn.places])
        if unknown.any():
            began = self._clock()
            index = np.flatnonzero(unknown)
            rows = drawn.rows if unknown.all() else drawn.rows.take(index)
            logits = self._score(rows)
            if not np.isfinite(logits).all():
                raise DataError("the teacher's logits hold NaN or infinity; no student can learn from it", "teacher")
            self._logits[drawn.places[index]] = logits
            self.seconds += self._clock() - began
        found: F32 = self._logits[drawn.places]
        return found
