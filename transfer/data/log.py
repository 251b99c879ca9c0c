"""The click log: chunks of rows or whole requests, in time order.

A log read from files and a generated one have the same interface for a trainer, a replay or an experiment. This file
defines it and cuts rows into chunks; it knows nothing of files or of generated clicks. The reader of files is in
`reader.py`, the generator in `generator.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.arrays import F32, I32, I64
from pipeline.errors import InvalidInput
from pipeline.features import Features, Rows, concat_rows
from pipeline.schema import Schema
from transfer.data.levels import Levels

__all__ = ["Log", "LogChunk", "LogRequest", "concat_chunks", "cut_chunks", "row_range"]

Texts = npt.NDArray[np.object_]


@dataclass(frozen=True, slots=True)
class LogChunk(Levels):
    """Consecutive rows in time order, whole requests only.

    `rows` hold hashed ids, raw numbers (NaN is missing) and bags in schema order; `labels` float32 `[n]` are 0 or 1;
    `time_ms` int64 `[n]`; `request` int64 `[n]` is the dense number of the request within the whole log, ascending;
    `routing_key` holds n texts, "" where the log has none; `position` int32 `[n]` is the row's place within its
    request; `truth` float32 `[n]` is the true click probability where it is known (generated logs), else None.
    `probability` and `weight` are those of `Levels`.
    """

    rows: Rows
    labels: F32
    time_ms: I64
    request: I64
    routing_key: Texts
    position: I32
    truth: F32 | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def slice(self, start: int, stop: int) -> LogChunk:
        """Rows start..stop as views."""
        return LogChunk(
            self.rows.slice(start, stop),
            self.labels[start:stop],
            self.time_ms[start:stop],
            self.request[start:stop],
            self.routing_key[start:stop],
            self.position[start:stop],
            None if self.truth is None else self.truth[start:stop],
            probability=self.probability[start:stop],
            weight=self.weight[start:stop],
        )


@dataclass(frozen=True, slots=True)
class LogRequest(Levels):
    """One ranking request as a client sent it, with the labels of its candidates.

    `time_ms` is the time of its first row; `features` keep context once; `labels` float32 `[n]`; `request` is its
    number within the whole log; `truth` float32 `[n]` as in `LogChunk`; `probability` and `weight` are those of `Levels`.
    """

    time_ms: int
    routing_key: str
    features: Features
    labels: F32
    request: int
    truth: F32 | None = None


class Log(ABC):
    """A click log that can be read again and again, with memory bounded by the chunk.

    `start` and `stop` are row quantiles in time order. A quantile that falls within a request means the request's
    first row, so a request is never cut and neighbouring ranges cover each row exactly once.
    """

    name: str
    """Name of the log in reports."""
    schema: Schema
    """The fields of a row, in order."""
    rows: int
    """Rows of the whole log."""
    request_count: int
    """Requests of the whole log."""
    label_offset: float | None = 0.0
    """What sampling added to the log-odds of the labels, where it depends on the label alone; None: it depends on more."""
    notes: tuple[str, ...] = ()
    """What a person should know who reads it, for example which values of the label nobody declared."""

    @cached_property
    def positives(self) -> int:
        """Clicks of the whole log; a log that does not know them reads all rows once."""
        return sum(int(chunk.labels.sum()) for chunk in self.chunks())

    def rows_between(self, start: float, stop: float) -> int:
        """Rows that `chunks(start, stop)` will give."""
        first, last = self._bounds(start, stop)
        return last - first

    def chunks(self, start: float = 0.0, stop: float = 1.0, chunk_rows: int = 65_536) -> Iterator[LogChunk]:
        """Rows in chunks of at most `chunk_rows`; only a single request that is longer makes a longer chunk."""
        return cut_chunks(self._parts(*self._bounds(start, stop)), chunk_rows)

    def requests(self, start: float = 0.0, stop: float = 1.0) -> Iterator[LogRequest]:
        """The same rows, one request at a time."""
        return cut_requests(self.chunks(start, stop), self.schema)

    def _bounds(self, start: float, stop: float) -> tuple[int, int]:
        first, last = row_range(start, stop, self.rows)
        return self._request_start(first), self._request_start(last)

    @abstractmethod
    def _request_start(self, row: int) -> int:
        """The first row of the request that a row belongs to; `rows` for the end of the log."""

    @abstractmethod
    def _parts(self, first: int, last: int) -> Iterable[LogChunk]:
        """Rows first..last in order, in parts that are cut anywhere."""


def row_range(start: float, stop: float, rows: int) -> tuple[int, int]:
    """Two quantiles as row numbers, before they are moved to the start of a request.

    Raises:
        InvalidInput: not 0 <= start <= stop <= 1.

    >>> row_range(0.4, 0.8, 10)
    (4, 8)
    """
    if not 0.0 <= start <= stop <= 1.0:
        raise InvalidInput(f"fractions from {start} to {stop}: 0 <= from <= to <= 1 was expected", "from")
    return round(start * rows), round(stop * rows)


def cut_chunks(parts: Iterable[LogChunk], chunk_rows: int) -> Iterator[LogChunk]:
    """Consecutive parts, cut anywhere, as chunks of as many whole requests as fit into `chunk_rows`.

    The result depends on the rows alone, never on where the parts were cut. The last row of the last part must be the
    last of its request.

    Raises:
        InvalidInput: `chunk_rows` is not positive.
    """
    if chunk_rows < 1:
        raise InvalidInput(f"chunk_rows is {chunk_rows}; at least 1 was expected", "chunk_rows")
    held: list[LogChunk] = []
    size = 0
    for part in parts:
        held.append(part)
        size += len(part)
        if size <= chunk_rows:
            continue
        joined = concat_chunks(held)
        starts = np.flatnonzero(joined.position == 0)
        done = 0
        while len(joined) - done > chunk_rows:
            last = int(np.searchsorted(starts, done + chunk_rows, side="right")) - 1
            if starts[last] == done:  # the first request alone is longer than a chunk
                last += 1
            if last == len(starts):  # and its end is not read yet
                break
            yield joined.slice(done, int(starts[last]))
            done = int(starts[last])
        rest = joined.slice(done, len(joined))
        held, size = [rest], len(rest)
    if size:
        yield concat_chunks(held)


def cut_requests(chunks: Iterable[LogChunk], schema: Schema) -> Iterator[LogRequest]:
    """Each request of some chunks of whole requests, context kept once."""
    for chunk in chunks:
        edges = [*np.flatnonzero(chunk.position == 0).tolist(), len(chunk)]
        for start, stop in pairwise(edges):
            yield LogRequest(
                int(chunk.time_ms[start]),
                str(chunk.routing_key[start]),
                Features.from_context(schema, chunk.rows.slice(start, stop)),
                chunk.labels[start:stop],
                int(chunk.request[start]),
                None if chunk.truth is None else chunk.truth[start:stop],
                probability=chunk.probability[start:stop],
                weight=chunk.weight[start:stop],
            )


def concat_chunks(parts: Sequence[LogChunk]) -> LogChunk:
    """Consecutive parts as one."""
    if len(parts) == 1:
        return parts[0]

    def column(name: str) -> Any:
        return np.concatenate([getattr(part, name) for part in parts])

    return LogChunk(
        concat_rows([part.rows for part in parts]),
        column("labels"),
        column("time_ms"),
        column("request"),
        column("routing_key"),
        column("position"),
        None if parts[0].truth is None else column("truth"),
        probability=column("probability"),
        weight=column("weight"),
    )
