"""A small traffic log, two models that may learn from it, and the worker's settings, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.bundle.versions import Repository
from pipeline.features import Features, Rows
from pipeline.hashing import hash_value
from pipeline.schema import FieldSpec, Schema
from pipeline.traffic.local.log import LocalTrafficLog
from pipeline.traffic.log import FeedbackEntry, Outcome, Scores
from pipeline.traffic.prediction import PredictionIds
from pipeline.traffic.record import PredictionRecord, pack
from transfer.bundles.publish import save
from transfer.click_model.model import ClickModel
from transfer.online.adapt import AdaptSettings
from transfer.online.worker import WorkerSettings
from transfer.quality.gate import GateLimits

SCHEMA = Schema(
    fields=(
        FieldSpec(name="user", role="context"),
        FieldSpec(name="item", role="candidate"),
        FieldSpec(name="age", role="candidate", kind="number"),
    )
)
USERS = np.array([hash_value("user", i) for i in range(40)])
ITEMS = np.array([hash_value("item", i) for i in range(60)])
TASTE = np.random.default_rng(1).normal(0, 1.0, (40, 60))
PER_REQUEST = 20
KEY = bytes(32)


def draw(random: np.random.Generator) -> tuple[Rows, np.ndarray]:
    user = int(random.integers(40))
    items = random.integers(0, 60, PER_REQUEST)
    ids = np.stack([np.full(PER_REQUEST, USERS[user]), ITEMS[items]], 1)
    p = 1 / (1 + np.exp(1.2 - TASTE[user, items]))
    labels = (random.random(PER_REQUEST) < p).astype(np.float32)
    return Rows(ids, random.random((PER_REQUEST, 1), np.float32)), labels


def fill(
    log: LocalTrafficLog,
    requests: int,
    seed: int = 0,
    *,
    click: float = 1.0,
    stable: float = 0.25,
    number: float | None = None,
) -> None:
    """Requests answered by the stable arm, shown, labelled and joined. `click`: label of a click; `stable`: the arm's
    score; `number`: value of the first row's number."""
    random = np.random.default_rng(seed)
    ids = PredictionIds(KEY)
    start = 1_700_000_000_000 + seed * 10_000_000
    records, feedback, others = [], [], []
    for at in range(requests):
        rows, labels = draw(random)
        if number is not None:
            rows.numbers[0] = number
        features = Features.from_context(SCHEMA, rows)
        # Always the same, since the id decides which requests are held out.
        prediction_id = ids.derive(start + at, f"{seed}/{at}")
        scores = np.full(PER_REQUEST, stable, np.float32)
        records.append(
            pack(PredictionRecord(prediction_id, start + at, "ranker", "stable", "teacher", 1, features, scores))
        )
        outcomes = [Outcome(i, click * float(y), final=True) for i, y in enumerate(labels)]
        feedback.append(FeedbackEntry(prediction_id, outcomes=outcomes, exposed_all=True))
        others.append((prediction_id, Scores("candidate", "student", 1, scores)))
    log.append_predictions(records)
    log.append_scores(others)
    log.append_feedback(feedback, start + requests)
    while log.join(start + requests + 10):
        pass


def open_log(folder: Path) -> LocalTrafficLog:
    return LocalTrafficLog(folder / "traffic", PredictionIds(KEY), attribution_window_ms=1000)


def models(folder: Path) -> Repository:
    """A teacher that has seen some rows and a student that has seen fewer; both can learn on."""
    repository = Repository(folder / "bundles")
    random = np.random.default_rng(7)
    for name, arch, width, batches in (("teacher", "fm", 4, 200), ("student", "dnn", 8, 200)):
        model = ClickModel.create(SCHEMA, arch, width, seed=3)
        for _ in range(batches):
            parts = [draw(random) for _ in range(10)]
            rows = Rows(np.concatenate([p[0].ids for p in parts]), np.concatenate([p[0].numbers for p in parts]))
            model.step(rows, np.concatenate([p[1] for p in parts]))
        save(model, repository, name)
    return repository


def settings(folder: Path, **changes: object) -> WorkerSettings:
    values: dict[str, object] = {
        "endpoint": "ranker",
        "teacher": "teacher",
        "student": "student",
        "folder": folder / "worker",
        "segments": folder / "segments",
        "status": folder / "status" / "worker.json",
        "batch_rows": 200,
        "holdout": 0.2,
        "publish_interval": 0.0,
        "publish_batches": 5,
        "teacher_publish_interval": 0.0,
        "gate": GateLimits(0.05, 0.05, 0.2, min_positives=50),
        "adapt": AdaptSettings(every=3),
    }
    return WorkerSettings(**(values | changes))  # type: ignore[arg-type]
