"""The worker against a real traffic log: what it learns, publishes and refuses, and that a kill costs nothing."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clocks import HandClock
from worker_world import ITEMS, KEY, SCHEMA, USERS, draw, fill, models, settings

from pipeline.bundle.versions import Repository
from pipeline.errors import InvalidInput
from pipeline.features import Features, Rows
from pipeline.metrics import bias
from pipeline.model.model import Model
from pipeline.traffic.local.log import LocalTrafficLog
from pipeline.traffic.log import FeedbackEntry, Outcome
from pipeline.traffic.prediction import PredictionIds
from transfer.bundles.publish import load, save
from transfer.click_model.model import ClickModel
from transfer.online import lineage
from transfer.online.checkpoint import Checkpoints
from transfer.online.stream import held_out
from transfer.online.worker import Worker
from transfer.quality.gate import GateLimits


def test_learns_and_publishes_versions_that_serve(traffic: LocalTrafficLog, tmp_path: Path) -> None:
    repository = models(tmp_path)
    fill(traffic, 400)
    worker = Worker(settings(tmp_path), traffic, repository, clock=HandClock())
    assert worker.step()
    versions = repository.versions("student")
    assert len(versions) > 2
    last = repository.open("student", versions[-1])
    assert last.manifest.base == "1"
    assert last.manifest.deltas == tuple(versions[1:])
    assert last.manifest.gate is not None
    assert last.manifest.gate.passed
    assert "score_shift" in last.manifest.metrics
    served = Model.load(repository, "student", versions[-1], segments=tmp_path / "segments")
    random = np.random.default_rng(99)
    parts = [draw(random) for _ in range(400)]
    scores = np.concatenate([served.score(Features.from_context(SCHEMA, rows)) for rows, _ in parts])
    labels = np.concatenate([labels for _, labels in parts])
    assert abs(bias(labels, scores)) < 0.1


class LentTenure:
    """A tenure that another worker has at first, for `away` questions."""

    def __init__(self, away: int) -> None:
        self.away = away
        self.places: list[int] = []

    def holds(self) -> bool:
        self.away -= 1
        return self.away < 0

    def published(self, position: int) -> None:
        self.places.append(position)


def test_without_the_tenure_nothing_is_published_and_with_it_the_place_is_noted(
    traffic: LocalTrafficLog, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    repository = models(tmp_path)
    fill(traffic, 200)
    tenure = LentTenure(away=10_000)
    few = replace(settings(tmp_path), publish_batches=4)
    worker = Worker(few, traffic, repository, clock=HandClock(), tenure=tenure)
    worker.step()
    assert "another worker of endpoint 'ranker' has taken over" in caplog.text
    assert (repository.versions("student"), repository.versions("teacher"), tenure.places) == (["1"], ["1"], [])
    tenure.away = 0
    fill(traffic, 100, seed=1)
    worker.step()
    assert len(tenure.places) == len(repository.versions("student")) - 1 > 0
    assert tenure.places == sorted(tenure.places)
    assert tenure.places[-1] <= worker.place.position


def test_a_published_delta_serves_what_was_trained(traffic: LocalTrafficLog, tmp_path: Path) -> None:
    repository = models(tmp_path)
    fill(traffic, 200)
    worker = Worker(settings(tmp_path, publish_batches=10), traffic, repository, clock=HandClock())
    worker.step()
    version = repository.versions("student")[-1]
    rows, _ = draw(np.random.default_rng(5))
    served = Model.load(repository, "student", version, segments=tmp_path / "segments")
    again = load(repository.chain(repository.open("student", version)))
    np.testing.assert_allclose(served.score(Features.from_rows(rows)), again.scores(rows), atol=1e-5)


def test_every_row_is_trained_on_once_and_held_rows_never(traffic: LocalTrafficLog, tmp_path: Path) -> None:
    repository = models(tmp_path)
    fill(traffic, 300)
    worker = Worker(settings(tmp_path), traffic, repository, clock=HandClock())
    worker.step()
    worker.commit()
    entries = [e for e in traffic.labelled(0, 10_000) if e.seq <= worker.place.position]
    held = [len(e.indices) for e in entries if held_out(e.prediction_id, 0.2)]
    assert held
    assert worker.place.held_rows == sum(held)
    assert worker.place.trained_rows == sum(len(e.indices) for e in entries) - sum(held)
    # Started again, it finds nothing new.
    again = Worker(settings(tmp_path), traffic, repository, clock=HandClock())
    assert not again.step()
    assert again.place.trained_rows == worker.place.trained_rows


def test_a_version_that_is_worse_is_refused_and_never_served(traffic: LocalTrafficLog, tmp_path: Path) -> None:
    repository = models(tmp_path)
    fill(traffic, 200)
    strict = GateLimits(-1.0, -1.0, 0.2, min_positives=50)  # must be better by more than is possible
    worker = Worker(settings(tmp_path, gate=strict), traffic, repository, clock=HandClock())
    worker.step()
    versions = repository.versions("student")
    assert len(versions) > 1
    assert repository.latest("student") == "1"
    refused = repository.open("student", versions[-1]).manifest
    assert refused.gate is not None
    assert not refused.gate.passed
    assert refused.gate.reasons
    status = json.loads((tmp_path / "status" / "worker.json").read_text())
    assert status["refused"]["student"] == versions[1:]


def test_a_student_that_cannot_learn_is_refused_at_start(traffic: LocalTrafficLog, tmp_path: Path) -> None:
    repository = models(tmp_path)
    save(ClickModel.create(SCHEMA, "dnn", 8, seed=3), repository, "frozen", training=False)
    with pytest.raises(InvalidInput, match="no training state"):
        Worker(settings(tmp_path, student="frozen"), traffic, repository)


def test_state_of_another_pair_is_refused(traffic: LocalTrafficLog, tmp_path: Path) -> None:
    repository = models(tmp_path)
    fill(traffic, 100)
    worker = Worker(settings(tmp_path), traffic, repository, clock=HandClock())
    worker.step()
    worker.commit()
    save(ClickModel.create(SCHEMA, "dnn", 8, seed=3), repository, "other")
    with pytest.raises(InvalidInput, match="another pair of models"):
        Worker(settings(tmp_path, student="other"), traffic, repository)


def test_teacher_and_student_must_be_two_bundles(traffic: LocalTrafficLog, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="name of its own"):
        Worker(settings(tmp_path, teacher="student"), traffic, models(tmp_path))


def test_state_that_goes_on_from_versions_that_are_gone_is_refused(traffic: LocalTrafficLog, tmp_path: Path) -> None:
    repository = models(tmp_path)
    fill(traffic, 200)
    worker = Worker(settings(tmp_path), traffic, repository, clock=HandClock())
    worker.step()
    worker.commit()
    shutil.rmtree(repository.path("student", repository.versions("student")[-1]))
    with pytest.raises(InvalidInput, match="not in the repository any more"):
        Worker(settings(tmp_path), traffic, repository)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_version_is_passed_over_at_start(
    traffic: LocalTrafficLog, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    repository = models(tmp_path)
    fill(traffic, 200)
    Worker(replace(settings(tmp_path), folder=tmp_path / "first"), traffic, repository, clock=HandClock()).step()
    *_, good, newest = repository.versions("student")
    damage(repository.path("student", newest) / "tables" / "item.safetensors")
    worker = Worker(settings(tmp_path), traffic, repository, clock=HandClock())
    assert worker._student.version == good
    assert f"version {newest} of bundle student is passed over" in caplog.text
    assert "tables/item.safetensors" in caplog.text
    worker.step()
    assert newest not in repository.open("student", repository.versions("student")[-1]).manifest.deltas


def test_nothing_builds_on_a_version_that_was_damaged_meanwhile(traffic: LocalTrafficLog, tmp_path: Path) -> None:
    repository = models(tmp_path)
    fill(traffic, 100)
    worker = Worker(settings(tmp_path), traffic, repository, clock=HandClock())
    worker.step()
    worker.commit()
    damaged = repository.versions("student")[-1]
    damage(repository.path("student", damaged) / "dense.onnx")
    fill(traffic, 100, seed=1)
    # It goes on from its checkpoint, which knows all rows, and publishes a base.
    Worker(settings(tmp_path), traffic, repository, clock=HandClock()).step()
    after = [repository.open("student", v).manifest for v in repository.versions("student") if int(v) > int(damaged)]
    assert after[0].base is None
    assert after[0].servable
    Model.load(repository, "student", segments=tmp_path / "segments")


def test_labels_between_0_and_1_are_learned_from(traffic: LocalTrafficLog, tmp_path: Path) -> None:
    repository = models(tmp_path)
    fill(traffic, 200, click=0.4)
    worker = Worker(settings(tmp_path), traffic, repository, clock=HandClock())
    assert worker.step()
    assert worker.place.trained_rows > 2000
    assert len(repository.versions("student")) > 1


def test_the_status_tells_what_is_committed_apart_from_what_is_read(traffic: LocalTrafficLog, tmp_path: Path) -> None:
    repository = models(tmp_path)
    fill(traffic, 100)
    worker = Worker(settings(tmp_path, publish_batches=1000), traffic, repository, clock=HandClock())
    worker.step()
    status = json.loads((tmp_path / "status" / "worker.json").read_text())
    assert status["position"] > status["committed"] == 0
    worker.commit()
    worker.step()
    status = json.loads((tmp_path / "status" / "worker.json").read_text())
    assert status["position"] == status["committed"]


def test_a_late_label_moves_the_calibration_by_its_difference_alone(traffic: LocalTrafficLog, tmp_path: Path) -> None:
    repository = models(tmp_path)
    fill(traffic, 60)
    worker = Worker(settings(tmp_path, publish_batches=1000), traffic, repository, clock=HandClock())
    worker.step()
    entries = [e for e in traffic.labelled(0, 1000) if not held_out(e.prediction_id, 0.2)]
    ids = PredictionIds(KEY)
    late = ids.parse(entries[0].prediction_id).time_ms + 5000
    recent = worker._student.recent
    before, rows = float(recent.labels.sum()), len(recent)
    changed = [FeedbackEntry(e.prediction_id, outcomes=[Outcome(0, 1.0 - float(e.labels[0]))]) for e in entries[:20]]
    traffic.append_feedback(changed, late)
    fill(traffic, 60, seed=1)
    worker.step()
    revised = [e for e in traffic.labelled(0, 1000) if e.revision and e.seq <= worker.place.position]
    assert revised
    later = worker._student.recent
    silent = np.isneginf(later.logits)
    assert silent.sum() == len(revised)
    difference = sum(float(e.labels[0] - e.previous[0]) for e in revised)
    assert float(later.labels[silent].sum()) == pytest.approx(difference)
    assert len(later) > rows
    assert before == pytest.approx(float(later.labels[:rows].sum()))


class Crash(BaseException):
    """The process ends here."""


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file may grow beyond `limit` bytes: what a program sees of a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limit", [0, 2_000, 100_000])
def test_a_full_disk_holds_versions_back_and_loses_nothing(
    traffic: LocalTrafficLog, tmp_path: Path, limit: int
) -> None:
    repository = models(tmp_path)
    fill(traffic, 80)
    worker = Worker(settings(tmp_path), traffic, repository)
    with full_disk(limit):  # 100_000: the checkpoint does not fit, a delta does
        while worker.step():
            pass
    position = worker.place.position
    assert position > 0
    for name in "teacher", "student":
        for version in repository.versions(name):
            Model.load(repository, name, version, segments=tmp_path / "segments")  # all that is there is whole
    assert repository.versions("student") == ["1"]
    assert not list(repository.root.glob("*/.[0-9]*"))
    assert not list((tmp_path / "worker").glob("[.0-9]*"))
    fill(traffic, 80, seed=1)
    while worker.step():
        pass
    assert len(repository.versions("student")) > 1
    trained = worker.place.trained_rows
    assert Worker(settings(tmp_path), traffic, repository).place.position <= worker.place.position
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    other = Worker(settings(undisturbed), traffic, models(undisturbed))
    while other.step():
        pass
    assert (other.place.trained_rows, other.place.position) == (trained, worker.place.position)


@pytest.mark.parametrize("where", ["reserve", "save_delta", "save_bundle", "save"])
def test_a_crash_while_publishing_loses_no_row_and_no_number(
    where: str, traffic: LocalTrafficLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = models(tmp_path)
    fill(traffic, 200)
    every = settings(tmp_path, publish_batches=1, compact_after=2, gate=GateLimits(10, 10, 10, min_positives=10))
    owner, name = {"reserve": (Repository, where), "save": (Checkpoints, where)}.get(where, (lineage, "save"))
    real, calls = getattr(owner, name), 0

    def last_words(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        done = real(*arguments, **named)
        if owner is lineage and bool(named["chain"]) != (where == "save_delta"):
            return done
        calls += 1
        if calls == 3:
            raise Crash
        return done

    worker = Worker(every, traffic, repository, clock=HandClock())
    monkeypatch.setattr(owner, name, last_words)
    with pytest.raises(Crash):
        worker.step()
    monkeypatch.undo()
    before = repository.versions("student")
    again = Worker(every, traffic, repository, clock=HandClock())
    for _ in range(3):
        assert again.step(lambda: True)
    after = repository.versions("student")
    assert after[: len(before)] == before
    assert len(after) > len(before)
    newest = repository.open("student", after[-1])
    assert [b.manifest.version for b in repository.chain(newest)] == again._student.chain
    rows = Rows(np.stack([np.resize(USERS, 240), np.resize(ITEMS, 240)], 1), np.full((240, 1), 0.5, np.float32))
    served = Model.load(repository, "student", segments=tmp_path / "segments")
    np.testing.assert_allclose(served.score(Features.from_rows(rows)), again._student.model.scores(rows), atol=1e-5)


def test_a_gate_whose_rows_hold_too_few_clicks_says_so_and_grows_until_it_can_judge(
    traffic: LocalTrafficLog, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    repository = models(tmp_path)
    clock = HandClock()
    few = settings(tmp_path, gate_rows=100, gate=GateLimits(10, 10, 10, min_positives=150))
    worker = Worker(few, traffic, repository, clock=clock)

    def waiting() -> str:
        return str(json.loads(few.status.read_text())["waiting"])

    worker.step()
    assert waiting() == "labelled rows: 0 of the 200 of the next batch are there"
    fill(traffic, 100)
    worker.step()
    clock.now += 60
    fill(traffic, 20, seed=1)
    worker.step()
    assert repository.versions("student") == ["1"]
    assert "clicks for the gate of the next version" in waiting()
    assert "of 150 are there" in waiting()
    assert len([line for line in caplog.messages if "of 150 are there" in line]) == 1
    fill(traffic, 400, seed=2)
    worker.step()
    assert len(repository.versions("student")) > 1, "the gate keeps more than its 100 rows until it has 150 clicks"
    assert "clicks" not in waiting()
