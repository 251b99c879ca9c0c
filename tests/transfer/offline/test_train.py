import numpy as np
import pytest
from small_log import SmallLog

from pipeline.errors import DataError, InvalidInput
from pipeline.metrics import auc
from transfer.bundles.publish import load, save
from transfer.offline.train import TrainSettings, train

LOG = SmallLog(16_000)


def test_a_trained_model_ranks_and_is_calibrated():
    told = []
    model = train(LOG, "deepfm", width=8, stop=0.8, progress=lambda done, total: told.append((done, total)))
    test = LOG.window(0.8, 1)
    scores = model.scores(test.rows)
    assert auc(test.labels, scores) > 0.85 * auc(test.labels, test.truth)
    assert abs(scores.sum() / test.truth.sum() - 1) < 0.1
    assert told[-1] == (12_800, 12_800)
    assert model.metrics["rows"] == 1280
    assert abs(model.metrics["bias"]) < 0.2
    assert model.rows_trained == 12_800


def test_a_bundle_says_which_fraction_of_its_ids_was_unknown_at_training(tmp_path):
    model = train(SmallLog(1000), "lr", width=1, settings=TrainSettings(batch=256))
    assert model.unknown_ids["item"] == model.unknown_ids["tags"] == 0  # there are 60 and 20
    assert 0 < model.unknown_ids["user"] < 0.1  # there are 150
    bundle = save(model, tmp_path / "bundle", "m")
    assert bundle.manifest.unknown_ids == load(bundle).unknown_ids == model.unknown_ids


def test_training_repeats_itself():
    a, b = (train(LOG, "fm", width=4, stop=0.2, seed=3) for _ in range(2))
    np.testing.assert_array_equal(a.tables.rows, b.tables.rows)


def test_passes_stop_before_overfitting():
    settings = TrainSettings(passes=12, batch=64)
    model = train(SmallLog(3000), "dnn", width=8, settings=settings)
    assert model.rows_trained < 12 * 2400


def test_windows_without_rows_or_with_one_class_are_named():
    with pytest.raises(DataError, match="no rows"):
        train(LOG, "fm", start=0.5, stop=0.5)
    with pytest.raises(DataError, match="labels"):
        train(SmallLog(1000, labels=1), "fm")
    with pytest.raises(InvalidInput, match="zoo"):
        train(LOG, "transformer")
    with pytest.raises(InvalidInput):
        TrainSettings(tail=1.0)
