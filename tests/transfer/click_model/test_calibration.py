import numpy as np
import pytest

from pipeline.errors import DataError
from transfer.click_model.calibration import fit_calibration


def sample(alpha, beta, rows=200_000, seed=1):
    rng = np.random.default_rng(seed)
    s = rng.normal(-1, 1.5, rows)
    return s, (rng.random(rows) < 1 / (1 + np.exp(-(alpha * s + beta)))).astype(np.float32)


def test_known_slope_and_level_are_found():
    fitted = fit_calibration(*sample(0.7, 0.4))
    assert fitted.alpha == pytest.approx(0.7, abs=0.02)
    assert fitted.beta == pytest.approx(0.4, abs=0.03)


def test_few_positives_move_the_level_alone_and_remove_the_bias():
    s, y = sample(1.0, -0.8, rows=10_000)
    fitted = fit_calibration(s, y)
    assert fitted.alpha == 1.0
    p = 1 / (1 + np.exp(-(s + fitted.beta)))
    assert p.sum() == pytest.approx(y.sum(), rel=1e-9)


def test_a_far_start_converges():
    s, y = sample(1.0, 0.0, rows=20_000)
    near, far = fit_calibration(s, y), fit_calibration(s + 40.0, y)
    assert far.alpha == pytest.approx(near.alpha, rel=1e-6)
    assert far.beta + 40 * far.alpha == pytest.approx(near.beta, abs=1e-6)


def test_a_model_that_ranks_backwards_keeps_its_order():
    s, y = sample(-1.0, 0.0)
    assert fit_calibration(s, y).alpha == 1.0


def test_one_class_or_nan_is_refused():
    with pytest.raises(DataError, match="both classes"):
        fit_calibration(np.zeros(5), np.ones(5))
    with pytest.raises(DataError, match="NaN"):
        fit_calibration(np.array([0.0, np.nan]), np.array([0, 1]))
