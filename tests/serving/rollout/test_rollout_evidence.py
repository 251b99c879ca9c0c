"""Confidence sequences: shape, verdicts, and the error rate under continuous looking."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest

import serving.rollout.sums.evidence as evidence
from serving.rollout.sums.evidence import Verdict, attempt_error, fraction_above, limits, radius, tuned_rho


def ever_wrong(streams: int, length: int, error: float, seed: int, at_least: int = 50) -> float:
    """Share of null streams (skewed, mean 0) on which the lower limit exceeds 0 at any look from `at_least` on."""
    rng = np.random.default_rng(seed)
    rho2 = tuned_rho(error) ** 2
    t = np.arange(1, length + 1)
    wide = np.sqrt(2 * (t * rho2 + 1) / (t * t * rho2) * np.log1p(np.sqrt(t * rho2 + 1) / (2 * error)))
    wrong = 0
    for start in range(0, streams, 500):
        x = rng.gamma(4.0, 1.0, (min(500, streams - start), length)) - 4.0
        mean = np.cumsum(x, 1) / t
        spread = np.sqrt(np.maximum(np.cumsum(x * x, 1) - t * mean**2, 0) / np.maximum(t - 1, 1))
        wrong += int(((mean - wide * spread)[:, at_least - 1 :] > 0).any(1).sum())
    return wrong / streams


def test_the_radius_is_the_papers() -> None:
    t, error = 300, 0.0125
    rho2 = tuned_rho(error) ** 2
    by_hand = math.sqrt(2 * (t * rho2 + 1) / (t**2 * rho2) * math.log(1 + math.sqrt(t * rho2 + 1) / (2 * error)))
    assert radius(t, error) == pytest.approx(by_hand)
    assert radius(100, error) > radius(200, error) > radius(1000, error)


def test_rho_is_near_the_best_for_the_size_it_is_tuned_for() -> None:
    error, t = 0.025, evidence.TUNED_BLOCKS

    def at(rho: float) -> float:
        return math.sqrt(2 * (t * rho**2 + 1) / (t**2 * rho**2) * math.log(1 + math.sqrt(t * rho**2 + 1) / (2 * error)))

    best = min(at(rho) for rho in np.geomspace(0.01, 10, 2000))
    assert radius(t, error) < 1.01 * best


def test_all_attempts_together_spend_alpha() -> None:
    assert attempt_error(0.95, 1) == pytest.approx(0.025)
    assert sum(attempt_error(0.95, j) for j in range(1, 20_000)) == pytest.approx(0.05, rel=1e-3)


def test_verdicts() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1, 400)
    assert evidence.test_below(noise - 1, 0.025, 50).verdict is Verdict.HOLDS
    assert evidence.test_below(noise + 1, 0.025, 50).verdict is Verdict.BREACHED
    still_open = evidence.test_below(noise - noise.mean() - 0.1, 0.025, 50)
    assert still_open.verdict is Verdict.OPEN
    assert evidence.test_below(noise + 1, 0.025, 50).missing() is None
    assert evidence.test_below(noise - 1, 0.025, 50).missing() == 0
    assert evidence.test_below(noise[:49] - 9, 0.025, 50).verdict is Verdict.OPEN, "too few blocks prove nothing"
    assert evidence.test_below(noise[:40] - 9, 0.025, 50).missing() == 10
    assert evidence.test_below(np.full(400, -1.0), 0.025, 50).verdict is Verdict.HOLDS, (
        "two equal arms differ by nothing"
    )
    assert evidence.test_below(np.empty(0), 0.025, 50).verdict is Verdict.OPEN


def test_the_missing_blocks_are_those_that_it_takes() -> None:
    x = np.random.default_rng(1).normal(0, 1, 200)
    x = (x - x.mean()) / x.std(ddof=1) - 0.1
    test = evidence.test_below(x, 0.025, 50)
    more = test.missing()
    assert more is not None
    assert more > 0
    assert radius(200 + more, 0.025) < 0.1 <= radius(199 + more, 0.025)


def test_limits_cover_their_mean() -> None:
    found = limits(np.array([1.0, 2.0, 3.0]), 0.05)
    assert found.low < found.mean == 2.0 < found.high
    assert limits(np.array([1.0]), 0.05).high == math.inf


def test_shares() -> None:
    assert fraction_above(0, 0, 0.01, 0.025) is Verdict.HOLDS
    assert fraction_above(1, 100, 0.01, 0.025) is Verdict.HOLDS
    assert fraction_above(3, 100, 0.01, 0.025) is Verdict.OPEN
    assert fraction_above(50, 1000, 0.01, 0.025) is Verdict.BREACHED


@pytest.mark.parametrize("error", [0.025, 0.0125])
def test_looking_at_every_block_is_wrong_at_most_as_often_as_said(error: float) -> None:
    assert ever_wrong(1000, 1000, error, seed=4) <= error + 3 * math.sqrt(error / 1000)


@pytest.mark.long
@pytest.mark.parametrize("error", [0.05, 0.0125])
def test_coverage_on_10_000_null_streams(error: float) -> None:
    assert ever_wrong(10_000, 2000, error, seed=5) <= error + 2 * math.sqrt(error / 10_000)


def test_docstrings_print_what_they_say() -> None:
    assert doctest.testmod(evidence).failed == 0
