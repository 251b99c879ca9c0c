"""`baton bench drift`: gain of the adaptive rule of the online stage, on a stationary stream and after an abrupt change.

A teacher and its student meet a generated stream whose true click probabilities are known, once with a, r and K kept
constant and once adapting. The teacher's logged scores are those of its last publication, 20 batches old at most. What is measured is regret:
the divergence of the student's scores from the truth, in nats, on rows before it trains on them; it has no label noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.report import Progress, Report
from pipeline.arrays import F32, F64
from pipeline.calibration import probabilities
from transfer.click_model.state import load_state, model_from, state_of
from transfer.data.generator import GeneratedLog
from transfer.data.log import LogChunk
from transfer.offline.distill import transfer_offline
from transfer.offline.train import train
from transfer.offline.window import Window
from transfer.online.adapt import Adapted, AdaptSettings
from transfer.online.codistill import CoDistiller
from transfer.online.replay_store import ReplayRows, keep_sample
from transfer.online.stream import StreamBatch, StreamRows

__all__ = ["Followed", "run"]


TEACHER, STUDENT, WIDTHS = "deepfm", "dcnv2", (16, 8)
HISTORY, RETAINED, CHANGE = 0.3, 0.5, 0.7
BATCH, PUBLISHED_EVERY = 1024, 20
LEVEL_BATCHES, SMOOTH = 40, 9
"""Batches before the change whose mean regret is the level to come back to, and over which regret is averaged."""
BACK = 0.75
"""Recovered: this fraction of the jump is gone."""
MOST_ROWS_FRACTION, MOST_LOSS = 0.5, 1.002
"""Budgets, adaptive against constant: rows to recover, and LogLoss without drift, where seeds differ by more than this."""


@dataclass(frozen=True, slots=True)
class Followed:
    """Course of a student on a stream: regret and entropy of the truth per batch, float64 `[batches]`, and its settings."""

    regret: F64
    entropy: F64
    adapted: list[Adapted]

    @property
    def loss(self) -> float:
        """Expected LogLoss of the scores under the true probabilities."""
        return float((self.regret + self.entropy).mean())

    def rows_to_recover(self, change: int, fraction: float = BACK) -> float:
        """Rows from batch `change` on until `fraction` of the jump in regret is gone; infinite: not within the stream."""
        before = float(self.regret[change - LEVEL_BATCHES : change].mean())
        after = np.convolve(self.regret[change:], np.full(SMOOTH, 1 / SMOOTH), "valid")
        goal = before + (1 - fraction) * (float(self.regret[change : change + 3].mean()) - before)
        back = np.flatnonzero(after <= goal)
        return float((back[0] + SMOOTH) * BATCH) if len(back) else float("inf")


def run(rows: int = 500_000, seeds: int = 3, progress: Progress = lambda _: None) -> Report:
    """Rows to recover after an abrupt change, and LogLoss on a stream without one, adaptive against constant."""
    torch.set_num_threads(1)
    report = Report("drift")
    change = round((CHANGE - RETAINED) * rows / BATCH)
    for seed in range(seeds):
        progress(f"drift: abrupt change, seed {seed}")
        followed = follow_both(_log(rows, seed, CHANGE))
        mine, theirs = (min(one.rows_to_recover(change), (1 - CHANGE) * rows) for one in followed.values())
        report.add(f"abrupt/seed={seed}", "rows to recover", mine, "rows", limit=theirs, at_most=MOST_ROWS_FRACTION)
    for seed in range(seeds):
        progress(f"drift: none, seed {seed}")
        mine, theirs = (one.loss for one in follow_both(_log(rows, seed, None)).values())
        report.add(f"still/seed={seed}", "LogLoss", mine, "nats", limit=theirs, at_most=MOST_LOSS)
    return report


def _log(rows: int, seed: int, abrupt_at: float | None) -> GeneratedLog:
    """Log of few users and items, so that models know them well before the change."""
    return GeneratedLog(rows, seed, drift=0.0, abrupt_at=abrupt_at, rows_per_request=20, users=500, items=500)


def follow_both(log: GeneratedLog) -> dict[str, Followed]:
    """Courses of the adaptive and the constant online stage on the same log, from the same teacher and student."""
    teacher = train(log, TEACHER, width=WIDTHS[0], stop=HISTORY)
    student, _ = transfer_offline(Window(teacher, log, HISTORY, RETAINED), STUDENT, width=WIDTHS[1])
    states = state_of(teacher), state_of(student)
    with TemporaryDirectory(prefix="baton-drift-") as folder:
        path = Path(folder) / "retained.safetensors"
        keep_sample(log, HISTORY, RETAINED, path, teacher.calibrated_logits, capacity=50_000, seed=0)
        replay = ReplayRows(path)
    return {
        kind: follow(log, states, replay, AdaptSettings(adapt=kind == "adaptive")) for kind in ("adaptive", "constant")
    }


def follow(log: GeneratedLog, states: tuple[Any, Any], replay: ReplayRows, settings: AdaptSettings) -> Followed:
    """Course of one online stage on the stream, as the worker runs it."""
    teacher, student = (model_from(header, arrays) for header, arrays in states)
    published = model_from(*state_of(teacher))
    distiller = CoDistiller(teacher, student, replay, settings=settings, seed=0)
    regret, entropy, adapted = [], [], []
    for number, chunk in enumerate(log.chunks(RETAINED, 1.0, BATCH), 1):
        assert chunk.truth is not None
        truth = np.clip(chunk.truth.astype(np.float64), 1e-9, 1 - 1e-9)
        logits = student.calibrated_logits(chunk.rows).astype(np.float64)
        own = -(truth * np.log(truth) + (1 - truth) * np.log1p(-truth)).mean()
        regret.append((np.logaddexp(0, logits) - truth * logits).mean() - own)
        entropy.append(own)
        served = probabilities(published.calibrated_logits(chunk.rows), 1.0, 0.0)
        adapted.append(distiller.learn(_batch(number, chunk, served), number).adapted)
        if number % PUBLISHED_EVERY == 0:
            load_state(published, *state_of(teacher))
    return Followed(np.array(regret), np.array(entropy), adapted)


def _batch(number: int, chunk: LogChunk, served: F32) -> StreamBatch:
    none = np.full(len(chunk), np.nan, np.float32)
    rows = StreamRows(chunk.rows, chunk.labels, none, served, none)
    nothing = np.empty(0, np.float32)
    held = StreamRows(chunk.rows.slice(0, 0), nothing, nothing, nothing, nothing)
    return StreamBatch(number, rows, held)
