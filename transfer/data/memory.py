"""Log in memory: a range of another log, read once, for experiments that read the same rows many times."""

from __future__ import annotations

import numpy as np

from pipeline.errors import DataError
from transfer.data.log import Log, LogChunk, concat_chunks

__all__ = ["MemoryLog"]


class MemoryLog(Log):
    """Rows from `start` to `stop` of another log, which count as the whole of this one.

    Args:
        log: to read from.
        start, stop: row quantiles.
        most_rows: keep no more than about the first so many of all its rows; None: no bound.

    Raises:
        DataError: there are no rows, or all labels are the same.
    """

    def __init__(self, log: Log, start: float = 0.0, stop: float = 1.0, *, most_rows: int | None = None) -> None:
        if most_rows is not None:
            stop = min(stop, start + most_rows / log.rows)
        parts = list(log.chunks(start, stop))
        if not parts:
            raise DataError(
                f"there are no rows between {start} and {stop} of log {log.name!r}; widen the window", "rows"
            )
        self.name = log.name
        self.schema = log.schema
        self.label_offset = log.label_offset
        self._all = concat_chunks(parts)
        self._starts = np.flatnonzero(self._all.position == 0)
        self.rows = len(self._all)
        self.request_count = len(self._starts)
        self.positives = int(self._all.labels.sum())
        if self.positives in (0, self.rows):
            raise DataError(f"all {self.rows} labels of log {log.name!r} are the same; a model needs both", "label")

    def _request_start(self, row: int) -> int:
        return row if row >= self.rows else int(self._starts[np.searchsorted(self._starts, row, side="right") - 1])

    def _parts(self, first: int, last: int) -> list[LogChunk]:
        return [self._all.slice(first, last)]
