"""Online calibration: the offset that makes the next version unbiased on rows it was never trained on.

It uses two windows. `recent` holds the trainer's own logits on every row of the stream, from before the row was trained
on: many rows, so little noise, but by older weights. `held` holds the rows that are never trained on with the same logits:
few rows, but the new weights may be run on them. The mean of the old weights' probabilities comes from the first (from as
many of them as agree on it, `window_for`), the difference between new and old weights from the second, where it is paired
and so nearly without noise: a control variate. Refitting on `held` alone would need 20 times the rows for the same error;
refitting on `recent` alone would correct again what training has already corrected.

Rows of a sampled log count for the rows that they stand for, so the level is that of the traffic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.arrays import F32, I64, Array, Arrays
from pipeline.bundle.bundle import Calibration
from pipeline.calibration import sigmoid
from pipeline.features import Rows, concat_rows
from transfer.click_model.calibration import offset_for
from transfer.online.replay_store import rows_from_arrays, rows_to_arrays
from transfer.quality.levels import level_variance, relative

__all__ = ["HeldRows", "Ring", "recalibrate", "window_for"]


# Rows that the newest window starts with, and how many standard errors its older half may differ before it is left out.
LEAST_ROWS = 2_000
TOLERANCE_DEVIATIONS = 3.0
# Weight of the calibration that serves, in units of information (sum of p (1 - p)): as if its odds were known to 5 %.
PRIOR_WEIGHT = 400.0
# Held-out rows beyond the capacity that are kept while clicks (or rows without one) are too few, as a multiple of it.
GROWTH_FACTOR = 20


class Ring:
    """The last `capacity` rows' (logit, label, what the row stands for), float32."""

    def __init__(self, capacity: int) -> None:
        self._logits = np.zeros(capacity, np.float32)
        self._labels = np.zeros(capacity, np.float32)
        self._stand_for = np.ones(capacity, np.float32)
        self._seen = 0

    def __len__(self) -> int:
        return min(self._seen, len(self._logits))

    def add(self, logits: F32, labels: F32, stands_for: F32 | None = None) -> None:
        """Append rows, all `[n]`; without `stands_for` each row stands for itself."""
        capacity = len(self._logits)
        counts = np.ones_like(labels) if stands_for is None else stands_for
        logits, labels, counts = logits[-capacity:], labels[-capacity:], counts[-capacity:]
        at = (self._seen + np.arange(len(logits))) % capacity
        self._logits[at], self._labels[at], self._stand_for[at] = logits, labels, counts
        self._seen += len(logits)

    @property
    def logits(self) -> F32:
        """Oldest first."""
        return self._ordered(self._logits)

    @property
    def labels(self) -> F32:
        """Oldest first."""
        return self._ordered(self._labels)

    @property
    def stands_for(self) -> F32:
        """Oldest first."""
        return self._ordered(self._stand_for)

    def _ordered(self, values: F32) -> F32:
        return np.roll(values, -(self._seen % len(values))) if self._seen > len(values) else values[: self._seen]

    def state(self) -> Arrays:
        return {
            "logits": self._logits,
            "labels": self._labels,
            "stands_for": self._stand_for,
            "seen": np.array([self._seen]),
        }

    def restore(self, state: Arrays) -> None:
        self._logits = state["logits"].astype(np.float32)
        self._labels = state["labels"].astype(np.float32)
        ones = np.ones_like(self._labels)  # what states of earlier releases mean
        self._stand_for = state.get("stands_for", ones).astype(np.float32)
        self._seen = int(state["seen"][0])


class HeldRows:
    """The most recent held-out rows, with what they stand for and the logits of each model from when they came (NaN: none).

    Args:
        capacity: rows; where these hold too few of a class, up to `GROWTH_FACTOR` times as many are kept.
        models: names of the models.
        least: rows of each class, clicked or not, that it is to hold.
    """

    def __init__(self, capacity: int, models: Sequence[str], least: int = 0) -> None:
        self._capacity = capacity
        self._least = least
        self.rows: Rows | None = None
        self.labels: F32 = np.empty(0, np.float32)
        self.stands_for: F32 = np.empty(0, np.float32)
        self.passed: I64 = np.empty(0, np.int64)
        self.keys: I64 = np.empty(0, np.int64)
        self.logits: dict[str, F32] = {name: np.empty(0, np.float32) for name in models}

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def rarer(self) -> tuple[str, int]:
        """The class with fewer rows, in words, and their number: what a comparison of versions can rest on. Rows are counted
        as they are there, whatever they stand for."""
        clicks = int(self.labels.sum())
        return min(("clicks", clicks), ("rows without a click", len(self) - clicks), key=lambda known: known[1])

    def add(
        self,
        rows: Rows,
        labels: F32,
        logits: Mapping[str, F32],
        passed: int,
        keys: I64 | None = None,
        stands_for: F32 | None = None,
    ) -> None:
        """Append rows, forgetting the oldest that are not needed. `passed`: rows trained on so far, to tell their age;
        `keys`: int64 `[n]`, for `revise`; `stands_for`: float32 `[n]`, rows of the traffic that each stands for."""
        if not len(labels):
            return
        rows = rows if self.rows is None else concat_rows([self.rows, rows])
        labels = np.concatenate([self.labels, labels])
        start = min(max(0, len(labels) - self._capacity), _start_with(labels, self._least))
        start = max(start, len(labels) - GROWTH_FACTOR * self._capacity)
        self.rows = rows.slice(start, len(labels))
        self.labels = labels[start:]
        counts = np.ones(len(labels) - len(self.stands_for), np.float32) if stands_for is None else stands_for
        self.stands_for = np.concatenate([self.stands_for, counts])[start:]
        keys = np.zeros(len(labels) - len(self.keys), np.int64) if keys is None else keys
        self.keys = np.concatenate([self.keys, keys])[start:]
        at = np.full(len(labels) - len(self.passed), passed, np.int64)
        self.passed = np.concatenate([self.passed, at])[start:]
        self.logits = {name: np.concatenate([old, logits[name]])[start:] for name, old in self.logits.items()}

    def revise(self, keys: I64, labels: F32) -> None:
        """Give rows that are still held a later label; each row is held once."""
        newer = dict(zip(keys.tolist(), labels.tolist(), strict=True))
        at = np.flatnonzero(np.isin(self.keys, keys))
        self.labels = self.labels.copy()
        self.labels[at] = [newer[key] for key in self.keys[at].tolist()]

    def newest(self, since: int, least: int) -> HeldRows:
        """The rows that came after `since` rows had passed, or as many more as it takes for `least` of each class."""
        start = min(int(np.searchsorted(self.passed, since, side="right")), _start_with(self.labels, least))
        chosen = HeldRows(self._capacity, tuple(self.logits), self._least)
        if self.rows is not None:
            chosen.rows = self.rows.slice(start, len(self))
            chosen.labels, chosen.passed, chosen.keys = self.labels[start:], self.passed[start:], self.keys[start:]
            chosen.stands_for = self.stands_for[start:]
            chosen.logits = {name: values[start:] for name, values in self.logits.items()}
        return chosen

    def state(self) -> Arrays:
        """Arrays that `restore` takes; empty where no row was held yet."""
        if self.rows is None:
            return {}
        arrays = {f"logits.{name}": values for name, values in self.logits.items()}
        own: dict[str, Array] = {
            "labels": self.labels,
            "stands_for": self.stands_for,
            "passed": self.passed,
            "keys": self.keys,
        }
        return {**rows_to_arrays(self.rows), **own, **arrays}

    def restore(self, state: Mapping[str, Array]) -> None:
        if state:
            self.rows = rows_from_arrays(state)
            self.labels, self.passed, self.keys = state["labels"], state["passed"], state["keys"]
            self.stands_for = state.get("stands_for", np.ones_like(self.labels))
            none = np.full(len(self.labels), np.nan, np.float32)
            self.logits = {name: state.get(f"logits.{name}", none) for name in self.logits}


def _start_with(labels: F32, least: int) -> int:
    """Index of the row from which on there are `least` rows of each class; 0 where there are fewer."""
    starts = [len(labels)]
    for events in (labels, 1 - labels):
        later = np.cumsum(events[::-1], dtype=np.float64)[::-1]  # events from each row on
        starts.append(max(0, int(np.searchsorted(-later, -least, side="right")) - 1) if least else len(labels))
    return min(starts)


def recalibrate(
    current: Calibration, recent: Ring, window: int, before: F32, after: F32, stands_for: F32 | None = None
) -> Calibration:
    """The calibration of the weights as they are now.

    Args:
        current: what serves; kept in part while there is little evidence (`PRIOR_WEIGHT`), its alpha as it is.
        recent: logits, labels and counts of all passing rows, by the weights of their time.
        window: number of the newest of them to use, see `window_for`.
        before, after: logits of the held-out rows, by the weights of their time and by those of now; float32 `[h]`.
        stands_for: rows of the traffic that each held-out row stands for, float32 `[h]`; None: itself.

    Returns:
        a calibration with a new beta; `current` where no row has passed yet.
    """
    if not len(recent) or not window:
        return current
    alpha = current.alpha
    scaled, labels = alpha * recent.logits[-window:].astype(np.float64), recent.labels[-window:]
    counts = relative(recent.stands_for[-window:])
    p = sigmoid(scaled + current.beta)
    slope, noise = float((counts * p * (1 - p)).sum()), float(level_variance(p, labels, counts).sum())
    information = slope * slope / noise if noise > 0 else 0.0
    # Pulled towards the serving calibration by as much as that one was known.
    keep = PRIOR_WEIGHT / (PRIOR_WEIGHT + information)
    target = keep * float(counts @ p) + (1 - keep) * float(counts @ labels)
    old = offset_for(scaled, min(max(target, 0.5), len(scaled) - 0.5), counts)
    known = np.isfinite(before)
    if not known.any():
        return Calibration(alpha=alpha, beta=old)
    own = np.ones(len(before)) if stands_for is None else relative(stands_for)
    own = own[known]
    mean_before = float(own @ sigmoid(alpha * before[known].astype(np.float64) + old))
    return Calibration(alpha=alpha, beta=offset_for(alpha * after[known].astype(np.float64), mean_before, own))


def window_for(calibration: Calibration, recent: Ring) -> int:
    """The number of newest rows that agree on the present bias.

    The window doubles as long as its older half agrees with its newer one: where the base rate moves it stays short and
    noisier, where nothing moves it is as long as possible (after Lepskii 1991, adaptive bandwidth choice).
    """
    p = sigmoid(calibration.alpha * recent.logits.astype(np.float64) + calibration.beta)
    labels, counts = recent.labels, relative(recent.stands_for)
    excess, variance, mass = (
        np.concatenate([[0.0], np.cumsum(values[::-1])])
        for values in (counts * (labels - p), level_variance(p, labels, counts), counts)
    )
    size = min(LEAST_ROWS, len(p))
    while size < len(p):
        longer = min(2 * size, len(p))
        newer, older = mass[size], mass[longer] - mass[size]
        difference = excess[size] / newer - (excess[longer] - excess[size]) / older
        error = np.sqrt(variance[size] / newer**2 + (variance[longer] - variance[size]) / older**2)
        if abs(difference) > TOLERANCE_DEVIATIONS * error:
            break
        size = longer
    return size
