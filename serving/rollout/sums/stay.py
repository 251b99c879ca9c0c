"""Sums over the rows of one stay at a step, for display: of each arm on all paired rows, and of the candidate on its own.

Integers of fixed scale, as in `blocks`. Bins are those of `pipeline.metrics.BinnedAuc`, whose figures they become.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.arrays import I64, Array, Index
from pipeline.metrics import BinnedAuc, Sums
from serving.rollout.sums.outcome import OutcomeSums
from serving.rollout.sums.scale import NAT_UNITS, UNITS, checked

__all__ = ["ArmSums", "StaySums"]

_BINS = BinnedAuc().bins
_ROWS, _CLICKS, _PREDICTED = range(3)


class ArmSums:
    """Rows, clicks, scores and LogLoss of one arm; rows can be taken back.

    Attributes:
        binned: int64 `[3, bins]`: rows, clicks and sums of scores by log-odds. losses: their LogLoss.
    """

    def __init__(self, binned: I64 | None = None, losses: int = 0) -> None:
        self.binned = np.zeros((3, _BINS), np.int64) if binned is None else binned
        self.losses = losses

    def add(self, bins: Index, sign: I64, clicks: I64, scores: I64, losses: I64) -> None:
        """Add rows, all `[n]`, in whole units; the last three times `sign`, which is 1, or -1 to take a row back."""
        for column, values in ((_ROWS, sign), (_CLICKS, clicks), (_PREDICTED, scores)):
            np.add.at(self.binned[column], bins, values)
        self.losses += int(losses.sum())
        checked(self.binned)

    def numbers(self) -> Sums:
        """As numbers."""
        rows, clicks, predicted = self.binned
        found = Sums(
            int(rows.sum()), float(clicks.sum()) / UNITS, float(predicted.sum()) / UNITS, float(self.losses) / NAT_UNITS
        )
        found.binned.positives = clicks / UNITS
        found.binned.negatives = rows - found.binned.positives
        found.predicted_in = predicted / UNITS
        return found


class StaySums:
    """Sums over the rows of one stay. `served`: of the candidate on rows that it answered itself."""

    def __init__(self, step: int, weight: float, entered_ms: int) -> None:
        self.step, self.weight, self.entered_ms = step, weight, entered_ms
        self.stable, self.candidate, self.served = ArmSums(), ArmSums(), ArmSums()
        self.outcome = OutcomeSums()

    def save(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """All of it, as (head for JSON, arrays), for `restore`."""
        arms = (self.stable, self.candidate, self.served)
        losses = [arm.losses for arm in arms]
        head = {"step": self.step, "weight": self.weight, "entered_ms": self.entered_ms, "losses": losses}
        return head, {"arms": np.stack([arm.binned for arm in arms]), "outcome": self.outcome.sums}

    @classmethod
    def restore(cls, head: Mapping[str, Any], arrays: Mapping[str, Array]) -> StaySums:
        """The inverse of `save`."""
        made = cls(head["step"], head["weight"], head["entered_ms"])
        made.stable, made.candidate, made.served = (
            ArmSums(binned.copy(), losses) for binned, losses in zip(arrays["arms"], head["losses"], strict=True)
        )
        made.outcome = OutcomeSums(arrays["outcome"].copy())
        return made
