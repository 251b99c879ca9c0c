"""Models of a sampled or weighted log have the level of the traffic."""

import numpy as np
import pytest
from small_log import SmallLog

from pipeline.metrics import auc
from transfer.offline.distill import OURS, PUBLISHED, transfer_offline
from transfer.offline.sampling import Sample, strategic_batches
from transfer.offline.train import train
from transfer.offline.window import Window

ROWS = 120_000
FULL = SmallLog(ROWS, level=-2.2)
TEST = FULL.window(0.9, 1.0)
LOGS = {
    "keep": SmallLog(ROWS, level=-2.2, keep=0.1),
    "column": SmallLog(ROWS, level=-2.2, keep=0.1, said="column"),
    "weight": SmallLog(ROWS // 2, level=-2.2, weight=5),
}


def bias(model, rows=TEST):
    return model.scores(rows.rows).sum() / rows.truth.sum() - 1


@pytest.fixture(scope="module")
def models():
    return {name: train(log, "fm", width=4, stop=0.8) for name, log in LOGS.items()}


@pytest.mark.parametrize("name", LOGS)
def test_a_model_of_a_sampled_or_weighted_log_is_unbiased_on_the_traffic(models, name):
    test = TEST if name != "weight" else LOGS["weight"].window(0.8, 1.0)
    assert abs(bias(models[name], test)) < 0.03
    assert abs(models[name].metrics["bias"]) < 0.1
    assert auc(test.labels, models[name].scores(test.rows)) > 0.7


def test_a_student_of_a_thinned_log_is_unbiased_on_the_traffic(models):
    for name in ("keep", "column"):
        window = Window(models["keep"], LOGS[name], 0.3, 0.9)
        assert window.rate == pytest.approx(FULL.positives / FULL.rows, rel=0.05)
        student, report = transfer_offline(window, "fm", width=4, settings=OURS)
        assert abs(bias(student)) < 0.05
        assert report.log_k == pytest.approx(np.log(1 / window.rate - 1))


def test_an_undeclared_thinned_log_gives_another_level(models):
    thin = SmallLog(ROWS, level=-2.2, keep=0.1, said="")
    student, _ = transfer_offline(Window(models["keep"], thin, 0.8, 0.9), "fm", width=4, settings=OURS)
    assert bias(student) > 1


def test_balanced_draws_count_what_a_row_stands_for():
    labels = np.array([0, 0, 1, 1] * 500, np.float32)
    probability = np.where(np.arange(2000) % 2, 1.0, 0.25).astype(np.float32)
    rows = SmallLog(2000).window(0.0, 1.0).rows
    chunk = Sample(rows, labels, np.arange(2000), probability=probability)
    drawn = next(strategic_batches([chunk], batch=2000, rng=np.random.default_rng(0)))
    assert drawn.labels.mean() == 0.5
    assert (drawn.probability < 1).mean() == pytest.approx(0.8, abs=0.03)
    assert PUBLISHED.balanced
