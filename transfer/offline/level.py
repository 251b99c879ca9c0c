"""Level of a student in training beside that of the labels, for a fair comparison with its teacher.

Weights of the loss (`sample_weight`) move the level of a student until it is calibrated. Next stop: `transfer.offline.distill`.
"""

from __future__ import annotations

import numpy as np

from pipeline.arrays import F32
from transfer.click_model.calibration import offset_for
from transfer.offline.held import Held

__all__ = ["Level"]


class Level:
    """Level of the student's logits beside that of the labels, of the batches before: weights of the loss move it, and a
    model must not look worse than its teacher for that."""

    ROWS = 4096

    def __init__(self) -> None:
        self._seen = Held()

    def corrected(self, logits: F32, labels: F32, counts: F32) -> F32:
        """Logits float32 `[n]` at the level of the labels so far; then adds these."""
        moved: F32 = (logits + self.of(self._seen)).astype(np.float32)
        if len(self._seen.labels) > self.ROWS:
            self._seen = Held()
        self._seen.add(logits, labels, counts)
        return moved

    @staticmethod
    def of(held: Held) -> float:
        """What is to be added to the logits of some rows."""
        counts = held.stands_for.astype(np.float64)
        clicks = float(counts @ held.labels)
        return offset_for(held.logits.astype(np.float64), clicks, counts) if 0 < clicks < counts.sum() else 0.0
