"""Outcome of the arms: labels per request, with confidence limits that account for returning users.

Keys, not requests, are split between the arms at random, and the same keys come back for weeks: the preferences of one
arm's keys do not average out over time. So sums are kept by group of keys, and the spread between groups is the error of a
difference (linearised ratios over clusters, Cochran 1977, chapter 6). Groups are the same for both arms and all times.

Such a difference at repeated looks is a process with independent increments in its information 1 / se^2
(Jennison and Turnbull 1999, chapter 3), so Robbins' normal mixture (1970, "Statistical methods related to the law of the
iterated logarithm") gives limits that hold at all looks together; its coverage with keys that come back is simulated in
`tests/serving/rollout/test_rollout_coverage.py`.

This file knows sums only: `analysis` adds to them by stay, `long_run` for as long as a finished hand-over lasts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.arrays import F64, I64
from pipeline.hashing import NO_BUCKET
from pipeline.traffic.log import Labelled
from pipeline.traffic.record import PredictionRecord
from serving.rollout.sums.evidence import Limits
from serving.rollout.sums.scale import UNITS, fixed

__all__ = ["ARMS", "GROUPS", "BeforeSums", "Counted", "OutcomeSums", "count_outcome", "mixture_radius"]


ARMS = ("stable", "candidate")
GROUPS = 128
"""Groups of keys, by their hash."""
MIN_GROUPS = 30
"""Fewest groups with requests of an arm before its limits are finite: their spread is an estimate too."""
MIXTURE_FRACTION = 0.1
"""Spread of the mixture, relative to the rate. Limits are tightest at a standard error of a third of it; from a tenth to
half of it they are at most a tenth wider than they could be."""
_REQUESTS, _OUTCOME, _EXPOSED, _ANSWERED = range(4)


class OutcomeSums:
    """Sums of shown requests and of labels on their exposed rows, by group of keys and arm. Labels can be taken back.

    Args:
        sums: int64 `[GROUPS, 2, 4]` by group, arm (stable, candidate) and shown requests, outcome (in units of `scale.UNITS`),
            exposed rows or answered requests, shown or not; zeros when absent. Those that lack the last column were stored
            before it was counted: there, what was shown stands for what was answered.
        before: int64 `[GROUPS, 2, 2]`, shown requests and outcome of the same keys before the candidate answered anybody (`BeforeSums`);
            None: not known.
    """

    def __init__(self, sums: I64 | None = None, before: I64 | None = None) -> None:
        self.before = before
        if sums is not None and sums.shape[2] == _ANSWERED:
            sums = np.concatenate([sums, sums[:, :, _REQUESTS, None]], axis=2)
        self.sums: I64 = np.zeros((GROUPS, 2, 4), np.int64) if sums is None else sums

    @classmethod
    def of(cls, numbers: Sequence[Sequence[Sequence[float]]]) -> OutcomeSums:
        """Sums of requests and outcomes as numbers `[GROUPS, 2, 2]`, which version 0.1 stored."""
        made, stored = cls(), np.asarray(numbers, np.float64)
        made.sums[:, :, _REQUESTS] = made.sums[:, :, _ANSWERED] = fixed(stored[:, :, _REQUESTS], 1)
        made.sums[:, :, _OUTCOME] = fixed(stored[:, :, _OUTCOME], UNITS)
        return made

    def add(self, routing_hash: int, arm: str, requests: int, outcome: float) -> None:
        """Count a request of one key, or a revision of its labels.

        Args:
            routing_hash: of the key; requests: 1 for a new one, 0 for a revision; outcome: labels, or their change.
        """
        self.add_fixed(routing_hash, arm, requests, int(fixed(outcome, UNITS)), 0)

    def add_fixed(self, routing_hash: int, arm: str, requests: int, outcome: int, rows: int) -> None:
        """As `add`, with the outcome in units of `scale.UNITS`, and the exposed rows that were not counted before."""
        self.sums[routing_hash % GROUPS, ARMS.index(arm)] += np.array([requests, outcome, rows, requests])

    def add_unshown(self, routing_hash: int, arm: str) -> None:
        """Count a request that was answered and never shown."""
        self.sums[routing_hash % GROUPS, ARMS.index(arm), _ANSWERED] += 1

    def add_counts(self, shown: I64, answered: I64) -> None:
        """Count shown and answered requests by group of keys and arm, int64 `[GROUPS, 2]` each."""
        self.sums[:, :, _REQUESTS] += shown
        self.sums[:, :, _ANSWERED] += answered

    def shown(self) -> I64:
        """Shown requests by group of keys and arm, int64 `[GROUPS, 2]`."""
        return self.sums[:, :, _REQUESTS]

    def answered(self) -> I64:
        """Answered requests, as `shown`."""
        return self.sums[:, :, _ANSWERED]

    def requests(self, arm: str) -> int:
        """Shown requests with a routing key that an arm answered."""
        return int(self.sums[:, ARMS.index(arm), _REQUESTS].sum())

    def outcome(self, arm: str) -> float:
        """Labels of the exposed rows of those requests."""
        return float(self.sums[:, ARMS.index(arm), _OUTCOME].sum()) / UNITS

    def limits(self, arm: str, error: float) -> Limits:
        """Outcome per request of an arm, each limit one-sided at `error` over all looks; `blocks` counts groups of keys."""
        rate, apart, groups = _linearised(self.sums, ARMS.index(arm))
        return _around(_Difference(rate, rate, apart, groups), error)

    def difference(self, error: float) -> Limits:
        """The candidate's outcome per request minus stable's, as `limits`. Keys are split at random: it is an effect.

        What the same keys did before any of them saw the candidate explains a part of it, which is taken off (CUPED: Deng, Xu,
        Kohavi and Walker 2013, "Improving the sensitivity of online controlled experiments by utilizing pre-experiment data"):
        the difference of then, times the slope of the groups' differences of now on those of then.
        """
        now = _difference(self.sums)
        if now.groups < MIN_GROUPS or self.before is None:
            return _around(now, error)
        then = _difference(self.before)
        squares = float(then.apart @ then.apart)
        if then.groups < MIN_GROUPS or not squares > 0:
            return _around(now, error)
        slope = float(then.apart @ now.apart) / squares
        left = now.apart - slope * then.apart
        return _around(_Difference(now.value - slope * then.value, now.rate, left, now.groups), error, estimated=2)

    def plain_difference(self, error: float) -> Limits:
        """As `difference`, without what is known from before."""
        return _around(_difference(self.sums), error)


class Counted(NamedTuple):
    """What one entry adds to the sums of its key: shown requests, and outcome in units of `scale.UNITS`."""

    requests: int
    outcome: int


class BeforeSums:
    """Shown requests and outcome of keys before the candidate answered anybody, by the arm that they belong to at each weight.

    A key's arm at every weight follows from its bucket. So while all keys are on stable, the sums of both groups of keys that a later
    step will compare are known already, and tell how they differ by chance (`OutcomeSums.difference`).

    Args:
        weights: percent, above 0.

    Attributes:
        sums: int64 `[weights, GROUPS, 2, 2]` by weight, group of keys, arm at that weight, and requests or outcome, as in
            `OutcomeSums`.
    """

    def __init__(self, weights: Sequence[float] = ()) -> None:
        self.weights = tuple(sorted(weights))
        self._ends = 100.0 * np.array(self.weights)
        self._places = np.arange(len(self.weights))
        self.sums: I64 = np.zeros((len(self.weights), GROUPS, 2, 2), np.int64)

    def add(self, routing_hash: int, bucket: int, counted: Counted) -> None:
        """Count a request, or a change of its labels; without a bucket there is nothing to tell the arms by."""
        if bucket != NO_BUCKET:
            arms = (bucket < self._ends).astype(np.intp)
            self.sums[self._places, routing_hash % GROUPS, arms] += counted

    def at(self, weight: float) -> I64 | None:
        """Sums at a weight, int64 `[GROUPS, 2, 2]`, which go on with those here; None where it is none of the steps'."""
        return self.sums[self.weights.index(weight)] if weight in self.weights else None

    def restore(self, weights: Sequence[float], sums: I64) -> None:
        """Go on from sums of the same weights; others are left out."""
        if tuple(weights) == self.weights and sums.shape == self.sums.shape:
            self.sums[:] = sums


def count_outcome(sums: OutcomeSums, record: PredictionRecord, entry: Labelled) -> Counted | None:
    """Count one entry of the labelled log, and return what was added; None where nothing was shown, or the request has no key: it is
    not split at random and is left out."""
    if not record.routing_hash or record.arm not in ARMS or record.overridden:
        return None
    if not len(entry.indices):
        sums.add_unshown(record.routing_hash, record.arm)
        return None
    fresh = np.isnan(entry.previous)
    change = int(fixed(entry.labels, UNITS).sum()) - int(fixed(entry.previous[~fresh], UNITS).sum())
    counted = Counted(int(entry.revision == 0), change)
    sums.add_fixed(record.routing_hash, record.arm, *counted, int(fresh.sum()))
    return counted


def mixture_radius(information: float, scale: float, error: float) -> float:
    """Half the width of limits of a normal estimate with information 1 / se^2, each one-sided at `error` at all looks.

    Robbins' mixture over effects with standard deviation `scale`.

    >>> round(mixture_radius(1 / 0.03**2, 0.1, 0.025) / 0.03, 2)
    3.04
    """
    mixed = information * scale * scale
    return math.sqrt((1.0 + 1.0 / mixed) * math.log((1.0 + mixed) / (2.0 * error) ** 2) / information)


class _Difference(NamedTuple):
    """A value with each group's part of its error `[GROUPS]`, the rate that it is a part of, and the groups with requests."""

    value: float
    rate: float
    apart: F64
    groups: int


def _difference(sums: I64) -> _Difference:
    (stable, s_apart, s_groups), (candidate, c_apart, c_groups) = (_linearised(sums, arm) for arm in (0, 1))
    return _Difference(candidate - stable, 0.5 * (stable + candidate), c_apart - s_apart, min(s_groups, c_groups))


def _linearised(sums: I64, arm: int) -> tuple[float, F64, int]:
    """(rate, each group's part of the error of the rate `[GROUPS]`, groups with requests)."""
    requests, outcome = sums[:, arm, _REQUESTS].astype(np.float64), sums[:, arm, _OUTCOME] / UNITS
    total = float(requests.sum())
    if total <= 0:
        return math.nan, np.full(GROUPS, math.nan), 0
    rate = float(outcome.sum()) / total
    return rate, (outcome - rate * requests) / total, int(np.count_nonzero(requests))


def _around(found: _Difference, error: float, estimated: int = 1) -> Limits:
    """`estimated`: numbers that were estimated of the groups, which their spread is too small by."""
    value, rate, apart, groups = found
    variance = GROUPS / (GROUPS - estimated) * float(apart @ apart)
    if groups < MIN_GROUPS or not rate > 0 or not variance > 0:
        return Limits(value, -math.inf, math.inf, groups)
    wide = mixture_radius(1.0 / variance, MIXTURE_FRACTION * rate, error)
    return Limits(value, value - wide, value + wide, groups)
