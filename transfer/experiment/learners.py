"""Learners of an experiment: each scores a batch of the stream before it learns it.

Next stop: `runs`, which defines what each run starts from and which learner it uses.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import numpy as np

from pipeline.arrays import F32, Mask
from pipeline.calibration import probabilities
from pipeline.features import Rows
from transfer.click_model.model import ClickModel
from transfer.data.log import Log, LogChunk
from transfer.online.codistill import CoDistiller
from transfer.online.recalibrate import HeldRows, Ring, recalibrate, window_for
from transfer.online.replay_store import ReplayRows, keep_sample
from transfer.online.stream import StreamBatch, StreamRows, held_out
from transfer.quality.measured import Stopwatch

__all__ = ["CoDistilled", "Distilled", "Frozen", "Judged", "LabelsOnly", "Learner", "RareSteps", "keep_replay"]


@dataclass(frozen=True, slots=True)
class Judged:
    """Scores of rows from before they were learned, float32 `[n]`, the labels, the weights a, r, K where a run has them, and what
    the rows stand for."""

    scores: F32
    labels: F32
    weights: dict[str, float]
    stands_for: F32


class Learner(Protocol):
    """Learns the stream batch by batch; `watch` runs while it trains and is stopped while it is judged."""

    model: ClickModel

    def learn(self, chunk: LogChunk, watch: Stopwatch) -> Judged: ...

    def finish(self, watch: Stopwatch) -> None:
        """Prepare the model, at the end of the stream, to be judged on the test rows."""


class Frozen:
    """A model that does not learn."""

    def __init__(self, model: ClickModel) -> None:
        self.model = model

    def learn(self, chunk: LogChunk, watch: Stopwatch) -> Judged:
        return Judged(self.model.scores(chunk.rows), chunk.labels, {}, chunk.stands_for)

    def finish(self, watch: Stopwatch) -> None:
        return


class LabelsOnly(Frozen):
    """A step per batch on its labels."""

    def learn(self, chunk: LogChunk, watch: Stopwatch) -> Judged:
        scores = self.model.scores(chunk.rows)
        with watch.running():
            self.model.step(chunk.rows, chunk.labels, row_weight=_row_weight(chunk))
        return Judged(scores, chunk.labels, {}, chunk.stands_for)


class RareSteps(Frozen):
    """A step per `every` batches on the mean gradient of their labels: how a teacher learns online."""

    def __init__(self, model: ClickModel, every: int) -> None:
        super().__init__(model)
        self._every = every

    def learn(self, chunk: LogChunk, watch: Stopwatch) -> Judged:
        scores = self.model.scores(chunk.rows)
        with watch.running():
            self.model.accumulate(chunk.rows, chunk.labels, row_weight=_row_weight(chunk))
            if self.model.pending_batches >= self._every:
                self.model.apply_accumulated()
        return Judged(scores, chunk.labels, {"K": float(self._every)}, chunk.stands_for)


class Distilled(Frozen):
    """A step per batch on its labels and on the logits of a teacher that does not learn, with a constant teacher weight."""

    def __init__(self, model: ClickModel, teacher: ClickModel, teacher_weight: float) -> None:
        super().__init__(model)
        self._teacher, self._teacher_weight = teacher, teacher_weight

    def learn(self, chunk: LogChunk, watch: Stopwatch) -> Judged:
        scores = self.model.scores(chunk.rows)
        with watch.running():
            guide = self._teacher.calibrated_logits(chunk.rows)
            self.model.step(
                chunk.rows,
                chunk.labels,
                teacher_logits=guide,
                teacher_weight=self._teacher_weight,
                row_weight=_row_weight(chunk),
            )
        return Judged(scores, chunk.labels, {"a": self._teacher_weight}, chunk.stands_for)


class CoDistilled:
    """Asymmetric co-distillation as the worker does it (`transfer.online.codistill`), with its held-out requests and calibration.

    The teacher's logged scores are computed here as serving would compute them, and their time counts.

    Args:
        holdout: fraction of the requests that is never trained on; with 0 nothing is calibrated (published).
        calibrate_every: batches between two calibrations, that is between two publications.
    """

    HELD_ROWS, RECENT_ROWS = 20_000, 200_000

    def __init__(self, distiller: CoDistiller, *, holdout: float, calibrate_every: int) -> None:
        self._distiller = distiller
        self.model = distiller.student
        self._holdout, self._every = holdout, calibrate_every
        self._recent = Ring(self.RECENT_ROWS)
        self._held = HeldRows(self.HELD_ROWS, ("student",))
        self._batches = self._passed = 0

    def learn(self, chunk: LogChunk, watch: Stopwatch) -> Judged:
        held = self._chosen(chunk)
        assert self._distiller.teacher is not None
        with watch.running():
            logged = probabilities(self._distiller.teacher.calibrated_logits(chunk.rows), 1.0, 0.0)
            batch = StreamBatch(self._batches, _rows(chunk, logged, ~held), _rows(chunk, logged, held))
            self._batches += 1
            passed = self._distiller.learn(batch, self._batches)
            calibration = self.model.calibration
            if self._holdout:
                self._recent.add(passed.student, batch.train.labels, batch.train.stands_for)
                held_rows, logits = batch.held, {"student": passed.held_student}
                self._held.add(held_rows.rows, held_rows.labels, logits, self._passed, stands_for=held_rows.stands_for)
                self._passed += len(batch.train)
                if self._batches % self._every == 0:
                    self._calibrate()
        scores = probabilities(
            np.concatenate([passed.student, passed.held_student]), calibration.alpha, calibration.beta
        )
        adapted = passed.adapted
        weights = {"a": adapted.teacher_weight, "r": adapted.replay, "K": float(adapted.every)}
        stands_for = np.concatenate([batch.train.stands_for, batch.held.stands_for])
        return Judged(scores, np.concatenate([batch.train.labels, batch.held.labels]), weights, stands_for)

    def finish(self, watch: Stopwatch) -> None:
        if self._holdout:
            with watch.running():
                self._calibrate()

    def _calibrate(self) -> None:
        current = self.model.calibration
        window = window_for(current, self._recent)
        held = self._held.newest(self._passed - window, 500)
        if held.rows is None:
            return
        before, after = held.logits["student"], self.model.logits(held.rows)
        self.model.calibration = recalibrate(current, self._recent, window, before, after, held.stands_for)

    def _chosen(self, chunk: LogChunk) -> Mask:
        """Which rows are never trained on."""
        requests, of = np.unique(chunk.request, return_inverse=True)
        chosen = np.array([held_out(str(number), self._holdout) for number in requests.tolist()], np.bool_)
        rows: Mask = chosen[of]
        return rows


def keep_replay(log: Log, start: float, stop: float, teacher: ClickModel, capacity: int, seed: int) -> ReplayRows:
    """A uniform sample of a window to replay from, as `baton transfer --retained` keeps it."""
    with TemporaryDirectory(prefix="baton-replay-") as folder:
        path = Path(folder) / "rows.safetensors"
        keep_sample(log, start, stop, path, teacher.calibrated_logits, capacity=capacity, seed=seed)
        return ReplayRows(path)


def _row_weight(chunk: LogChunk) -> F32:
    """Factors of the rows' losses, 1 in the mean."""
    factors = chunk.loss_factor(None)
    return factors / max(float(factors.mean()), 1e-9)


def _rows(chunk: LogChunk, logged: F32, chosen: Mask) -> StreamRows:
    index = np.flatnonzero(chosen)
    none = np.full(len(index), np.nan, np.float32)
    rows: Rows = chunk.rows.take(index)
    return StreamRows(rows, chunk.labels[index], none, logged[index], none, probability=chunk.probability[index])
