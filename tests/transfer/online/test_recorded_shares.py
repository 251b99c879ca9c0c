"""Levels of a log whose rows were recorded with a probability: what the worker learns, publishes and judges is of the traffic."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from clocks import HandClock
from worker_world import ITEMS, KEY, TASTE, USERS, draw, settings

from pipeline.bundle.bundle import Calibration
from pipeline.bundle.versions import Repository
from pipeline.calibration import probabilities
from pipeline.features import Features, Rows
from pipeline.traffic.local.log import LocalTrafficLog
from pipeline.traffic.log import FeedbackEntry, Outcome
from pipeline.traffic.prediction import PredictionIds
from pipeline.traffic.record import PredictionRecord, pack
from transfer.bundles.publish import load
from transfer.online.adapt import Adaptation, AdaptSettings, Seen
from transfer.online.recalibrate import HeldRows, Ring, recalibrate, window_for
from transfer.online.stream import held_out
from transfer.online.worker import Worker
from transfer.quality.gate import GateLimits, bias_error_of

KEPT = 0.1
"""Share of the rows without a click that is recorded."""
REQUESTS = 10
"""Whose rows are in one prediction."""
HOLDOUT = 0.2


def truth_of(ids: np.ndarray) -> np.ndarray:
    """True click probabilities of rows by their hashed ids."""
    users, items = ({int(value): at for at, value in enumerate(values)} for values in (USERS, ITEMS))
    logit = [TASTE[users[user], items[item]] - 1.2 for user, item in ids.tolist()]
    return 1 / (1 + np.exp(-np.array(logit)))


def rows_of(random: np.random.Generator, requests: int) -> tuple[Rows, np.ndarray]:
    """Rows of several requests together, and their labels."""
    parts = [draw(random) for _ in range(requests)]
    ids, numbers = (np.concatenate([getattr(rows, of) for rows, _ in parts]) for of in ("ids", "numbers"))
    return Rows(ids, numbers), np.concatenate([labels for _, labels in parts])


def thin_fill(log: LocalTrafficLog, predictions: int, seed: int = 0) -> None:
    """Predictions of which all rows with a click are recorded and a tenth of the others, as `baton log import` writes them: one
    for each share. The stable arm's score is the truth."""
    random, ids = np.random.default_rng(seed), PredictionIds(KEY)
    start = 1_700_000_000_000 + seed * 10_000_000
    records, feedback, told = [], [], list[str]()
    for at in range(predictions):
        rows, labels = rows_of(random, REQUESTS)
        for clicked, share in ((1, 1.0), (0, KEPT)):
            index = np.flatnonzero((labels == clicked) & (random.random(len(labels)) < share))
            part, prediction_id = rows.take(index), ids.new(start + at)
            # Both of a pair on one side: which predictions are held out must not thin one of the two labels here.
            while clicked == 0 and held_out(prediction_id, HOLDOUT) != held_out(told[-1], HOLDOUT):
                prediction_id = ids.new(start + at)
            told.append(prediction_id)
            record = PredictionRecord(
                prediction_id, start + at, "ranker", "stable", "teacher", 1, Features.from_rows(part),
                truth_of(part.ids).astype(np.float32), inclusion_probability=share,
            )  # fmt: skip
            records.append(pack(record))
            outcomes = [Outcome(i, float(clicked), final=True) for i in range(len(index))]
            feedback.append(FeedbackEntry(prediction_id, outcomes=outcomes, exposed_all=True))
    log.append_predictions(records)
    log.append_feedback(feedback, start + predictions)
    while log.join(start + predictions + 10):
        pass


def test_versions_learned_from_a_thinned_log_have_the_level_of_the_traffic(
    traffic: LocalTrafficLog, repository: Repository, tmp_path: Path
) -> None:
    thin_fill(traffic, 1800, seed=2)
    limits = GateLimits(logloss_margin=0.05, auc_margin=0.05, bias=0.02, min_positives=500)
    chosen = settings(tmp_path, batch_rows=1000, publish_batches=90, gate=limits, holdout=HOLDOUT)
    worker = Worker(chosen, traffic, repository, clock=HandClock())
    assert worker.step()
    everything, _ = rows_of(np.random.default_rng(99), 2_000)
    expected = truth_of(everything.ids).sum()
    for name in ("student", "teacher"):
        newest = repository.newest(name, verify=True)
        assert int(newest[-1].manifest.version) > 1, "it passed the gate"
        scores = probabilities(load(newest).calibrated_logits(everything), 1.0, 0.0)
        assert abs(scores.sum() / expected - 1) < 0.02
    figures = json.loads((tmp_path / "status" / "worker.json").read_text())["reports"]["student"]["figures"]
    rate = figures["positives"] / figures["rows"]
    assert rate > 0.7, "rows are counted as they are there"
    assert abs(figures["teacher_bias"]) < 0.1, "the truth is unbiased at the level of the traffic"
    assert abs(figures["bias"]) < 0.1
    worker.commit()
    again = Worker(chosen, traffic, repository, clock=HandClock())
    assert np.array_equal(again._held.stands_for, worker._held.stands_for)
    assert set(np.round(again._student.recent.stands_for).tolist()) == {1.0, 10.0}


def thinned(n: int, seed: int, error: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits that are off by `error`, labels and counts of a log that kept a tenth of the rows without a click."""
    random = np.random.default_rng(seed)
    truth = random.normal(-1.4, 1.0, n)
    labels = random.random(n) < 1 / (1 + np.exp(-truth))
    kept = labels | (random.random(n) < KEPT)
    counts = np.where(labels, 1.0, 1 / KEPT)[kept]
    return (truth[kept] + error).astype(np.float32), labels[kept].astype(np.float32), counts.astype(np.float32)


def test_the_calibration_of_thinned_rows_is_that_of_the_traffic() -> None:
    logits, labels, counts = thinned(400_000, 0, error=0.3)
    recent = Ring(200_000)
    recent.add(logits, labels, counts)
    window = window_for(Calibration(), recent)
    assert window == len(recent), "without drift all rows agree"
    held, _, own = thinned(20_000, 1, error=0.3)
    found = recalibrate(Calibration(), recent, window, held, held, own)
    assert found.beta == pytest.approx(-0.3, abs=0.03)
    few = Ring(50)
    few.add(logits[:50] + 2, labels[:50], counts[:50])
    assert abs(recalibrate(Calibration(), few, 50, held, held, own).beta) < 0.3, "little evidence moves little"


def test_a_state_of_an_earlier_release_counts_every_row_once() -> None:
    recent, held = Ring(4), HeldRows(4, ("student",))
    recent.add(*(np.ones(3, np.float32),) * 2, np.full(3, 10, np.float32))
    ids = np.ones((3, 1), np.int64)
    ones = np.ones(3, np.float32)
    held.add(Rows(ids, np.ones((3, 0), np.float32)), ones, {"student": ones}, 0, stands_for=10 * ones)
    for kept in (recent, held):
        assert (kept.stands_for == 10).all()
        kept.restore({name: value for name, value in kept.state().items() if name != "stands_for"})
        assert kept.stands_for.tolist() == [1, 1, 1]


def test_the_error_of_a_bias_is_that_of_many_thinned_logs() -> None:
    found, told = [], []
    for seed in range(200):
        logits, labels, counts = thinned(4_000, seed)
        scores = (1 / (1 + np.exp(-logits))).astype(np.float32)
        found.append(float(counts @ scores / (counts @ labels) - 1))
        told.append(bias_error_of(scores, labels, counts))
    assert np.std(found) == pytest.approx(np.mean(told), rel=0.2)


def test_a_thinned_stream_moves_no_weight_of_the_loss() -> None:
    def batch(seed: int, *, counted: bool) -> Seen:
        logits, labels, counts = thinned(3_000, seed)
        ids = np.random.default_rng(seed).integers(0, 1000, (len(labels), 2)) * 2_654_435_761
        none = np.empty(0, np.float32)
        seen = Seen(logits, logits, labels, ids, none, none, none, counts)
        return seen if counted else replace(seen, stands_for=none)

    settled = Adaptation(AdaptSettings(), 2)
    records = [settled.update(number, batch(number, counted=True)) for number in range(1, 200)]
    assert records[-1].alarms == 0
    assert abs(np.mean([r.level for r in records])) < 0.3
    assert np.std([r.level for r in records]) == pytest.approx(1.0, abs=0.25)
    # The same rows each counted once look like a model that is far off.
    assert Adaptation(AdaptSettings(), 2).update(1, batch(1, counted=False)).level > 10


def test_a_student_that_is_behind_on_the_traffic_leans_on_its_teacher() -> None:
    """On the rows as recorded the student looks better, since it says too much and most of them were clicked."""
    adaptation = Adaptation(AdaptSettings(teacher_weight=0.5), 2)
    none = np.empty(0, np.float32)
    for number in range(1, 60):
        logits, labels, counts = thinned(3_000, number)
        ids = np.zeros((len(labels), 2), np.int64)
        seen = Seen(logits + np.float32(1), logits, labels, ids, none, none, none, counts)
        record = adaptation.update(number, seen)
    assert record.student_loss is not None
    assert record.teacher_loss is not None
    assert record.student_loss > record.teacher_loss
    assert record.z > 0
