"""Confidence sequences: shape, verdicts, and the error rate under continuous looking."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
from streams import share_of_streams

import serving.rollout.sums.evidence as evidence
from pipeline.arrays import F64
from serving.rollout.sums.evidence import Verdict, attempt_error, fraction_above, radius, tuned_rho
from serving.rollout.sums.moments import Moments


def limits(values: F64, error: float) -> evidence.Limits:
    """Limits of the mean of block values `[t]`."""
    moments, weight, blocks = Moments(1), np.ones(1), len(values)
    moments.add(values[:, None])
    return evidence.mean_limits(moments.mean(weight), moments.variance(weight, batched=False), blocks, blocks, error)


def below(values: F64, error: float, at_least: int) -> evidence.Test:
    """Test that the mean of block values `[t]` is below 0."""
    return evidence.test_limits(limits(values, error), len(values), error, at_least)


def ever_wrong(streams: int, length: int, errors: F64, seed: int, at_least: int = 50) -> F64:
    """Share of null streams (skewed, mean 0) on which the lower limit at each error exceeds 0 at any look from `at_least`
    on."""
    t = np.arange(1, length + 1)

    def wide(error: float) -> F64:
        rho2 = tuned_rho(error) ** 2
        found: F64 = np.sqrt(2 * (t * rho2 + 1) / (t * t * rho2) * np.log1p(np.sqrt(t * rho2 + 1) / (2 * error)))
        return found

    radii = [wide(error) for error in errors]

    def count(rng: np.random.Generator, n: int) -> F64:
        x = rng.gamma(4.0, 1.0, (n, length)) - 4.0
        mean = np.cumsum(x, 1) / t
        spread = np.sqrt(np.maximum(np.cumsum(x * x, 1) - t * mean**2, 0) / np.maximum(t - 1, 1))
        return np.array([float((mean > radius * spread)[:, at_least - 1 :].any(1).sum()) for radius in radii])

    return share_of_streams(count, streams, seed)


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
    assert below(noise - 1, 0.025, 50).verdict is Verdict.HOLDS
    assert below(noise + 1, 0.025, 50).verdict is Verdict.BREACHED
    still_open = below(noise - noise.mean() - 0.1, 0.025, 50)
    assert still_open.verdict is Verdict.OPEN
    assert below(noise + 1, 0.025, 50).missing() is None
    assert below(noise - 1, 0.025, 50).missing() == 0
    assert below(noise[:49] - 9, 0.025, 50).verdict is Verdict.OPEN, "too few blocks prove nothing"
    assert below(noise[:40] - 9, 0.025, 50).missing() == 10
    assert below(np.full(400, -1.0), 0.025, 50).verdict is Verdict.HOLDS, "two equal arms differ by nothing"
    assert below(np.empty(0), 0.025, 50).verdict is Verdict.OPEN


def test_the_missing_blocks_are_those_that_it_takes() -> None:
    x = np.random.default_rng(1).normal(0, 1, 200)
    x = (x - x.mean()) / x.std(ddof=1) - 0.1
    test = below(x, 0.025, 50)
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


def test_looking_at_every_block_is_wrong_at_most_as_often_as_said() -> None:
    errors = np.array([0.025, 0.0125])
    assert np.all(ever_wrong(1000, 1000, errors, seed=4) <= errors + 3 * np.sqrt(errors / 1000))


@pytest.mark.long
def test_coverage_on_10_000_null_streams() -> None:
    errors = np.array([0.05, 0.0125])
    assert np.all(ever_wrong(10_000, 2000, errors, seed=5) <= errors + 2 * np.sqrt(errors / 10_000))


def test_docstrings_print_what_they_say() -> None:
    assert doctest.testmod(evidence).failed == 0
