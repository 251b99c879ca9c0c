"""Section `worker`: training of the student on live traffic."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from pipeline.bundle.row_format import RowFormat
from serving.config.section import Seconds, Section

__all__ = ["WorkerConfig"]

OwnClass = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]


class WorkerConfig(Section):
    endpoint: str
    """Endpoint whose labelled traffic the worker learns from; its arms are the teacher (stable) and student (candidate)."""
    batch_rows: int = Field(4096, ge=1)
    """Rows of one student step."""
    teacher_every: int = Field(10, ge=1, le=1000)
    """K, how seldom the teacher learns: one step on the mean gradient of K batches, before adaptation."""
    weight: float = Field(0.7, ge=0, le=0.9)
    """a: weight of the teacher's term of the student's loss, before adaptation."""
    replay_ratio: float = Field(0.1, ge=0, le=0.3)
    """r: rows from the retained window per row of the stream, before adaptation."""
    adapt: bool = True
    """Whether a, r and K adapt to the stream (docs/training.md); false keeps them as they are."""
    retained: Path | None = None
    """Rows of the retained window to replay, as `baton transfer` wrote them; none: no replay."""
    holdout: float = Field(0.05, gt=0, lt=0.5)
    """Fraction of requests never trained on, for the gate and for calibration."""
    publish_interval: Seconds = 60.0
    """Shortest time between two published versions of the student."""
    publish_batches: int = Field(20, ge=1)
    """Fewest student steps between two published versions."""
    teacher_publish_interval: Seconds = 600.0
    """Shortest time between two published versions of the teacher."""
    gate_logloss_margin: float = Field(0.002, ge=0)
    """How much worse in LogLoss than the serving version a new one may be on rows that none was trained on."""
    gate_auc_margin: float = Field(0.003, ge=0)
    """The same for AUC."""
    gate_bias: float = Field(0.05, gt=0)
    """Largest |bias| after calibration."""
    gate_rows: int = Field(20_000, ge=100)
    """How many recent held-out rows the gate and the calibration look at. Where these hold fewer than 100 clicks, as many
    more as it takes are kept, up to 20 times this number; until there are enough, status says how many are missing."""
    compact_after: int = Field(16, ge=1)
    """Deltas after which a version is written as a new base."""
    rows: RowFormat | None = None
    """How versions store their rows: float32, float16 or int8 (docs/embeddings.md); by default as the bundle that the worker
    goes on from. Training goes on in float32."""
    threads: int = Field(1, ge=1)
    """Threads of the training."""
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """Where the networks are trained; auto is a GPU where there is one. Tables stay in the machine's memory. A worker that
    is killed ends with the same bits as one that is not on the processor only."""
    nice: int = Field(15, ge=0, le=19)
    """Lowered priority of the worker (`nice`); 19: it runs only when no other process needs the processor, maybe never."""
    seed: int = 0
    architectures: tuple[OwnClass, ...] = ()
    """Architectures of your own, as `package.module:Class`, importable where the worker runs: installed, or on PYTHONPATH.
    Beside those of the zoo they are the only ones that a bundle of the endpoint may name."""
