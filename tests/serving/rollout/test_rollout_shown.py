"""Requests by arm: the split of the keys among those that were shown, and the shown fraction of what each arm answered."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.arrays import I64
from pipeline.features import Features
from pipeline.traffic.log import Labelled
from pipeline.traffic.record import PredictionRecord, pack
from serving.rollout.analysis import RolloutAnalysis
from serving.rollout.sums.outcome import GROUPS, OutcomeSums
from serving.rollout.sums.sample_ratio import SampleRatio
from serving.rollout.sums.shown_fraction import ShownFraction

LOOKS = 200
SEEDS = 20


def look(
    seed: int, share: float, shown: tuple[float, float], busy: float = 0.0, looks: int = LOOKS
) -> tuple[bool, bool, OutcomeSums]:
    """Whether the sample ratio and the shown fraction ever alarm, looked at after every 50 requests.

    Args:
        share: of the keys that is the candidate's. shown: fraction of the answers of each arm that is reported. busy: fraction
            of all requests that one key makes.
    """
    rng = np.random.default_rng(seed)
    sums, split, apart = OutcomeSums(), False, False
    group, arm = int(rng.integers(GROUPS)), int(rng.random() < share)
    for _ in range(looks):
        answered: I64 = np.zeros((GROUPS, 2), np.int64)
        of_busy = rng.binomial(50, busy)
        np.add.at(answered, (rng.integers(0, GROUPS, 50 - of_busy), (rng.random(50 - of_busy) < share).astype(int)), 1)
        answered[group, arm] += of_busy
        sums.add_counts(rng.binomial(answered, shown), answered)
        split |= SampleRatio.of(sums, share).mismatch
        apart |= ShownFraction.of(sums).mismatch
    return split, apart, sums


@pytest.mark.parametrize("busy", [0.0, 0.3], ids=["keys alike", "a key of 30 %"])
@pytest.mark.parametrize("shown", [1.0, 0.6])
def test_arms_that_are_treated_alike_raise_no_alarm(busy: float, shown: float) -> None:
    for seed in range(SEEDS):
        split, apart, _ = look(seed, 0.25, (shown, shown), busy)
        assert (split, apart) == (False, False), seed


@pytest.mark.parametrize(("lossy", "said"), [(1, "the candidate"), (0, "stable")])
def test_reports_that_one_arm_loses_are_seen_and_all_counts_named(lossy: int, said: str) -> None:
    shown = (0.9, 0.72) if lossy else (0.72, 0.9)
    for seed in range(SEEDS):
        _, apart, sums = look(seed, 0.5, shown, looks=60)
        assert apart, seed
        told = str(ShownFraction.of(sums))
        assert f"{sums.shown()[:, lossy].sum():,} of {sums.answered()[:, lossy].sum():,} answers of {said}" in told


def test_keys_that_are_not_split_as_the_weight_says_are_seen() -> None:
    for seed in range(SEEDS):
        _, apart, sums = look(seed, 0.4, (1.0, 1.0))
        assert SampleRatio.of(sums, 0.5).mismatch
        assert not apart


def test_few_answers_show_nothing() -> None:
    sums = OutcomeSums()
    for key in range(99):
        sums.add(key, "stable", 1, 0.0)
        sums.add_unshown(key, "candidate")
    assert ShownFraction.of(sums) == ShownFraction((99, 99), (99, 0))


def test_sums_that_were_stored_before_answers_were_counted_take_what_was_shown_for_them() -> None:
    old = np.ones((GROUPS, 2, 3), np.int64)
    assert (OutcomeSums(old).answered() == old[:, :, 0]).all()


def test_what_was_answered_and_never_shown_counts_once_and_is_no_row() -> None:
    analysis = RolloutAnalysis("ranker", "new", 1000)
    analysis.begin_phase(1, 50, 0)
    nothing = np.empty(0, np.float32)
    record = PredictionRecord(
        "p1", 10, "ranker", "candidate", "new", 1, Features(3), np.full(3, 0.5, np.float32), routing_hash=7
    )
    unshown = Labelled(
        1, "p1", "ranker", 0, 10, nothing.astype(np.int32), nothing, nothing.astype(np.int32), nothing, pack(record)
    )
    shown_late = replace(
        unshown,
        seq=2,
        revision=1,
        indices=np.array([1], np.int32),
        labels=np.ones(1, np.float32),
        positions=np.array([-1], np.int32),
        previous=np.full(1, np.nan, np.float32),
    )
    analysis.add([unshown, shown_late])
    sums = analysis.stays[0].outcome
    assert (sums.answered().sum(), sums.requests("candidate"), sums.outcome("candidate")) == (1, 0, 1.0)
    assert analysis.exposed == 1
