"""Arms with different fields behind one endpoint: a real lane, the shadow lane, both protocols and the labelled log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from handmade import SCHEMA, Reference, random_rows, random_table, random_tables, write_bundle
from installation import Installation, RunningLane, eventually, running, shadow_process, status

from pipeline.errors import InvalidInput
from pipeline.features import Bag, Features, Rows
from pipeline.hashing import hash_column, hash_value
from pipeline.model.probe import PROBED, ProbeLimits, Verdict, note
from pipeline.reading import read
from pipeline.schema import FieldSpec, Schema
from pipeline.traffic.log import FeedbackEntry
from serving.client import RankingClient
from serving.wiring.traffic import open_traffic_log
from transfer.online.stream import Fields, read_batches

NEW = (FieldSpec(name="brand", role="candidate"), FieldSpec(name="size", role="context", kind="number"))
STUDENT = Schema(fields=(NEW[0], *(f for f in SCHEMA.fields if f.name != "age"), NEW[1]))
"""Two fields more than the teacher, one fewer, and another order."""
JOINED = SCHEMA.joined(STUDENT)
N = 9


class World:
    """An endpoint of a teacher and a student with other fields, and what each should say."""

    def __init__(self, home: Path) -> None:
        self.made = Installation(home)
        self.tables = {**random_tables(1), "brand": random_table(np.random.default_rng(4), 50, 4, linear=True)}
        own = {f.name: self.tables[f.name] for f in STUDENT.embedded}
        bundle = write_bundle(self.made.repository, own, name="student", schema=STUDENT)
        limits = ProbeLimits(self.made.config.engine.load_timeout, self.made.config.engine.load_memory_bytes)
        note(self.made.config.segments / "student" / PROBED, bundle, limits, Verdict())
        self.made.set(weight=50)
        self.references = {
            "stable": (SCHEMA, Reference([self.made.repository.open("teacher", "1")])),
            "candidate": (STUDENT, Reference([self.made.repository.open("student", "2")])),
        }

    def features(self, seed: int, schema: Schema = JOINED) -> Features:
        rng = np.random.default_rng(seed)
        return Features.from_context(schema, random_rows(rng, N, self.tables, schema))

    def expected(self, arm: str, features: Features, schema: Schema = JOINED) -> np.ndarray:
        own, reference = self.references[arm]
        return reference.score(read(features, schema.columns, own).rows(own))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, RunningLane]]:
    made = World(tmp_path_factory.mktemp("fields") / "home")
    with running(made.made.config) as lane:
        yield made, lane
    made.made.store.close()


def test_each_arm_answers_as_it_would_alone_whatever_the_caller_sends(world: tuple[World, RunningLane]) -> None:
    made, lane = world
    with RankingClient(lane.target) as client:
        for schema in (JOINED, SCHEMA):
            for arm in ("stable", "candidate"):
                features = made.features(1, schema)
                answer = client.rank("ranker", schema, features, arm=arm)
                assert answer.arm == arm
                np.testing.assert_allclose(answer.scores, made.expected(arm, features, schema), atol=1e-6)
        with pytest.raises(InvalidInput, match="'age' is missing"):
            client.rank("ranker", STUDENT, made.features(1, STUDENT))
        for bundle, schema in (("teacher", SCHEMA), ("student", STUDENT)):  # by its own name, each as it was published
            own = client.rank(bundle, schema, made.features(2, schema))
            arm = "stable" if bundle == "teacher" else "candidate"
            np.testing.assert_allclose(own.scores, made.expected(arm, made.features(2, schema), schema), atol=1e-6)


@pytest.mark.parametrize("named", [False, True])
def test_open_inference_takes_the_fields_of_both_arms_or_those_of_stable(
    named: bool, world: tuple[World, RunningLane]
) -> None:
    made, lane = world
    with triton.InferenceServerClient(lane.target) as client:
        told = client.get_model_metadata("ranker")
        assert [tuple(i.shape) for i in told.inputs if i.name in ("ids", "numbers")] == [(-1, 3), (-1, 3)]
        for schema in (JOINED, SCHEMA):
            features = made.features(3, schema)
            rows = features.rows(schema)
            sent = _named(rows, schema) if named else _packed(rows, schema)
            for arm in ("stable", "candidate"):
                found = client.infer("ranker", _inputs(sent), parameters={"arm": arm}).as_numpy("score")
                wanted = made.expected(arm, _hashed(features, schema) if named else features, schema)
                np.testing.assert_allclose(found, wanted, atol=1e-6)
        stranger = {
            **_packed(made.features(3, SCHEMA).rows(SCHEMA), SCHEMA),
            "bag:colours": ("INT64", np.zeros((N, 1), np.int64)),
        }
        with pytest.raises(Exception, match="'bag:colours' is not known"):
            client.infer("ranker", _inputs(stranger))


def test_the_shadow_scores_both_ways_and_the_worker_learns_from_all_fields(world: tuple[World, RunningLane]) -> None:
    made, lane = world
    installation = made.made
    log = open_traffic_log(installation.config)
    with shadow_process(installation), RankingClient(lane.target) as client:
        eventually(lambda: status(installation, "shadow").get("lanes", 0) == 1, "the lane is connected")
        sent = {}
        for i in range(24):
            schema = (JOINED, SCHEMA)[i % 2]
            features = made.features(100 + i, schema)
            answer = client.rank("ranker", schema, features, routing_key=f"u{i}")
            sent[answer.prediction_id] = (features, schema, answer.arm)
        assert {arm for _, _, arm in sent.values()} == {"stable", "candidate"}
        eventually(lambda: _scored(installation) == 24, "all are scored")
    for prediction_id in sent:
        log.append_feedback([FeedbackEntry(prediction_id, exposed_all=True)], log.now_ms())
    log.join(log.now_ms() + 3 * log.window_ms)
    shown = [entry for entry in log.labelled(0) if len(entry.indices)]
    for entry in shown:
        features, schema, arm = sent[entry.prediction_id]
        (other,) = entry.other
        assert other.arm != arm
        np.testing.assert_allclose(other.scores, made.expected(other.arm, features, schema), atol=1e-6)
    fields = Fields(STUDENT, SCHEMA, {"teacher": SCHEMA, "student": STUDENT})
    (batch,) = read_batches(log, "ranker", fields, 0, rows=24 * N, holdout=0.0)
    by_request = [read(f, s.columns, STUDENT).rows(STUDENT) for f, s, _ in (sent[e.prediction_id] for e in shown)]
    np.testing.assert_array_equal(batch.train.rows.ids, np.concatenate([rows.ids for rows in by_request]))
    np.testing.assert_array_equal(batch.train.rows.numbers, np.concatenate([rows.numbers for rows in by_request]))
    np.testing.assert_allclose(
        batch.train.stable, made.references["stable"][1].score(batch.train.for_teacher), atol=1e-6
    )
    np.testing.assert_allclose(
        batch.train.candidate, made.references["candidate"][1].score(batch.train.rows), atol=1e-6
    )
    log.close()


def _scored(installation: Installation) -> int:
    """Predictions that the shadow lane has scored: at once, or later where its models were not loaded yet."""
    told = status(installation, "shadow")
    return int(told.get("scored", 0) + told.get("caught_up", 0))


def _packed(rows: Rows, schema: Schema) -> dict[str, tuple[str, np.ndarray]]:
    tensors = {
        "ids": ("INT64", np.ascontiguousarray(rows.ids)),
        "numbers": ("FP32", np.ascontiguousarray(rows.numbers)),
    }
    for field, bag in zip(schema.bags, rows.bags, strict=True):
        sizes = np.diff(bag.offsets)
        padded = np.zeros((N, max(1, int(sizes.max()))), np.int64)
        for at, size in enumerate(sizes):
            padded[at, :size] = bag.values[bag.offsets[at] : bag.offsets[at] + size]
        tensors[f"bag:{field.name}"] = ("INT64", padded)
    return tensors


def _named(rows: Rows, schema: Schema) -> dict[str, tuple[str, np.ndarray]]:
    """Raw values; the ids themselves stand for them."""
    tensors = {f.name: ("INT64", rows.ids[:, i]) for i, f in enumerate(schema.ids)}
    tensors |= {f.name: ("FP32", np.ascontiguousarray(rows.numbers[:, i])) for i, f in enumerate(schema.numbers)}
    return tensors | {f.name: ("BYTES", np.array([b"a"] * N, object)) for f in schema.bags}


def _hashed(features: Features, schema: Schema) -> Features:
    """What the server makes of `_named`."""
    rows = features.rows(schema)
    ids = np.stack([hash_column(f.name, rows.ids[:, i]) for i, f in enumerate(schema.ids)], 1)
    element = [np.full(N, hash_value(f.name, "a")) for f in schema.bags]
    bags = tuple(Bag(i, np.arange(N + 1, dtype=np.int32), values) for i, values in enumerate(element))
    return Features.from_rows(Rows(ids, rows.numbers, bags))


def _inputs(tensors: dict[str, tuple[str, np.ndarray]]) -> list[Any]:
    inputs = []
    for name, (datatype, values) in tensors.items():
        inputs.append(triton.InferInput(name, list(values.shape), datatype))
        inputs[-1].set_data_from_numpy(values)
    return inputs
