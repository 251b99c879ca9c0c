"""A bundle whose level is wrong gets a calibration from a log, thinned or not."""

import numpy as np
import pytest
from small_log import SCHEMA, SmallLog

from pipeline.bundle.bundle import Bundle, Calibration
from pipeline.errors import BundleError, InvalidInput
from pipeline.metrics import bias
from pipeline.schema import FieldSpec, Schema
from transfer.bundles.publish import load, save
from transfer.data.own_fields import own_fields
from transfer.offline.train import train
from transfer.quality.calibrating import calibrated, fit_bundle


@pytest.fixture(scope="module")
def thinned_model(tmp_path_factory):
    """A model of a log with a tenth of its negatives that nobody was told of."""
    model = train(SmallLog(30_000, keep=0.1, said=""), "fm", width=4)
    return save(model, tmp_path_factory.mktemp("bundles") / "m", "m")


def test_a_thinned_log_brings_a_bundle_to_the_level_of_the_traffic(thinned_model, tmp_path):
    full = SmallLog(20_000, seed=0).window(0.0, 1.0)
    before = load(thinned_model)
    assert bias(full.labels, before.scores(full.rows)) > 0.5
    found = fit_bundle(thinned_model, SmallLog(20_000, keep=0.1))
    made = calibrated(thinned_model, found, tmp_path / "copy", version="7")
    assert abs(bias(full.labels, load(made).scores(full.rows))) < 0.03
    assert (made.manifest.version, made.manifest.calibration) == ("7", found)
    assert {**made.manifest.files} == {**thinned_model.manifest.files}  # nothing else has changed
    assert Bundle.open(thinned_model.path).manifest.calibration == before.calibration
    whole = fit_bundle(thinned_model.path, SmallLog(20_000))
    assert found.beta == pytest.approx(whole.beta, abs=0.1)
    with pytest.raises(BundleError, match="exists"):
        calibrated(thinned_model, Calibration(), tmp_path / "copy")


def test_a_model_reads_its_own_fields_of_a_log_that_has_more():
    own = Schema(fields=tuple(SCHEMA.fields[at] for at in (3, 2, 4)))
    rows = SmallLog(50).window(0.0, 1.0).rows
    read = own_fields(SCHEMA, own)(rows)
    assert read.ids[:, 0].tolist() == rows.ids[:, 1].tolist()
    assert np.array_equal(read.numbers[:, 0], rows.numbers[:, 1], equal_nan=True)
    assert read.bags[0].values is rows.bags[0].values
    assert own_fields(SCHEMA, SCHEMA)(rows) is rows
    other = Schema(fields=(FieldSpec(name="brand", role="candidate"), FieldSpec(name="user", role="candidate")))
    with pytest.raises(InvalidInput, match=r"'brand': the log has none.*'user': role is 'context' in the log"):
        own_fields(SCHEMA, other)
