"""Two drift detectors, for one number or one histogram per batch.

`Cusum` compares a statistic with its own past: a change is an alarm after a few batches, and stays one until the evidence
for it is gone. `Stability` compares the newest rows of a histogram with the older ones. `transfer.online.adapt` chooses
the statistics and decides what follows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.arrays import F64, Array

__all__ = ["Cusum", "Stability"]


class Cusum:
    """One-sided cumulative sum of a statistic's rises (Page, Biometrika 1954), in deviations of its own past.

    Args:
        slack: a rise of fewer deviations than this counts for nothing.
        threshold: sum at which an alarm starts. With a slack of 0.5, about one false alarm in 19,000 batches
            (Siegmund's approximation), while a jump of 3 deviations is noticed after 4.
        discount: of the reference per batch.
        least: batches of reference before it judges.
        patience: batches after which an alarm that does not end counts as normal: the reference is built anew.
        cooling: of `heat` per batch after the alarm.

    >>> watch = Cusum(least=5)
    >>> heats = [watch.update(x) for x in [0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 9.0, 9.0]]
    >>> heats[0], heats[-1]
    (0.0, 1.0)
    """

    _STATE = ("_weight", "_mean", "_square", "_seen", "sum", "alarmed", "_lasted", "alarms", "heat")

    def __init__(
        self,
        *,
        slack: float = 0.5,
        threshold: float = 8.0,
        discount: float = 0.99,
        least: int = 20,
        patience: int = 300,
        cooling: float = 0.9,
    ) -> None:
        self._slack, self._threshold, self._discount = slack, threshold, discount
        self._least, self._patience, self._cooling = least, patience, cooling
        self._weight = self._mean = self._square = 0.0
        self._seen = self._lasted = 0
        self.sum = 0.0
        """Evidence, at most twice the threshold so that an alarm can end."""
        self.alarmed = False
        """From `sum` above the threshold until it is below half of it."""
        self.alarms = 0
        """Alarms so far."""
        self.heat = 0.0
        """1 in an alarm, from then on falling to 0."""

    def update(self, x: float) -> float:
        """Add a batch's statistic; the heat. One that is not finite is skipped."""
        if not np.isfinite(x):
            return self.heat
        if self._seen >= self._least:
            deviation = max(np.sqrt(max(self._square - self._mean * self._mean, 0.0)), 1e-9)
            z = float(np.clip((x - self._mean) / deviation, -self._threshold, self._threshold))
            self.sum = float(np.clip(self.sum + z - self._slack, 0.0, 2 * self._threshold))
        was = self.alarmed
        self.alarmed = self.sum > (0.5 if was else 1.0) * self._threshold
        self.alarms += self.alarmed and not was
        self._lasted = self._lasted + 1 if self.alarmed else 0
        if self._lasted > self._patience:
            self._weight = self._mean = self._square = self.sum = 0.0
            self._seen = self._lasted = 0
            self.alarmed = False
        if not self.alarmed:  # a suspect value must not become part of its own reference
            self._weight = self._discount * self._weight + 1.0
            self._mean += (x - self._mean) / self._weight
            self._square += (x * x - self._square) / self._weight
            self._seen += 1
        self.heat = 1.0 if self.alarmed else self._cooling * self.heat
        return self.heat

    def state(self) -> dict[str, Any]:
        """The state that `restore` takes, as JSON values."""
        return {name: getattr(self, name) for name in self._STATE}

    def restore(self, state: Mapping[str, Any]) -> None:
        for name in self._STATE:
            setattr(self, name, state[name])


class Stability:
    """Population stability index of histograms: the newest batches against those before.

    `sum((p - q) * log(p / q))` over the bins, the larger of all histograms; by custom, below 0.1 nothing has moved and
    above 0.25 much has (Siddiqi, Credit Risk Scorecards, 2006). The difference expected by chance at these counts is subtracted.

    Args:
        histograms, bins: shape of what `update` takes.
        fast, slow: discounts per batch of newest and older counts.
        least: batches before it judges.
    """

    def __init__(self, histograms: int, bins: int, *, fast: float = 0.9, slow: float = 0.99, least: int = 20) -> None:
        self._fast_discount, self._slow_discount, self._least = fast, slow, least
        self._fast: F64 = np.zeros((histograms, bins))
        self._slow: F64 = np.zeros((histograms, bins))
        self._seen = 0

    def update(self, counts: Array) -> float:
        """Add a batch's counts `[histograms, bins]`; the index, 0 while there are too few to compare."""
        self._fast = self._fast_discount * self._fast + counts
        self._slow = self._slow_discount * self._slow + counts
        self._seen += 1
        if self._seen < self._least:
            return 0.0
        # Half a row per bin keeps empty bins finite.
        totals = [x.sum(1) + 0.5 * x.shape[1] for x in (self._fast, self._slow)]
        p, q = ((x + 0.5) / n[:, None] for x, n in zip((self._fast, self._slow), totals, strict=True))
        chance = (p.shape[1] - 1) * sum(1.0 / n for n in totals)
        return float((((p - q) * np.log(p / q)).sum(1) - chance).max(initial=0.0))

    def state(self) -> dict[str, Any]:
        """The state that `restore` takes, as JSON values."""
        return {"fast": self._fast.tolist(), "slow": self._slow.tolist(), "seen": self._seen}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._fast, self._slow = np.array(state["fast"]), np.array(state["slow"])
        self._seen = state["seen"]
