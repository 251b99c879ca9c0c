from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from handmade import SCHEMA, WIDTH, Reference, random_rows, random_tables, write_bundle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.arrays import I64
from pipeline.bundle.bundle import Bundle, Table
from pipeline.bundle.versions import Repository
from pipeline.embedding.hierarchy.store import EmbeddingStore
from pipeline.errors import BundleError
from pipeline.features import Bag, Features, IdPart, Rows
from pipeline.inputs import Block, DenseInputs, Layout
from pipeline.schema import FieldSpec, Schema

PAIR = Schema(
    fields=(
        FieldSpec(name="a", role="context", kind="id"),
        FieldSpec(name="b", role="candidate", kind="id"),
        FieldSpec(name="c", role="candidate", kind="bag", separator=",", table="b"),
    )
)


def lookup(
    store: EmbeddingStore, schema: Schema, features: Features, linear: bool = True
) -> tuple[Block, Counter[str]]:
    """The whole block, and how many ids which tier had."""
    out = emptied(Layout.full(schema), features.n, linear)
    return out.blocks[0], fill(store, features, out)


def fill(store: EmbeddingStore, features: Features, out: DenseInputs) -> Counter[str]:
    before = store.counts()
    assert store.lookup(features, out) == []
    had: Counter[str] = Counter()
    for key, count in (store.counts() - before).items():
        if key.case == "hit":
            had[key.tier] += count
    return had


def emptied(layout: Layout, n: int, linear: bool = True, requests: int = 1) -> DenseInputs:
    """What an earlier request left behind must not shine through."""
    out = DenseInputs.zeros(layout, n, linear=linear, requests=requests)
    for block in out.blocks:
        block.embeddings[:], block.linear[:] = np.nan, np.nan
    return out


def table_of(rows: dict[int, float], width: int = WIDTH) -> Table:
    ids = np.array(sorted(rows), np.int64)
    values = np.array([rows[i] for i in ids.tolist()], np.float32)
    return Table(ids, np.repeat(values[:, None], width, 1), np.ones(len(ids), np.int64), values / 2)


small = st.dictionaries(
    st.sampled_from([-(2**63), -7, -1, 1, 2, 3, 2**63 - 1]), st.integers(-8, 8).map(float), max_size=7
)
asked = st.sampled_from([0, -(2**63), -7, -1, 1, 2, 3, 5, 2**63 - 1])


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(small, small), min_size=1, max_size=4),
    st.lists(st.tuples(asked, st.lists(asked.filter(lambda i: i != 0), max_size=3)), min_size=1, max_size=5),
    asked,
)
def test_a_store_is_a_stack_of_dicts(
    tmp_path_factory: pytest.TempPathFactory,
    generations: list[tuple[dict[int, float], dict[int, float]]],
    candidates: list[tuple[int, list[int]]],
    context: int,
) -> None:
    folder = tmp_path_factory.mktemp("store")
    repository = Repository(folder / "bundles")
    chain: list[Bundle] = []
    for a, b in generations:
        more = {"base": "1", "deltas": tuple(d.manifest.version for d in chain[1:])} if chain else {}
        tables = {"a": table_of(a), "b": table_of(b)}
        chain.append(write_bundle(repository, tables, schema=PAIR, **more))  # type: ignore[arg-type]
    store = EmbeddingStore.open(chain, folder / "segments")
    merged: list[dict[int, float]] = [{}, {}]
    for generation in generations:
        for into, rows in zip(merged, generation, strict=True):
            into.update(rows)
    n = len(candidates)
    bounds = np.cumsum([0, *(len(bag) for _, bag in candidates)]).astype(np.int32)
    features = Features(
        n,
        (
            IdPart(np.array([1], np.int32), np.array([[i] for i, _ in candidates], np.int64)),
            IdPart(np.array([0], np.int32), np.array([[context]], np.int64)),
        ),
        bags=(Bag(0, bounds, np.array([e for _, bag in candidates for e in bag], np.int64)),),
    )
    out, counts = lookup(store, chain[-1].manifest.model_schema, features)
    default, default_weight = 0.25, -0.5
    for i, (candidate, bag) in enumerate(candidates):
        for column, (held, elements) in enumerate(((merged[0], [context]), (merged[1], [candidate]), (merged[1], bag))):
            row = np.mean([held.get(e, default) for e in elements]) if elements else 0.0
            weight = np.mean([held[e] / 2 if e in held else default_weight for e in elements]) if elements else 0.0
            np.testing.assert_allclose(out.embeddings[i, column * WIDTH : (column + 1) * WIDTH], row, atol=1e-6)
            np.testing.assert_allclose(out.linear[i, column], weight, atol=1e-6)
    found = [e in merged[1] for i, bag in candidates for e in [i, *bag]] + [context in merged[0]]
    assert counts["default"] == found.count(False)
    assert counts["segment"] == found.count(True)


def test_an_id_in_two_tables_is_a_row_in_each(repository: Repository, segments: Path) -> None:
    bundle = write_bundle(repository, {"a": table_of({1: 2, 5: 3}), "b": table_of({1: 4})}, schema=PAIR)
    store = EmbeddingStore.open([bundle], segments)
    rows = Rows(
        np.array([[1, 1], [5, 5]], np.int64),
        np.zeros((2, 0), np.float32),
        (Bag(0, np.zeros(3, np.int32), np.zeros(0, np.int64)),),
    )
    out, counts = lookup(store, bundle.manifest.model_schema, Features.from_rows(rows))
    np.testing.assert_array_equal(out.embeddings[:, [0, WIDTH]], [[2, 4], [3, 0.25]])
    assert counts == {"segment": 3, "default": 1}


def test_tables_of_several_widths(repository: Repository, segments: Path) -> None:
    schema = Schema(
        fields=(
            FieldSpec(name="a", role="context", kind="id", width=3, table="a"),
            FieldSpec(name="b", role="candidate", kind="bag", separator=",", width=16, table="b", pooling="mean"),
            FieldSpec(name="c", role="candidate", kind="id", width=3, table="c"),
        )
    )
    tables = {"a": table_of({1: 2}, 3), "b": table_of({1: 4, 2: 6}, 16), "c": table_of({1: 5}, 3)}
    bundle = write_bundle(repository, tables, schema=schema)
    store = EmbeddingStore.open([bundle], segments)
    assert len(store.tiers) == 1
    rows = Rows(
        np.array([[1, 1], [1, 9]], np.int64),
        np.zeros((2, 0), np.float32),
        (Bag(0, np.array([0, 2, 3], np.int32), np.array([1, 2, 9], np.int64)),),
    )
    for features in (Features.from_rows(rows), Features.from_context(schema, rows)):
        out, counts = lookup(store, schema, features)
        wanted = [[2] * 3 + [5] * 16 + [5] * 3, [2] * 3 + [0.25] * 16 + [0.25] * 3]
        np.testing.assert_array_equal(out.embeddings, wanted)
        np.testing.assert_array_equal(out.linear, [[1, 2.5, 2.5], [1, -0.5, -0.5]])
        assert counts["default"] == 2


@pytest.mark.parametrize("linear", [True, False])
def test_any_layout_of_arrays(repository: Repository, segments: Path, linear: bool) -> None:
    tables = random_tables(1, linear=linear)
    bundle = write_bundle(repository, tables, linear=linear)
    store = EmbeddingStore.open([bundle], segments)
    schema = bundle.manifest.model_schema
    rows = random_rows(np.random.default_rng(1), 90, tables)
    vectors, weights = Reference([bundle]).embed(rows)
    unaligned = np.frombuffer(b"x" + rows.ids.tobytes(), np.uint8)[1:].view(np.int64).reshape(rows.ids.shape)
    layouts: list[I64] = [np.asfortranarray(rows.ids), unaligned, rows.ids[::-1][::-1]]
    for ids in layouts:
        out, _ = lookup(store, schema, Features.from_rows(Rows(ids, rows.numbers, rows.bags)), linear)
        np.testing.assert_allclose(out.embeddings, vectors, atol=1e-6)
        if linear:
            np.testing.assert_allclose(out.linear, weights, atol=1e-6)


def test_versions_share_their_base(repository: Repository, segments: Path) -> None:
    base = write_bundle(repository, random_tables(1))
    delta = write_bundle(repository, random_tables(2, 20), base="1")
    plain = EmbeddingStore.open([base], segments)
    stacked = EmbeddingStore.open([base, delta], segments)
    assert plain.bytes < stacked.bytes < 1.5 * plain.bytes
    (below,), (above,) = plain.describe(), stacked.describe()
    assert (below["segments"], above["segments"]) == (1, 2)
    assert above["rows"] > below["rows"]


def test_a_delta_of_another_schema_is_refused(repository: Repository, segments: Path) -> None:
    base = write_bundle(repository, random_tables(1, width=8), width=8)
    delta = write_bundle(repository, random_tables(2), base="1")
    with pytest.raises(BundleError, match="schema"):
        EmbeddingStore.open([base, delta], segments)


def test_no_rows_no_lookups(repository: Repository, segments: Path) -> None:
    bundle = write_bundle(repository, random_tables(1))
    store = EmbeddingStore.open([bundle], segments)
    assert lookup(store, SCHEMA.with_width(WIDTH), Features(0))[1].total() == 0


def test_the_split_layout_holds_the_same_values(repository: Repository, segments: Path) -> None:
    tables = random_tables(1)
    bundle = write_bundle(repository, tables)
    store = EmbeddingStore.open([bundle], segments)
    schema = bundle.manifest.model_schema
    rng = np.random.default_rng(2)
    requests = [Features.from_context(schema, random_rows(rng, n, tables)) for n in (1, 7, 30)]
    out = emptied(Layout.split(schema), 38, requests=3)
    start = 0
    for index, features in enumerate(requests):
        counts = fill(store, features, out.window(start, start + features.n, index))
        full, expected = lookup(store, schema, features)
        assert counts == expected
        context, candidates = (block.columns for block in out.blocks)
        for rows, columns in (
            (np.broadcast_to(out.blocks[0].embeddings[index], (features.n, context.widths[0])), context),
            (out.blocks[1].embeddings[start : start + features.n], candidates),
        ):
            for place, offset in enumerate(columns.offsets):
                if offset >= 0:
                    there = full.embeddings[:, place * WIDTH : (place + 1) * WIDTH]
                    np.testing.assert_array_equal(rows[:, offset : offset + WIDTH], there)
        weights = np.empty_like(full.linear)
        weights[:, context.places >= 0] = out.blocks[0].linear[index]
        weights[:, candidates.places >= 0] = out.blocks[1].linear[start : start + features.n]
        np.testing.assert_array_equal(weights, full.linear)
        start += features.n
