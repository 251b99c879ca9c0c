"""Teachers that do not learn here, and teachers whose fields are not the student's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clocks import HandClock
from handmade import random_tables, write_bundle
from worker_world import KEY, PER_REQUEST, SCHEMA, draw, fill, settings

from pipeline.bundle.bundle import Manifest
from pipeline.bundle.teachers import REMOTE, teacher_kind
from pipeline.bundle.versions import Repository
from pipeline.errors import InvalidInput
from pipeline.features import Features, Rows
from pipeline.hashing import hash_value
from pipeline.schema import FieldSpec, Schema
from pipeline.traffic.local.log import LocalTrafficLog
from pipeline.traffic.log import FeedbackEntry, Outcome
from pipeline.traffic.prediction import PredictionIds
from pipeline.traffic.record import PredictionRecord, pack
from transfer.bundles.publish import save
from transfer.click_model.model import ClickModel
from transfer.model_zoo import ZOO_ALONE
from transfer.online.codistill import logit_of
from transfer.online.teacher import open_teacher
from transfer.online.worker import Worker

NEW = FieldSpec(name="shop", role="candidate"), FieldSpec(name="hour", role="context", kind="number")
WIDER = Schema(fields=(NEW[0], *SCHEMA.fields, NEW[1]))
"""A student's fields: two that its teacher has not, in another order."""
SHOPS = np.array([hash_value("shop", i) for i in range(5)])


def status(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "status" / "worker.json").read_text())
    return found


def foreign(repository: Repository, **more: Any) -> None:
    """A teacher that nothing here can train, under a name of its own."""
    tables = {name: random_tables(3)["item"] for name in ("user", "item")}
    bundle = write_bundle(repository, tables, name="foreign", schema=SCHEMA)
    path = bundle.path / "manifest.json"
    told = json.loads(path.read_text()) | more
    path.write_text(json.dumps(told))


def test_a_teacher_that_cannot_learn_here_teaches_by_its_logged_scores(
    traffic: LocalTrafficLog, repository: Repository, tmp_path: Path
) -> None:
    foreign(repository, architecture="onnx")
    fill(traffic, 110)
    told = settings(tmp_path, teacher="foreign")
    worker = Worker(told, traffic, repository, clock=HandClock())
    seen = []
    step = worker._student.model.step
    worker._student.model.step = lambda *rows, **more: seen.append(more) or step(*rows, **more)  # type: ignore[method-assign]
    assert worker.step()
    assert len(repository.versions("student")) > 1
    assert repository.versions("foreign") == ["1"]
    logged = logit_of(np.array([0.25], np.float32))
    assert all((more["teacher_logits"] == logged).all() for more in seen), "as logged, calibration included"
    assert seen[0]["teacher_weight"].max() > 0
    found = status(tmp_path)
    assert (found["teacher"]["kind"], found["teacher"]["name"], found["unguided_rows"]) == ("frozen", "foreign", 0)
    report = found["reports"]["student"]["figures"]
    assert report["teacher_rows"] == report["rows"]
    assert report["teacher_auc"] == 0.5  # one score for all
    rows = worker.place.trained_rows
    fill(traffic, 30, seed=1, stable=float("nan"))
    worker.step()
    learned = worker.place.trained_rows - rows
    assert learned - told.batch_rows < status(tmp_path)["unguided_rows"] <= learned, "but for a rest of those before"
    worker.commit()
    again = Worker(told, traffic, repository, clock=HandClock()).place
    assert (again.trained_rows, again.unguided_rows) == (worker.place.trained_rows, worker.place.unguided_rows)


@pytest.mark.parametrize(
    ("architecture", "kind", "said"),
    [
        ("onnx", "frozen", "imported"),
        ("old.models:Tower", "frozen", "not of the zoo"),
    ],
)
def test_the_kind_of_a_teacher_is_said_with_the_reason(
    architecture: str, kind: str, said: str, repository: Repository, tmp_path: Path
) -> None:
    foreign(repository, architecture=architecture)
    teacher = open_teacher(repository, "foreign", tmp_path / "notes", ZOO_ALONE)
    assert (teacher.kind, teacher.model) == (kind, None)
    assert said in teacher.reason
    assert open_teacher(repository, "elsewhere", tmp_path / "notes", ZOO_ALONE).kind == "remote"


def test_a_student_that_cannot_learn_is_named_with_what_it_is(
    traffic: LocalTrafficLog, repository: Repository, tmp_path: Path
) -> None:
    foreign(repository, architecture="onnx")
    with pytest.raises(InvalidInput, match="foreign was imported: it serves but cannot learn"):
        Worker(settings(tmp_path, teacher="student", student="foreign"), traffic, repository)


def wide_fill(log: LocalTrafficLog, requests: int, seed: int, *, keep: float = 1.0) -> list[float]:
    """Requests with the fields of both arms, of which every other one has the teacher's alone; the mean of the labels of
    each shop is its number / 8. Returns the labels in order."""
    random, ids = np.random.default_rng(seed), PredictionIds(KEY)
    joined, start = SCHEMA.joined(WIDER), 1_700_000_000_000 + seed * 10_000_000
    records, feedback, all_labels = [], [], []
    for at in range(requests):
        rows, labels = draw(random)
        fields = ""
        features = Features.from_context(SCHEMA, rows)
        if at % 2:
            shops = random.integers(0, 5, PER_REQUEST)
            labels = (random.random(PER_REQUEST) < (1 + shops) / 8).astype(np.float32)
            wide = Rows(
                np.column_stack([rows.ids, SHOPS[shops]]),
                np.column_stack([rows.numbers, np.ones(PER_REQUEST, np.float32)]),
            )
            features, fields = Features.from_context(joined, wide), joined.columns
        prediction_id = ids.new(start + at)
        scores = np.full(PER_REQUEST, 0.3, np.float32)
        record = PredictionRecord(
            prediction_id, start + at, "ranker", "stable", "teacher", 1, features, scores, fields=fields,
            inclusion_probability=keep if at % 2 else 1.0,
        )  # fmt: skip
        records.append(pack(record))
        bare = replace(record, prediction_id=ids.new(start + at), features=Features(PER_REQUEST))
        records.append(pack(bare))
        outcomes = [Outcome(i, float(y), final=True) for i, y in enumerate(labels)]
        feedback += [FeedbackEntry(p.prediction_id, outcomes=outcomes, exposed_all=True) for p in (record, bare)]
        all_labels += labels.tolist()
    log.append_predictions(records)
    log.append_feedback(feedback, start + requests)
    while log.join(start + requests + 10):
        pass
    return all_labels


def test_a_student_learns_from_fields_that_its_teacher_has_not(
    traffic: LocalTrafficLog, repository: Repository, tmp_path: Path
) -> None:
    save(ClickModel.create(WIDER, "lr", 8, seed=4), repository, "wider")
    labels = wide_fill(traffic, 240, 0, keep=0.5)
    told = settings(tmp_path, student="wider", holdout=0.2)
    worker = Worker(told, traffic, repository, clock=HandClock())
    assert worker._teacher is not None
    before = worker._teacher.model.rows_trained
    assert worker.step()
    assert worker._teacher.model.rows_trained > before, "the teacher learns from the same rows by its own fields"
    assert len(repository.versions("wider")) > 1
    assert len(repository.versions("teacher")) > 1
    assert status(tmp_path)["featureless"] + PER_REQUEST >= worker.place.trained_rows + worker.place.held_rows
    assert worker.place.trained_rows + worker.place.held_rows <= len(labels)
    one = Rows(np.repeat([[SHOPS[0], 1, 1], [SHOPS[4], 1, 1]], 1, 0), np.ones((2, 2), np.float32))
    low, high = worker._student.model.logits(one)
    assert high > low, "what the shop says has been learned"
    table = worker._student.model.tables.export("shop")
    assert set(table.ids.tolist()) == {*SHOPS.tolist(), hash_value("shop", None)}, "a shop that was not sent is missing"
    worker.commit()
    again = Worker(told, traffic, repository, clock=HandClock())
    assert len(again._held_by_teacher) == len(again._held) > 0
    assert again._held_by_teacher.rows is not None
    assert again._held_by_teacher.rows.ids.shape[1] == 2
    assert again._held.rows is not None
    assert again._held.rows.ids.shape[1] == 3


def test_a_field_of_both_that_is_not_the_same_is_refused_by_name(
    traffic: LocalTrafficLog, repository: Repository, tmp_path: Path
) -> None:
    other = Schema(fields=(*SCHEMA.fields[:2], FieldSpec(name="age", role="context", kind="number")))
    save(ClickModel.create(other, "lr", 8, seed=4), repository, "other")
    with pytest.raises(InvalidInput, match="other contradicts teacher: field 'age': role is 'context' here"):
        Worker(settings(tmp_path, student="other"), traffic, repository)


def test_kinds_of_teachers_follow_from_the_manifest(repository: Repository, tmp_path: Path) -> None:
    manifest: Manifest = repository.manifest("teacher", "1")
    assert teacher_kind(manifest) == "learns"
    assert teacher_kind(manifest, lambda architecture: False) == "frozen"
    assert teacher_kind(manifest.model_copy(update={"architecture": "onnx"})) == "frozen"
    assert teacher_kind(manifest.model_copy(update={"architecture": REMOTE}), lambda architecture: False) == "remote"
    untrained = save(ClickModel.create(SCHEMA, "fm", 4, seed=1), tmp_path / "x", "x", training=False).manifest
    assert teacher_kind(untrained) == "frozen"
