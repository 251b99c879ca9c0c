"""A worker whose models or batches go wrong: what it sets aside, what it takes back, and that nothing bad is published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clocks import HandClock
from worker_world import KEY, PER_REQUEST, SCHEMA, draw, fill, models, settings

from pipeline.bundle.versions import Repository
from pipeline.errors import DataError
from pipeline.features import Features, Rows
from pipeline.model.model import Model
from pipeline.traffic.local.log import LocalTrafficLog
from pipeline.traffic.log import FeedbackEntry, Outcome
from pipeline.traffic.prediction import PredictionIds
from transfer.bundles.publish import network_files
from transfer.click_model.device import device_for
from transfer.click_model.model import ClickModel
from transfer.click_model.state import model_from, state_of
from transfer.online.stream import held_out
from transfer.online.worker import Worker


def status(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "status" / "worker.json").read_text())
    return found


def all_serve(repository: Repository, folder: Path) -> int:
    """How many versions of the student may serve; each is loaded and gives finite scores."""
    rows, _ = draw(np.random.default_rng(5))
    served = [v for v in repository.versions("student") if repository.open("student", v).manifest.servable]
    for version in served:
        model = Model.load(repository, "student", version, segments=folder / "segments")
        assert np.isfinite(model.score(Features.from_rows(rows))).all()
    return len(served)


def poison(model: ClickModel, value: float) -> None:
    with torch.no_grad():
        next(model.network.parameters()).fill_(value)


@pytest.mark.parametrize("committed", [True, False])
def test_a_student_that_became_nan_goes_back_to_its_last_good_state_and_learns_on(
    committed: bool, traffic: LocalTrafficLog, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    repository = models(tmp_path)
    fill(traffic, 60)
    worker = Worker(settings(tmp_path), traffic, repository, clock=HandClock())
    worker.step()
    if committed:
        worker.commit()
    poison(worker._student.model, float("nan"))
    worker.commit()  # must not become the state that is gone back to
    poison(worker._student.model, float("nan"))
    before, position = all_serve(repository, tmp_path), worker.place.position
    fill(traffic, 150, seed=1)
    worker.step()
    assert status(tmp_path)["healed"] == {"student": 2, "teacher": 0}
    assert status(tmp_path)["set_aside"] == 0
    assert "student has diverged" in caplog.text
    assert worker.place.position > position
    assert all_serve(repository, tmp_path) > before


def test_a_teacher_that_became_nan_goes_back_too(traffic: LocalTrafficLog, tmp_path: Path) -> None:
    repository = models(tmp_path)
    fill(traffic, 60)
    worker = Worker(settings(tmp_path), traffic, repository, clock=HandClock())
    poison(worker._teacher.model, float("nan"))
    worker.step()
    assert status(tmp_path)["healed"] == {"student": 0, "teacher": 1}
    assert worker._teacher.model.finite()
    assert status(tmp_path)["unguided_rows"] == 0  # what serves has scored all rows


def test_exploding_logits_are_refused_by_the_gate_and_never_served(traffic: LocalTrafficLog, tmp_path: Path) -> None:
    repository = models(tmp_path)
    fill(traffic, 100)
    worker = Worker(settings(tmp_path, publish_batches=1), traffic, repository, clock=HandClock())
    worker.step(lambda: len(repository.versions("student")) > 1)
    good = repository.latest("student")
    poison(worker._student.model, 20.0)
    worker.step(lambda: True)
    newest = repository.open("student", repository.versions("student")[-1]).manifest
    assert newest.gate is not None
    assert not newest.gate.passed
    assert any("logit" in reason for reason in newest.gate.reasons)
    assert repository.latest("student") == good


def test_a_batch_beyond_all_reason_is_set_aside_and_costs_nothing_else(
    traffic: LocalTrafficLog, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    repository = models(tmp_path)
    fill(traffic, 60)
    worker = Worker(settings(tmp_path, publish_batches=1000), traffic, repository, clock=HandClock())
    worker.step()
    learned = worker.place.trained_rows
    fill(traffic, 10, seed=1, number=1e30)
    fill(traffic, 60, seed=2)
    worker.step()
    found = status(tmp_path)
    assert 1 <= found["set_aside"] <= 3
    assert found["healed"] == {"student": 0, "teacher": 0}
    assert worker.place.trained_rows > learned
    assert "is set aside" in caplog.text
    worker.commit()
    assert Worker(settings(tmp_path), traffic, repository, clock=HandClock()).place.set_aside == found["set_aside"]


def test_rows_that_no_teacher_can_score_are_learned_from_labels_and_counted(
    traffic: LocalTrafficLog, tmp_path: Path
) -> None:
    repository = models(tmp_path)
    worker = Worker(settings(tmp_path), traffic, repository, clock=HandClock())
    poison(worker._teacher.model, float("nan"))
    fill(traffic, 20, stable=float("nan"))
    worker.step(lambda: True)
    assert worker.place.trained_rows > 0
    assert status(tmp_path)["unguided_rows"] == worker.place.trained_rows
    assert worker._student.model.finite()


def test_a_revised_held_out_row_stands_once_with_its_new_label(traffic: LocalTrafficLog, tmp_path: Path) -> None:
    repository = models(tmp_path)
    fill(traffic, 60)
    worker = Worker(settings(tmp_path, publish_batches=1000), traffic, repository, clock=HandClock())
    worker.step()
    held = [e for e in traffic.labelled(0, 1000) if held_out(e.prediction_id, 0.2) and e.seq <= worker.place.position]
    rows, clicks = len(worker._held), float(worker._held.labels.sum())
    late = PredictionIds(KEY).parse(held[0].prediction_id).time_ms + 5000
    changed = [FeedbackEntry(e.prediction_id, outcomes=[Outcome(0, 1.0 - float(e.labels[0]))]) for e in held]
    traffic.append_feedback(changed, late)
    fill(traffic, 60, seed=1)
    worker.step()
    revised = [
        e for e in traffic.labelled(0, 1000)
        if e.revision and held_out(e.prediction_id, 0.2) and e.seq <= worker.place.position
    ]  # fmt: skip
    assert revised
    moved = sum(float(e.labels[0] - e.previous[0]) for e in revised)
    assert float(worker._held.labels[:rows].sum()) == pytest.approx(clicks + moved)
    assert len(np.unique(worker._held.keys)) == len(worker._held)


def test_what_does_not_fit_the_schema_is_named_before_a_step_and_changes_nothing() -> None:
    model = ClickModel.create(SCHEMA, "dnn", 8, seed=3)
    rows, labels = draw(np.random.default_rng(0))
    without = Rows(rows.ids[:, :1], rows.numbers)
    infinite = Rows(rows.ids, np.full_like(rows.numbers, np.inf))
    for bad, said in ((without, "columns of kind id.*user, item"), (infinite, "'age' is infinite")):
        with pytest.raises(DataError, match=said):
            model.step(bad, labels)
    with pytest.raises(DataError, match="teacher"):
        model.step(rows, labels, teacher_logits=np.full(PER_REQUEST, np.nan, np.float32))
    assert (model.steps, len(model.tables)) == (0, 0)


def test_the_processor_is_always_there() -> None:
    assert device_for("cpu") == torch.device("cpu")
    model = ClickModel.create(SCHEMA, "dnn", 8, seed=3).to(device_for("auto"))
    rows, labels = draw(np.random.default_rng(0))
    model.step(rows, labels)
    other = model_from(*state_of(model))
    np.testing.assert_allclose(other.logits(rows), model.logits(rows), atol=1e-4)
    assert network_files(model)
