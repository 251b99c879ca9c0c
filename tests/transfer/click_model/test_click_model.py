import json

import numpy as np
import pytest
import torch
from small_log import SCHEMA, SmallLog

from pipeline.bundle.bundle import Bundle, Calibration, GateReport
from pipeline.bundle.versions import Repository
from pipeline.errors import BundleError, DataError, InvalidInput
from transfer.bundles.publish import Provenance, load, save
from transfer.click_model.blocks import TableSettings
from transfer.click_model.loss import distillation_loss
from transfer.click_model.model import ClickModel, LearningSettings
from transfer.click_model.state import load_state, model_from, state_of

LOG = SmallLog(4000)


def batch(at, size=500):
    chunk = LOG.window(0, 1).slice(at * size, (at + 1) * size)
    return chunk.rows, chunk.labels


def model(arch="deepfm", **kwargs):
    made = ClickModel.create(SCHEMA, arch, 8, seed=4, **kwargs)
    made.fit_numbers(batch(0)[0])
    return made


def same(a, b):
    (header_a, arrays_a), (header_b, arrays_b) = state_of(a), state_of(b)
    assert header_a == header_b
    assert arrays_a.keys() == arrays_b.keys()
    for key, value in arrays_a.items():
        np.testing.assert_array_equal(value, arrays_b[key], err_msg=key)


@pytest.mark.parametrize("arch", ["lr", "fm", "dnn", "deepfm", "dcnv2", "fibinet"])
def test_a_calibration_becomes_part_of_the_network(arch):
    m, rows = model(arch), batch(0)[0]
    before = m.logits(rows)
    m.calibrate(Calibration(alpha=0.8, beta=0.4))
    assert m.calibration == Calibration(alpha=0.8, beta=0.0)
    np.testing.assert_allclose(m.calibrated_logits(rows), 0.8 * before + 0.4, atol=1e-5)


def test_a_network_without_a_bias_of_its_own_keeps_the_calibration_beside_it():
    m, rows = model("dnn"), batch(0)[0]
    m.network.body.deep[-1].register_parameter("bias", None)
    before = m.logits(rows)
    m.calibrate(Calibration(beta=0.4))
    assert m.calibration == Calibration(beta=0.4)
    np.testing.assert_array_equal(m.logits(rows), before)


def test_training_sees_the_slope_that_serving_applies():
    m, (rows, labels) = model(), batch(0)
    for _ in range(5):
        m.step(rows, labels)
    m.calibrate(Calibration(alpha=1.7, beta=0.3))
    served = torch.from_numpy(m.calibrated_logits(rows))
    expected = torch.nn.functional.binary_cross_entropy_with_logits(served, torch.from_numpy(labels))
    assert m.accumulate(rows, labels) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("rate", [0.02, 0.8])
def test_a_level_to_start_at(rate):
    m, rows = model(), batch(0)[0]
    m.start_level(rows, rate)
    assert m.scores(rows).mean() == pytest.approx(rate, rel=1e-3)


def test_dropout_is_seen():
    assert model("dnn").steady
    assert not model("dnn", hyperparameters={"dropout": 0.2}).steady


def test_training_lowers_the_loss_and_scoring_makes_no_rows():
    m = model()
    first = m.step(*batch(0))
    for _ in range(30):
        last = m.step(*batch(0))
    assert last < first - 0.05
    rows = len(m.tables)
    m.logits(SmallLog(100, seed=8).window(0, 1).rows)
    assert len(m.tables) == rows


def test_loss_against_its_formula():
    s, t, y = torch.tensor([0.3, -1.0]), torch.tensor([1.0, -2.0]), torch.tensor([1.0, 0.0])
    found = distillation_loss(s, y, teacher_logits=t, teacher_weight=0.7, temperature=4.0, label_offset=0.5).numpy()

    def bce(z, target):
        p = 1 / (1 + np.exp(-z))
        return -(target * np.log(p) + (1 - target) * np.log(1 - p))

    s, t, y = s.numpy(), t.numpy(), y.numpy()
    wanted = 0.7 * 16 * bce(s / 4, 1 / (1 + np.exp(-t / 4))) + 0.3 * bce(s + 0.5, y)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("optimiser", ["adagrad", "adam"])
@pytest.mark.parametrize("pending", [0, 2])
def test_resuming_is_exact_to_the_bit(optimiser, pending):
    settings = LearningSettings(tables=TableSettings(optimiser=optimiser))
    m = model(learning=settings, hyperparameters={"hidden": (16,), "dropout": 0.2})
    for i in range(3):
        m.step(*batch(i))
    for i in range(pending):
        m.accumulate(*batch(i))
    header, arrays = state_of(m)
    again = model_from(json.loads(json.dumps(header)), arrays)
    for other in (m, again):
        other.accumulate(*batch(4))
        other.apply_accumulated()
        other.step(*batch(5))
    same(m, again)


def test_state_of_another_model_is_refused():
    with pytest.raises(InvalidInput, match="arch"):
        load_state(model("fm"), *state_of(model("deepfm")))


def test_accumulating_is_the_mean_of_batches():
    # Plain gradients are compared through a first Adagrad step: K copies of one batch are that batch.
    one, many = model(), model()
    one.step(*batch(0))
    for _ in range(3):
        many.accumulate(*batch(0))
    many.apply_accumulated()
    np.testing.assert_allclose(many.tables.rows, one.tables.rows, atol=1e-5)
    np.testing.assert_allclose(many.logits(batch(1)[0]), one.logits(batch(1)[0]), atol=1e-4)


def test_frozen_tables_do_not_move():
    m = model()
    m.step(*batch(0))
    before, dense = m.tables.rows.copy(), m.network.body.deep[0].weight.detach().clone()
    m.step(*batch(1), train_tables=False)
    np.testing.assert_array_equal(m.tables.rows, before)
    assert not torch.equal(m.network.body.deep[0].weight, dense)


@pytest.mark.parametrize("arch", ["lr", "deepfm", "dcnv2"])
def test_bundle_round_trip(arch, tmp_path):
    repository, m = Repository(tmp_path), model(arch)
    for i in range(3):
        m.step(*batch(i))
    m.tables.default_to_mean()
    m.calibration, m.metrics = Calibration(alpha=0.9, beta=-0.2), {"auc": 0.7}
    bundle = save(m, repository, "ranker", provenance=Provenance(created_ms=5))
    assert (bundle.manifest.version, bundle.manifest.metrics, bundle.manifest.created_ms) == ("1", {"auc": 0.7}, 5)
    Bundle.open(bundle.path)
    rows = SmallLog(300, seed=6).window(0, 1).rows
    again = load(repository.chain(repository.open("ranker")))
    np.testing.assert_array_equal(again.scores(rows), m.scores(rows))
    for other in (m, again):  # and training goes on exactly
        other.step(*batch(4))
    np.testing.assert_array_equal(again.logits(rows), m.logits(rows))


def test_a_bundle_without_training_state_scores_and_refuses_to_learn(tmp_path):
    m = model()
    m.step(*batch(0))
    bundle = save(m, tmp_path / "here", "ranker", training=False)
    assert bundle.frozen
    frozen = load(bundle)
    np.testing.assert_array_equal(frozen.logits(batch(1)[0]), m.logits(batch(1)[0]))
    with pytest.raises(InvalidInput, match="frozen"):
        frozen.step(*batch(1))


def test_base_and_deltas_make_up_the_model(tmp_path):
    repository, m = Repository(tmp_path), model()
    m.step(*batch(0))
    save(m, repository, "ranker")
    chain = ["1"]
    for i in (1, 2):
        small = batch(i, 20)
        m.step(*small)
        delta = save(m, repository, "ranker", chain=chain, provenance=Provenance(parent="1"))
        chain.append(delta.manifest.version)
        assert 0 < delta.manifest.tables["user"].rows <= 20
        again = load(repository.chain(repository.open("ranker")))
        np.testing.assert_array_equal(again.logits(batch(3)[0]), m.logits(batch(3)[0]))
    assert delta.manifest.deltas == ("2", "3")
    with pytest.raises(InvalidInput, match="delta"):
        load(delta)


def test_rows_of_a_refused_version_go_with_the_next(tmp_path):
    repository, m = Repository(tmp_path), model()
    m.step(*batch(0))
    save(m, repository, "ranker")
    m.step(*batch(1, 20))
    refused = GateReport(passed=False, reasons=("worse",))
    first = save(m, repository, "ranker", provenance=Provenance(parent="1", gate=refused))
    second = save(m, repository, "ranker", chain=["1"], provenance=Provenance(gate=refused))
    assert list(first.manifest.files) == list(second.manifest.files) == []
    assert repository.latest("ranker") == "1"
    save(m, repository, "ranker", chain=["1"])
    again = load(repository.chain(repository.open("ranker")))
    np.testing.assert_array_equal(again.logits(batch(3)[0]), m.logits(batch(3)[0]))


def test_a_failed_publication_keeps_its_rows(tmp_path):
    m = model()
    m.step(*batch(0))
    (tmp_path / "taken").mkdir()
    touched = m.tables.touched()
    with pytest.raises(BundleError):
        save(m, tmp_path / "taken", "ranker")
    np.testing.assert_array_equal(m.tables.touched(), touched)


def test_bad_batches_are_named():
    m, (rows, labels) = model(), batch(0)
    for label in (2.0, -0.1, np.nan):
        with pytest.raises(DataError, match="from 0 to 1"):
            m.step(rows, np.full(len(labels), label, np.float32))
    with pytest.raises(DataError, match="teacher"):
        m.step(rows, labels, teacher_logits=np.full(len(labels), np.nan, np.float32), teacher_weight=0.5)
