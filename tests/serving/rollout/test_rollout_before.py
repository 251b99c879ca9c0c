"""Outcome of keys from before the candidate answered anybody: what it takes off the error of a difference, and that the limits hold."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.arrays import F64, I64
from pipeline.features import Features
from pipeline.hashing import HELD_BUCKET, NO_BUCKET
from pipeline.traffic.log import Labelled
from pipeline.traffic.record import PredictionRecord, pack
from serving.rollout.analysis import RolloutAnalysis
from serving.rollout.routing import arm_of_bucket
from serving.rollout.sums.outcome import ARMS, GROUPS, OutcomeSums
from serving.rollout.sums.scale import UNITS

ERROR = 0.025
USERS = 5_000


class Keys:
    """Keys of unlike activity and taste, split between the arms at random."""

    def __init__(self, seed: int, share: float) -> None:
        self.rng = np.random.default_rng([seed, 15])
        self.cell = 2 * self.rng.integers(0, GROUPS, USERS) + (self.rng.random(USERS) < share)
        self.activity = self.rng.lognormal(-0.5, 1.0, USERS)
        self.taste = 0.5 * self.rng.exponential(1.0, USERS)

    def sums(self, days: float) -> I64:
        """Requests and outcome by group and arm, int64 `[GROUPS, 2, 2]`, of so many requests a key on average."""
        requests = self.rng.poisson(self.activity * days)
        outcome = self.rng.poisson(requests * self.taste)
        counts = [np.bincount(self.cell, each, 2 * GROUPS).reshape(GROUPS, 2) for each in (requests, outcome)]
        return np.stack([counts[0], counts[1] * UNITS], axis=2).astype(np.int64)


def looks(seed: int, share: float, days: float, number: int) -> tuple[F64, F64]:
    """(means, half widths) `[number, 2]` of the difference, with what is known from before and without; no arm is better."""
    keys = Keys(seed, share)
    sums = OutcomeSums(before=keys.sums(days))
    found = []
    for _ in range(number):
        sums.sums[:, :, :2] += keys.sums(1.0)
        found.append(
            [(each.mean, each.high - each.mean) for each in (sums.difference(ERROR), sums.plain_difference(ERROR))]
        )
    numbers = np.array(found)
    return numbers[:, :, 0], numbers[:, :, 1]


def missed(runs: int, number: int) -> tuple[F64, float]:
    """(fractions of runs whose limits miss an effect of none at any look, `[2]`; mean ratio of the widths at the last one)."""
    wrong, narrower = np.zeros(2), []
    for seed in range(runs):
        means, wide = looks(seed, (0.5, 0.05)[seed % 2], 10, number)
        wrong += (abs(means) > wide).any(axis=0)
        narrower.append(wide[-1, 0] / wide[-1, 1])
    return wrong / runs, float(np.mean(narrower))


def test_what_keys_did_before_makes_the_limits_a_third_narrower_and_no_less_true() -> None:
    wrong, ratio = missed(60, 8)
    assert ratio < 0.7
    assert (wrong <= 2 * ERROR + 0.05).all()


@pytest.mark.long
def test_the_limits_hold_at_all_looks_of_1000_runs() -> None:
    wrong, ratio = missed(1000, 20)
    print(f"missed with and without: {wrong}, width {ratio:.2f}")
    assert ratio < 0.7
    assert (wrong <= 2 * ERROR).all()


def test_an_effect_is_seen_beside_a_difference_that_was_there_before() -> None:
    keys = Keys(3, 0.5)
    sums = OutcomeSums(before=keys.sums(30))
    more = keys.sums(30)
    more[:, 1, 1] += more[:, 1, 1] // 10
    sums.sums[:, :, :2] += more
    assert sums.difference(ERROR).low > 0
    assert sums.difference(ERROR).low > sums.plain_difference(ERROR).low


def labelled(seq: int, time_ms: int, bucket: int, arm: str) -> Labelled:
    record = PredictionRecord(
        f"p{seq}", time_ms, "ranker", arm, "new", 1, Features(1), np.full(1, 0.5, np.float32), 77, bucket=bucket
    )
    ones, unknown = np.ones(1, np.float32), np.full(1, np.nan, np.float32)
    first = np.zeros(1, np.int32)
    return Labelled(seq, f"p{seq}", "ranker", 0, time_ms, first, ones, first, unknown, pack(record))


def test_only_what_came_before_the_candidate_answered_counts_by_the_arm_of_each_step_and_restarts_keep_it() -> None:
    analysis = RolloutAnalysis("ranker", "new", 1000, weights=[50, 5])
    analysis.begin_phase(0, 0, 0)
    buckets = [100, 3000, 9000, HELD_BUCKET, NO_BUCKET]
    analysis.add([labelled(1 + at, 10, bucket, "stable") for at, bucket in enumerate(buckets)])
    analysis.begin_phase(1, 5, 100)
    analysis.add([labelled(10, 200, 100, "candidate"), labelled(11, 20, 200, "stable")])
    again = RolloutAnalysis("ranker", "new", 1000, weights=[50, 5])
    assert again.restore(analysis.save())
    again.begin_phase(2, 50, 300)
    again.begin_phase(3, 10, 400)
    for weight, stay in ((5, again.stays[1]), (50, again.stays[2])):
        arms = [ARMS.index(arm_of_bucket(bucket, weight)) for bucket in (*buckets[:4], 200)]
        assert stay.outcome.before is not None
        assert stay.outcome.before[77, :, 0].tolist() == np.bincount(arms, minlength=2).tolist()
        assert stay.outcome.before[77, :, 1].tolist() == [UNITS * n for n in stay.outcome.before[77, :, 0].tolist()]
    assert again.stays[0].outcome.before is None
    assert again.stays[3].outcome.before is None, "no step has this weight"
