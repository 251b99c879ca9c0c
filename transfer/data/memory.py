"""Log in memory: a range of another log, read once, for experiments that read the same rows many times."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pipeline.errors import DataError
from pipeline.features import concat_rows
from pipeline.schema import Schema
from transfer.data.log import Log, LogChunk, LogRequest, cut_chunks, cut_requests, row_range

__all__ = ["MemoryLog"]


class MemoryLog:
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
        self.name: str = log.name
        self.schema: Schema = log.schema
        truths = [part.truth for part in parts if part.truth is not None]
        self._all = LogChunk(
            concat_rows([part.rows for part in parts]),
            np.concatenate([part.labels for part in parts]),
            np.concatenate([part.time_ms for part in parts]),
            np.concatenate([part.request for part in parts]),
            np.concatenate([part.routing_key for part in parts]),
            np.concatenate([part.position for part in parts]),
            np.concatenate(truths) if len(truths) == len(parts) else None,
        )
        self._starts = np.flatnonzero(self._all.position == 0)
        self.rows: int = len(self._all)
        self.request_count: int = len(self._starts)
        self.positives: int = int(self._all.labels.sum())
        if self.positives in (0, self.rows):
            raise DataError(f"all {self.rows} labels of log {log.name!r} are the same; a model needs both", "label")

    def rows_between(self, start: float, stop: float) -> int:
        first, last = self._bounds(start, stop)
        return last - first

    def chunks(self, start: float = 0.0, stop: float = 1.0, chunk_rows: int = 65_536) -> Iterator[LogChunk]:
        first, last = self._bounds(start, stop)
        return cut_chunks([self._all.slice(first, last)], chunk_rows)

    def requests(self, start: float = 0.0, stop: float = 1.0) -> Iterator[LogRequest]:
        return cut_requests(self.chunks(start, stop), self.schema)

    def _bounds(self, start: float, stop: float) -> tuple[int, int]:
        first, last = (self._request_start(row) for row in row_range(start, stop, self.rows))
        return first, last

    def _request_start(self, row: int) -> int:
        """The first row of the request that a row belongs to."""
        return row if row >= self.rows else int(self._starts[np.searchsorted(self._starts, row, side="right") - 1])
