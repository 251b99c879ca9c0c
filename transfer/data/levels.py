"""What labelled rows stand for: the share of such rows that a log kept, and a factor of their loss.

A log that threw rows away has another level than the traffic. Two ways lead back. Where what was thrown away depends on the
label alone, the log-odds of the labels are off by one number, `Log.label_offset`: the loss adds it to the logit, and every
row counts once. Else each row's loss counts 1 / probability. The first is better where it can be had: few rows of large
weight make noisy steps (docs/transfer.md has the figures). Calibration and every figure always count rows by `stands_for`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from pipeline.arrays import F32

__all__ = ["Levels"]


def _unsaid() -> F32:
    return np.empty(0, np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """Levels of n rows with `labels`; both are 1 unless given.

    `probability` float32 `[n]`, above 0 and at most 1, is the share of such rows that the log kept: a row stands for 1 /
    probability rows of the traffic. `weight` float32 `[n]` is a factor of the row's loss alone, never of calibration, figures
    or evidence.
    """

    probability: F32 = field(default_factory=_unsaid)
    weight: F32 = field(default_factory=_unsaid)

    def __post_init__(self) -> None:
        for name in ("probability", "weight"):
            if not len(getattr(self, name)):
                object.__setattr__(self, name, np.ones(len(self.labels), np.float32))  # type: ignore[attr-defined]

    @property
    def stands_for(self) -> F32:
        """Rows of the traffic that each row stands for, float32 `[n]`."""
        return np.float32(1) / self.probability

    def loss_factor(self, label_offset: float | None) -> F32:
        """Factor of each row's loss, float32 `[n]`; `label_offset` as of the log."""
        return self.weight / self.probability if label_offset is None else self.weight
