"""AUC, LogLoss and bias against definitions written out, and the histogram against its stated bound."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipeline.metrics
from pipeline.metrics import BinnedAuc, Sums, auc, bias, logloss, pcoc, row_logloss


def pairwise_auc(labels: np.ndarray, scores: np.ndarray) -> float:
    positives, negatives = scores[labels == 1], scores[labels == 0]
    if not len(positives) or not len(negatives):
        return float("nan")
    difference = positives[:, None] - negatives[None, :]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 6)), max_size=60))
def test_auc_is_the_share_of_ordered_pairs_with_ties_as_half(rows: list[tuple[int, int]]) -> None:
    labels = np.array([r[0] for r in rows], np.float32)
    scores = np.array([r[1] / 8 for r in rows], np.float32)
    np.testing.assert_allclose(auc(labels, scores), pairwise_auc(labels, scores), rtol=1e-12)


def test_one_class_alone_has_no_auc() -> None:
    assert np.isnan(auc(np.ones(3), np.arange(3)))
    assert np.isnan(auc(np.zeros(0), np.zeros(0)))
    assert np.isnan(BinnedAuc().value())
    assert np.isnan(BinnedAuc().bound())


def test_a_fractional_label_is_part_positive_part_negative() -> None:
    quarter = auc(np.array([0.25, 0.0]), np.array([0.5, 0.2]))
    four_rows = auc(np.array([1, 0, 0, 0, 0, 0, 0, 0]), np.array([0.5] * 4 + [0.2] * 4))
    assert quarter == pytest.approx(four_rows)


def test_logloss_and_bias_by_hand() -> None:
    labels, scores = np.array([1, 0, 1, 0]), np.array([0.9, 0.2, 0.6, 0.5])
    by_hand = -np.mean([np.log(0.9), np.log(0.8), np.log(0.6), np.log(0.5)])
    assert logloss(labels, scores) == pytest.approx(by_hand)
    assert pcoc(labels, scores) == pytest.approx(1.1)
    assert bias(labels, scores) == pytest.approx(0.1)
    assert np.isnan(bias(np.zeros(2), np.ones(2)))
    assert np.isfinite(row_logloss(np.array([1, 0]), np.array([0.0, 1.0]))).all()


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 4.0))
def test_the_histogram_stays_within_its_bound(seed: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    p = 1 / (1 + np.exp(-rng.normal(-1.4, spread, 400)))
    y = rng.random(400) < p
    binned = BinnedAuc()
    binned.update(y[:150], p[:150])
    more = BinnedAuc()
    more.update(y[150:], p[150:])
    binned.merge(more)
    assert abs(binned.value() - auc(y, p)) <= binned.bound() + 1e-12


def test_the_histogram_is_close_on_a_long_stream() -> None:
    rng = np.random.default_rng(1)
    p = (1 / (1 + np.exp(-rng.normal(-1.6, 1.0, 300_000)))).astype(np.float32)
    y = rng.random(300_000) < p
    binned = BinnedAuc()
    binned.update(y, p)
    assert abs(binned.value() - auc(y, p)) < 1e-5
    assert binned.bound() < 2e-3


def test_histograms_of_other_bins_do_not_merge() -> None:
    with pytest.raises(ValueError, match="different bins"):
        BinnedAuc().merge(BinnedAuc(bins=16))


def test_sums_merge_and_take_rows_back() -> None:
    rng = np.random.default_rng(2)
    p, y = rng.uniform(0.01, 0.9, 500), rng.integers(0, 2, 500)
    whole, left, right = Sums(), Sums(), Sums()
    whole.update(y, p)
    left.update(y[:200], p[:200])
    right.update(y[200:], p[200:])
    left.merge(right)
    assert (left.rows, left.clicks) == (500, y.sum())
    for got in (left, whole):
        assert got.logloss == pytest.approx(logloss(y, p))
        assert got.bias == pytest.approx(bias(y, p))
        assert got.auc == pytest.approx(auc(y, p), abs=1e-3)
    whole.revert(y[:10], p[:10])
    assert whole.rows == 490
    assert whole.bias == pytest.approx(bias(y[10:], p[10:]))


def test_docstrings_print_what_they_say() -> None:
    assert doctest.testmod(pipeline.metrics).failed == 0
