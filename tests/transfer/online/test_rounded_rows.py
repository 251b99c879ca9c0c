"""Rows stored as float16 or int8: what is calibrated and judged is what serves, and training goes on in float32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from clocks import HandClock
from small_log import SCHEMA, SmallLog
from worker_world import fill, models, settings

from pipeline.bundle.row_format import RowFormat, decode_rows, encode_rows
from pipeline.bundle.versions import Repository
from pipeline.errors import InvalidInput
from pipeline.features import Features
from pipeline.metrics import auc, bias, logloss
from pipeline.model.model import Model
from pipeline.traffic.local.log import LocalTrafficLog
from transfer.bundles.publish import load, save
from transfer.click_model.model import ClickModel
from transfer.offline.distill import OURS, transfer_offline
from transfer.offline.train import TrainSettings, train
from transfer.offline.window import Window
from transfer.online.worker import Worker

LOG = SmallLog(16_000)
ROUNDED = ("float16", "int8")


def trained(stored: RowFormat) -> ClickModel:
    return train(LOG, "deepfm", width=8, stop=0.5, settings=TrainSettings(stored=stored))


@pytest.mark.parametrize("stored", ROUNDED)
def test_what_is_scored_before_publishing_is_what_serves(tmp_path: Path, stored: RowFormat) -> None:
    model = trained(stored)
    repository = Repository(tmp_path)
    bundle = save(model, repository, "ranker")
    assert {info.dtype for info in bundle.manifest.tables.values()} == {stored}
    rows = LOG.window(0.5, 0.7).rows
    served = Model.load(repository, "ranker", segments=tmp_path / "segments").score(Features.from_rows(rows))
    c = model.calibration
    expected = 1 / (1 + np.exp(-(c.alpha * model.served_logits(rows).astype(np.float64) + c.beta)))
    np.testing.assert_allclose(served, expected, atol=1e-6)
    assert np.abs(served - model.scores(rows)).max() > 4e-6  # rounding can be seen, so the above says something


@pytest.mark.parametrize("stored", ROUNDED)
def test_training_goes_on_from_rows_that_were_not_rounded(tmp_path: Path, stored: RowFormat) -> None:
    model, repository = trained(stored), Repository(tmp_path)
    save(model, repository, "ranker")
    model.step(LOG.window(0.5, 0.55).rows, LOG.window(0.5, 0.55).labels)
    save(model, repository, "ranker", chain=["1"])
    base = load(repository.open("ranker", "1"))
    assert base.stored == stored
    again = trained(stored)
    np.testing.assert_array_equal(base.tables.rows, again.tables.rows)
    np.testing.assert_array_equal(base.tables.weights, again.tables.weights)
    # A delta brings no training state: what it touched comes rounded, all else as it was.
    later = load(repository.chain(repository.open("ranker", "2")))
    changed = (later.tables.rows != base.tables.rows).any(1)
    exact = model.tables.rows[: len(changed)]
    np.testing.assert_array_equal(later.tables.rows[~changed], exact[~changed])
    np.testing.assert_allclose(
        later.tables.rows, decode_rows(*encode_rows(model.tables.rows, stored)), rtol=0.01, atol=1e-2
    )


@pytest.mark.parametrize("stored", ROUNDED)
def test_rounding_costs_little_of_what_a_model_is_worth(stored: RowFormat) -> None:
    test = LOG.window(0.5, 1)
    plain, rounded = trained("float32"), trained(stored)
    np.testing.assert_array_equal(plain.tables.rows, rounded.tables.rows)
    exact, coarse = (m.calibration.alpha * m.served_logits(test.rows) + m.calibration.beta for m in (plain, rounded))
    p, q = (1 / (1 + np.exp(-z.astype(np.float64))) for z in (exact, coarse))
    assert abs(q.sum() / p.sum() - 1) < 0.001
    assert abs(logloss(test.labels, q) - logloss(test.labels, p)) < 0.0002
    assert abs(auc(test.labels, q) - auc(test.labels, p)) < 0.0005


def test_a_student_is_calibrated_on_its_rounded_rows() -> None:
    teacher = trained("float32")
    student, _ = transfer_offline(Window(teacher, LOG, 0.5), "dcnv2", width=8, settings=replace(OURS, stored="int8"))
    plain, _ = transfer_offline(Window(teacher, LOG, 0.5), "dcnv2", width=8)
    np.testing.assert_array_equal(student.tables.rows, plain.tables.rows)
    assert student.stored == "int8"
    rows = LOG.window(0.8, 1).rows
    assert student.calibrated_logits(rows).mean() != plain.calibrated_logits(rows).mean()
    assert student.calibration.beta == pytest.approx(plain.calibration.beta, abs=0.01)


def test_unknown_ids_and_bags_take_the_same_rows_rounded_or_not() -> None:
    model = ClickModel.create(SCHEMA, "deepfm", 8, seed=1)
    rows = LOG.window(0.5, 0.6).rows
    model.stored = "int8"
    np.testing.assert_array_equal(model.served_logits(rows), model.logits(rows))  # default rows alone
    assert len(model.tables) == 0


def test_the_worker_rounds_as_told_and_the_gate_judges_what_serves(
    traffic: LocalTrafficLog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Prediction ids decide which rows are held out, and on some of them rounding moves the bias by less than is checked.
    monkeypatch.setattr("pipeline.traffic.prediction.secrets.token_bytes", Random(2).randbytes)
    repository = models(tmp_path)
    fill(traffic, 300)
    worker = Worker(settings(tmp_path, rows="int8"), traffic, repository, clock=HandClock())
    worker.step()
    _, second, third, *_, last = repository.versions("student")
    manifests = [repository.open("student", v).manifest for v in (second, third, last)]
    assert {info.dtype for m in manifests for info in m.tables.values()} == {"int8"}
    assert manifests[0].base is None  # no delta in another format than its base
    assert manifests[1].base == second
    line, held = worker._student, worker._held
    assert held.rows is not None
    report = line.publish(held, 0, worker.place.batches, None, 0)  # judged on all of them
    assert report.passed
    served = Model.load(repository, "student", line.version, segments=tmp_path / "segments")
    scores = served.score(Features.from_rows(held.rows))
    exact = line.model.scores(held.rows)
    assert report.figures["logloss"] == pytest.approx(logloss(held.labels, scores), abs=2e-7)
    assert report.figures["bias"] == pytest.approx(bias(held.labels, scores), abs=2e-7)
    assert report.figures["bias"] != pytest.approx(bias(held.labels, exact), abs=1e-6)
    # Started without the setting, it goes on as the bundle is.
    again = Worker(settings(tmp_path), traffic, repository, clock=HandClock())
    assert again._student.model.stored == "int8"


def test_rows_that_a_format_cannot_take_are_refused_with_the_version(
    traffic: LocalTrafficLog,
    tmp_path: Path,
) -> None:
    repository = models(tmp_path)
    fill(traffic, 200)
    worker = Worker(settings(tmp_path, rows="float16"), traffic, repository, clock=HandClock())
    tables = worker._student.model.tables
    tables.rows[0] = 1e5
    worker.step()
    version = repository.versions("student")[1]
    gate = repository.open("student", version).manifest.gate
    assert gate is not None
    assert not gate.passed
    assert any("65504" in reason for reason in gate.reasons)
    with pytest.raises(InvalidInput, match="65504"):
        tables.check_stored("float16")
