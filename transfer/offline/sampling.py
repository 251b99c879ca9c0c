"""Balanced sampling of a window's rows, in time order, evenly along the window.

Published (CrossAdapt, arXiv 2602.01775): one batch from each chunk of `batch / window_fraction` rows, half positives and
half negatives, drawn with replacement. This shifts the log-odds by `log k`, which the label term has to be trained with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.arrays import F32, I64, Array, Index
from pipeline.errors import DataError
from pipeline.features import Rows, concat_rows
from transfer.data.levels import Levels

__all__ = ["Sample", "log_k", "strategic_batches"]


@dataclass(frozen=True, slots=True)
class Sample(Levels):
    """Rows to train on, with labels float32 `[n]`, their places in the window, int64 `[n]`, and what they stand for. `taught`
    are the rows as the teacher reads them; None: as the student does."""

    rows: Rows
    labels: F32
    places: I64
    taught: Rows | None = None

    @property
    def for_teacher(self) -> Rows:
        """The rows as the teacher reads them."""
        return self.rows if self.taught is None else self.taught

    def take(self, index: Index) -> Sample:
        taught = None if self.taught is None else self.taught.take(index)
        levels = {"probability": self.probability[index], "weight": self.weight[index]}
        return Sample(self.rows.take(index), self.labels[index], self.places[index], taught, **levels)


def log_k(rate: float) -> float:
    """Log of the sampling odds ratio: `k = (q / (1 - q)) / (p / (1 - p))`, with q = 1/2 for balanced batches.

    Args:
        rate: p, fraction of positives of the whole window (a chunk of one class has no finite k); of a sampled log that of
            the traffic.

    Raises:
        DataError: a window of one class.

    >>> round(log_k(0.2), 4)
    1.3863
    """
    if not 0.0 < rate < 1.0:
        raise DataError(
            f"every label of the window is {rate:.0f}; widen the window or check `positive` of the label", "label"
        )
    return float(-np.log(rate / (1.0 - rate)))


def strategic_batches(chunks: Iterable[Sample], *, batch: int, rng: np.random.Generator) -> Iterator[Sample]:
    """One balanced batch of every chunk, in order.

    Args:
        chunks: of about `batch / window_fraction` rows each. A chunk of one class waits for the next and is drawn from together
            with it, as many batches as chunks; what still has one class at the end is dropped.
        batch: rows of a batch, half of them positive. Within its class a row is drawn as often as it stands for others.
        rng: draws.
    """
    ones = batch // 2
    waiting: list[Sample] = []
    for chunk in chunks:
        waiting.append(chunk)
        joined = _join(waiting)
        positive, negative = np.flatnonzero(joined.labels > 0.5), np.flatnonzero(joined.labels <= 0.5)
        if not (len(positive) and len(negative)):
            continue
        for _ in waiting:
            index: Array = np.concatenate(
                [_drawn(joined, positive, ones, rng), _drawn(joined, negative, batch - ones, rng)]
            )
            yield joined.take(index)
        waiting = []


def _drawn(sample: Sample, index: Index, count: int, rng: np.random.Generator) -> Array:
    counts = sample.stands_for[index].astype(np.float64)
    alike = (counts == counts[0]).all()
    drawn: Array = rng.choice(index, count, replace=True, p=None if alike else counts / counts.sum())
    return drawn


def _join(parts: list[Sample]) -> Sample:
    if len(parts) == 1:
        return parts[0]
    return Sample(
        concat_rows([p.rows for p in parts]),
        np.concatenate([p.labels for p in parts]),
        np.concatenate([p.places for p in parts]),
        None if parts[0].taught is None else concat_rows([p.for_teacher for p in parts]),
        probability=np.concatenate([p.probability for p in parts]),
        weight=np.concatenate([p.weight for p in parts]),
    )
