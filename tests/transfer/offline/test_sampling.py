import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.features import Rows
from transfer.offline.sampling import Sample, log_k, strategic_batches


def chunk(first, labels):
    n = len(labels)
    ids = np.arange(first, first + n, dtype=np.int64).reshape(-1, 1)
    return Sample(Rows(ids, np.zeros((n, 0), np.float32)), np.array(labels, np.float32), ids[:, 0])


@given(rate=st.floats(0.001, 0.999), logit=st.floats(-4, 4))
def test_log_k_is_the_shift_of_balanced_draws(rate, logit):
    # Bayes: keep positives with weight .5 / rate and negatives with .5 / (1 - rate).
    p = 1 / (1 + np.exp(-logit))
    drawn = p * 0.5 / rate / (p * 0.5 / rate + (1 - p) * 0.5 / (1 - rate))
    assert np.log(drawn / (1 - drawn)) == pytest.approx(logit + log_k(rate), abs=1e-6)


def test_published_price_of_balanced_draws():
    # The design's figures: the bias of a constant model at a base rate of 25 % that matches the balanced draws, undone.
    assert log_k(0.25) == pytest.approx(np.log(3))
    for rate in (0.0, 1.0):
        with pytest.raises(DataError):
            log_k(rate)


def test_batches_are_balanced_in_time_order_and_keep_rows_together():
    labels = ([1] + [0] * 9) * 10
    chunks = [chunk(at, labels) for at in range(0, 500, 100)]
    batches = list(strategic_batches(chunks, batch=20, rng=np.random.default_rng(0)))
    assert len(batches) == 5
    for number, batch in enumerate(batches):
        assert batch.labels.sum() == 10
        ids = batch.rows.ids[:, 0]
        assert ids.min() >= 100 * number
        assert ids.max() < 100 * (number + 1)
        np.testing.assert_array_equal(batch.places, ids)
        np.testing.assert_array_equal(batch.labels, ids % 10 == 0)


def test_a_chunk_of_one_class_waits_for_the_next():
    chunks = [chunk(0, [0] * 10), chunk(10, [1, 0] * 5), chunk(20, [0] * 10)]
    batches = list(strategic_batches(chunks, batch=4, rng=np.random.default_rng(0)))
    assert [b.labels.sum() for b in batches] == [2, 2]
    assert max(b.rows.ids.max() for b in batches) < 20
