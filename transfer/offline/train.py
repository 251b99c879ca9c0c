"""Training of a click model on a window of a log: once, in time order, as it goes on learning online.

The last part of the window is scored before it is trained on. That gives the metrics at birth and the labels for the
calibration, and all rows are trained on. Next stop: `transfer.offline.distill`, which trains a student on a teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.arrays import F32
from pipeline.bundle.row_format import RowFormat
from pipeline.calibration import probabilities
from pipeline.errors import DataError, InvalidInput
from pipeline.features import Rows, concat_rows
from pipeline.metrics import logloss
from transfer.click_model.calibration import fit_calibration
from transfer.click_model.device import DeviceChoice, device_for
from transfer.click_model.model import ClickModel, LearningSettings
from transfer.click_model.state import load_state, state_of
from transfer.data.log import Log, LogChunk, row_range
from transfer.model_zoo import ZOO_ALONE, Architectures
from transfer.offline.held import ASIDE_BATCHES, Held

__all__ = ["Progress", "TrainSettings", "batch_for", "first_rows", "train"]

Progress = Callable[[int, int], None]
"""Called with rows done and rows in all."""

FIT_ROWS = 100_000


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """Parameters of training on a window.

    Args:
        batch: rows per step; None: as `batch_for` says.
        tail: last fraction of the window, scored before it is trained on: metrics at birth and calibration.
        passes: over the part before the tail. Click logs with many rare ids overfit after one or two.
        early_stop: with several passes, stop when the tail's LogLoss grows, and keep the best pass.
        learning: rates.
        hyperparameters: of the architecture.
        stored: how bundles store the rows; calibration and metrics are of rows rounded so.
        device: where the network is trained; tables stay in the machine's memory.
    """

    batch: int | None = None
    tail: float = 0.2
    passes: int = 1
    early_stop: bool = True
    learning: LearningSettings = field(default_factory=LearningSettings)
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    stored: RowFormat = "float32"
    device: DeviceChoice = "cpu"

    def __post_init__(self) -> None:
        if (self.batch is not None and self.batch < 1) or self.passes < 1 or not 0.0 < self.tail < 1.0:
            raise InvalidInput("batch and passes must be at least 1 and tail between 0 and 1", "settings")


def train(
    log: Log,
    arch: str,
    *,
    width: int = 16,
    start: float = 0.0,
    stop: float = 1.0,
    seed: int = 0,
    settings: TrainSettings | None = None,
    progress: Progress | None = None,
    architectures: Architectures = ZOO_ALONE,
) -> ClickModel:
    """A model from a window of a log, calibrated.

    Args:
        log: rows in time order.
        arch: name in the zoo, or of a class that `architectures` was given.
        width: length of a field's vector.
        start, stop: row quantiles of the window, 0..1.
        seed: of weights and new rows.
        settings: batch, tail, passes, rates.
        progress: called with rows done and rows in all.
        architectures: what `arch` may name.

    Returns:
        The model; its `metrics` (auc, logloss, bias, rows, positives) are of the tail, before training on it.

    Raises:
        DataError: the window is empty or has one class.
        InvalidInput: of the architecture's arguments.
    """
    settings = settings or TrainSettings()
    tail_start = stop - settings.tail * (stop - start)
    model = ClickModel.create(
        log.schema,
        arch,
        width,
        seed=seed,
        hyperparameters=settings.hyperparameters,
        learning=settings.learning,
        architectures=architectures,
    )
    model.stored = settings.stored
    model.to(device_for(settings.device))
    first = first_rows(log, start, stop)
    model.fit_numbers(first.rows)
    model.start_level(first.rows, first.rate, first.stands_for)
    body, tail = window_rows(log, start, tail_start), window_rows(log, tail_start, stop)
    batch = settings.batch or batch_for(body + tail)
    total, done = settings.passes * body + tail, 0

    def learn(chunk: LogChunk) -> None:
        nonlocal done
        factor = chunk.loss_factor(log.label_offset) / first.mean_factor
        model.step(chunk.rows, chunk.labels, label_offset=log.label_offset or 0.0, row_weight=factor)
        done = min(total, done + len(chunk))  # a window's edge may move by one request
        if progress is not None:
            progress(done, total)

    best: tuple[float, Any] | None = None
    for _ in range(settings.passes):
        for chunk in log.chunks(start, tail_start, batch):
            learn(chunk)
        if settings.passes > 1 and settings.early_stop:
            loss = _tail_loss(model, log, tail_start, stop)
            if best is not None and loss >= best[0]:
                break
            best = loss, state_of(model)
    if best is not None:
        load_state(model, *best[1])
    held = Held()
    uneven = log.label_offset != 0.0
    for number, chunk in enumerate(log.chunks(tail_start, stop, batch)):
        aside = uneven and number % ASIDE_BATCHES == 0
        held.score(model, chunk.rows, chunk.labels, chunk.stands_for, again=aside or not uneven)
        if not aside:
            learn(chunk)
    calibration, model.metrics = held.calibrate(model)
    model.unknown_ids = held.unknown_ids
    model.calibrate(calibration)
    return model


def batch_for(rows: int) -> int:
    """Rows per step for a window: a power of two from 256 to 2,048 that gives about 2,000 steps.

    A small log needs its steps; a large one has enough of them, and small batches cost most of their time in overhead.
    """
    return 1 << min(max(round(rows / 2000).bit_length() - 1, 8), 11)


def window_rows(log: Log, start: float, stop: float) -> int:
    """Rows of a window; a request across its edge may add to them or not."""
    first, last = row_range(start, stop, log.rows)
    return last - first


@dataclass(frozen=True, slots=True)
class FirstRows:
    """The first rows of a window, to take mean and deviation of the numbers from.

    Args:
        rows: of them.
        stands_for: float32 `[n]`, as of `Levels`.
        rate: fraction of positives at which a loss has its level: of the traffic, by `weight`.
        mean_factor: mean factor of a row's loss.
    """

    rows: Rows
    stands_for: F32
    rate: float
    mean_factor: float


def first_rows(log: Log, start: float, stop: float, count: int = FIT_ROWS) -> FirstRows:
    """The first `count` rows of a window, and more where these have labels of one class only.

    Raises:
        DataError: the window is empty, or has labels of one class only.
    """
    parts: list[Rows] = []
    stand_for: list[F32] = []
    seen, clicks = 0, 0.0
    factors, weights, positives = 0.0, 0.0, 0.0
    for chunk in log.chunks(start, stop, min(count, 8192)):
        if seen < count:
            parts.append(chunk.rows)
            stand_for.append(chunk.stands_for)
        seen += len(chunk)
        weight = chunk.loss_factor(None).astype(np.float64)
        weights, positives = weights + float(weight.sum()), positives + float(weight @ chunk.labels)
        factors += float(chunk.loss_factor(log.label_offset).sum(dtype=np.float64))
        clicks += float(chunk.labels.sum())
        if seen >= count and 0 < clicks < seen:
            break
    if not seen:
        raise DataError(f"there are no rows between {start} and {stop} of the log; widen the window", "from")
    if clicks in (0.0, float(seen)):
        raise DataError(
            f"all {seen} labels between {start} and {stop} of the log are {clicks / seen:.0f}; widen the window or check "
            "which values of the label count as positive",
            "label",
        )
    rate = min(max(positives / weights, 0.5 / seen), 1 - 0.5 / seen) if weights else clicks / seen
    return FirstRows(concat_rows(parts), np.concatenate(stand_for), rate, factors / seen or 1.0)


def _tail_loss(model: ClickModel, log: Log, start: float, stop: float) -> float:
    held = Held()
    for chunk in log.chunks(start, stop, 8192):
        held.add(model.logits(chunk.rows), chunk.labels, chunk.stands_for)
    logits, labels, counts = held.logits, held.labels, held.stands_for
    calibration = fit_calibration(logits, labels, counts)
    return logloss(labels, probabilities(logits, calibration.alpha, calibration.beta), counts)
