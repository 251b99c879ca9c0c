"""Requests of a batch are answered as each would be alone, whichever network each of them runs by."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.bundle.bundle import CONTEXT, WARMUP
from pipeline.bundle.footprint import memory_needed
from pipeline.bundle.versions import Repository
from pipeline.embedding.hierarchy.hierarchy import SEGMENT, Hierarchy
from pipeline.embedding.tier import Fault, Generation, Wanted
from pipeline.event import Event
from pipeline.features import Bag, Features, IdPart, Rows
from pipeline.inputs import KEPT_ROWS
from pipeline.model.model import Model
from pipeline.model.warmup import read_warmup, synthetic_requests
from pipeline.schema import FieldSpec, Schema
from pipeline.stages.embed import Embed
from pipeline.stages.infer import Infer
from transfer.bundles.publish import save
from transfer.click_model.model import ClickModel

SCHEMA = Schema(
    fields=(
        FieldSpec(name="user", role="context", kind="id"),
        FieldSpec(name="price", role="candidate", kind="number"),
        FieldSpec(name="tags", role="context", kind="bag", separator=","),
        FieldSpec(name="item", role="candidate", kind="id"),
        FieldSpec(name="age", role="context", kind="number", transform="log1p"),
        FieldSpec(name="genres", role="candidate", kind="bag", separator="|"),
    )
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Repository, Path]:
    folder = tmp_path_factory.mktemp("batches")
    repository = Repository(folder / "bundles")
    model = ClickModel.create(SCHEMA, "deepfm", 8, seed=1)
    for features in synthetic_requests(SCHEMA, (300,)):
        model.step(features.rows(SCHEMA), np.arange(300) % 2)
    save(model, repository, "m")
    return repository, folder / "segments"


@pytest.fixture(scope="module")
def model(place: tuple[Repository, Path]) -> Model:
    repository, segments = place
    loaded = Model.load(repository, "m", segments=segments, device="cpu")
    loaded.warm()
    return loaded


def rows_of(n: int, seed: int) -> Rows:
    return synthetic_requests(SCHEMA, (n,), seed)[0].rows(SCHEMA)


def request_of(n: int, shared: bool, seed: int) -> Features:
    rows = rows_of(n, seed)
    return Features.from_context(SCHEMA, rows) if shared else Features.from_rows(rows)


def broken(n: int) -> Features:
    """A request that no decoder would let through."""
    good = request_of(n, True, 0)
    ids = tuple(IdPart(p.columns, np.full(p.values.shape, "no number")) for p in good.ids)  # type: ignore[arg-type]
    return Features(n, ids, good.numbers, good.bags)


requests = st.lists(st.tuples(st.integers(1, 40), st.booleans(), st.integers(0, 9)), min_size=1, max_size=9)


@settings(deadline=None, max_examples=40)
@given(requests, st.integers(0, 8))
def test_a_batch_answers_each_request_as_if_alone(model: Model, asked: list[tuple[int, bool, int]], fault: int) -> None:
    features = [request_of(n, shared, seed) for n, shared, seed in asked]
    alone = [model.score(f) for f in features]
    events = [Event(model=model, features=f) for f in features]
    if fault < len(events):
        events[fault].features = broken(features[fault].n)
    Embed().run_batch(events)
    if live := [e for e in events if e.error is None]:
        Infer().run_batch(live)
    for place, (event, expected) in enumerate(zip(events, alone, strict=True)):
        assert (event.error is not None) == (place == fault)
        if event.error is None:
            assert event.scores is not None
            np.testing.assert_allclose(event.scores, expected, rtol=0, atol=1e-6)


def test_an_event_of_a_batch_may_be_run_singly_after_all(model: Model) -> None:
    features = [request_of(n, shared, n) for n in (3, 5, 7) for shared in (True, False)]
    alone = [model.score(f) for f in features]
    events = [Event(model=model, features=f) for f in features]
    Embed().run_batch(events)
    for event, expected in zip(events, alone, strict=True):
        Infer().run(event)
        np.testing.assert_allclose(event.scores, expected, rtol=0, atol=1e-6)


class Late:
    """A tier that never answers in time, and its source."""

    name = "far"

    def open(self, generation: Generation) -> Late:
        return self

    def find(self, wanted: Sequence[Wanted], mark: int, deadline: float) -> Fault | None:
        return "late"

    def offer(self, wanted: Sequence[Wanted], mark: int) -> None: ...

    def describe(self) -> Mapping[str, float | str]:
        return {}

    def close(self) -> None: ...


def test_an_answer_says_what_its_rows_lacked(model: Model, place: tuple[Repository, Path]) -> None:
    repository, segments = place
    late = Model.load(repository, "m", segments=segments, hierarchy=Hierarchy((Late(), SEGMENT)), device="cpu")
    events = [Event(model=late, features=request_of(n, True, n)) for n in (5, 20)]
    Embed().run_batch(events)
    Infer().run_batch(events)
    for event in events:
        assert event.degraded == ["embedding: far late"]
        assert event.features is not None
        np.testing.assert_allclose(event.scores, model.score(event.features), rtol=0, atol=1e-6)


def test_large_requests_leave_nothing_behind(model: Model) -> None:
    small, large = request_of(50, True, 1), request_of(KEPT_ROWS + 1, True, 2)
    before = model.score(small)
    first, again = model.score(large), model.score(large)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(model.score(small), before)
    room = model.embed(small).blocks[-1].embeddings.base
    assert room is not None
    assert len(room) < KEPT_ROWS


def test_an_empty_bag_of_the_context_is_nobody_elses(model: Model) -> None:
    """What an earlier request of the thread left in the shared rows must not shine through."""
    rows = rows_of(20, 3)
    empty = Rows(rows.ids, rows.numbers, (Bag(0, np.zeros(21, np.int32), np.zeros(0, np.int64)), rows.bags[1]))
    model.score(request_of(20, True, 4))
    once = Features.from_context(SCHEMA, empty)
    whole = model.score(Features.from_rows(once.rows(SCHEMA)))
    np.testing.assert_allclose(model.score(once), whole, rtol=0, atol=1e-6)


def test_a_bundle_without_its_split_network_serves_unsplit(place: tuple[Repository, Path], tmp_path: Path) -> None:
    repository, segments = place
    plain = Repository(tmp_path / "bundles")
    target = plain.path("m", "1")
    shutil.copytree(repository.path("m", "1"), target)
    manifest = json.loads((target / "manifest.json").read_text())
    for name in (CONTEXT, WARMUP):
        (target / name).unlink()
        del manifest["files"][name]
    (target / "manifest.json").write_text(json.dumps(manifest))
    unsplit = Model.load(plain, "m", segments=tmp_path / "segments", device="cpu")
    assert unsplit.split is None
    unsplit.warm()
    features = request_of(30, True, 5)
    split = Model.load(repository, "m", segments=segments, device="cpu")
    np.testing.assert_allclose(unsplit.score(features), split.score(features), rtol=0, atol=1e-6)
    assert memory_needed(plain, "m").private < memory_needed(repository, "m").private
    assert split.store.bytes <= memory_needed(repository, "m").shared


def test_warmup_requests_are_what_was_written(place: tuple[Repository, Path]) -> None:
    repository, _ = place
    found = read_warmup(repository.path("m", "1") / WARMUP, SCHEMA)
    for read, written in zip(found, synthetic_requests(SCHEMA), strict=True):
        read.check(SCHEMA)
        assert read.shares_context(SCHEMA)
        a, b = read.rows(SCHEMA), written.rows(SCHEMA)
        np.testing.assert_array_equal(a.ids, b.ids)
        np.testing.assert_array_equal(a.numbers, b.numbers)
        for left, right in zip(a.bags, b.bags, strict=True):
            np.testing.assert_array_equal(left.offsets, right.offsets)
            np.testing.assert_array_equal(left.values, right.values)
