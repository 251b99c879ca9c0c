"""Store over several tiers: rows are those of the version, whatever was cached, looked up, published and rolled back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from handmade import WIDTH, random_tables, write_bundle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.bundle.bundle import Bundle, Table
from pipeline.bundle.versions import Repository
from pipeline.clock import SystemClock
from pipeline.embedding.device.tier import DeviceSource
from pipeline.embedding.hierarchy.hierarchy import SEGMENT, Hierarchy
from pipeline.embedding.hierarchy.store import EmbeddingStore
from pipeline.embedding.hierarchy.tally import Tallied
from pipeline.embedding.tier import Fault, Generation, Tier, Wanted
from pipeline.errors import BundleError, NotFound
from pipeline.features import Bag, Features, IdPart
from pipeline.inputs import DenseInputs, Layout
from pipeline.schema import FieldSpec, Schema

ONE = Schema(fields=(FieldSpec(name="a", role="candidate", kind="id"),))
IDS = [-(2**63), -3, -1, 0, 1, 2, 3, 4, 5, 2**63 - 1]
DEFAULT_ROW = 0.25


def table(rows: Mapping[int, float]) -> Table:
    ids = np.array(sorted(rows), np.int64)
    values = np.array([rows[i] for i in ids.tolist()], np.float32)
    return Table(ids, np.repeat(values[:, None], WIDTH, 1), np.ones(len(ids), np.int64), values / 2)


MANY = dict.fromkeys(range(10000, 13000), 1.0)
"""Rows that nobody asks for, so that there is room for caches."""

some_rows = st.dictionaries(st.sampled_from(IDS[:3] + IDS[4:]), st.integers(1, 99).map(float), max_size=8)
actions = st.lists(
    st.one_of(
        st.tuples(st.just("delta"), some_rows),
        st.tuples(st.just("base"), some_rows),
        st.tuples(st.just("undo"), st.integers(0, 9)),
        st.tuples(st.just("ask"), st.lists(st.sampled_from(IDS), min_size=1, max_size=12)),
    ),
    min_size=3,
    max_size=14,
)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions, st.sampled_from([3, 12, 100]))
def test_a_version_has_its_own_rows_whatever_is_cached(
    tmp_path_factory: pytest.TempPathFactory, script: list[tuple[str, object]], capacity: int
) -> None:
    folder = tmp_path_factory.mktemp("hierarchy")
    repository = Repository(folder / "bundles")
    hierarchy = Hierarchy([DeviceSource(SystemClock(), rows=capacity), SEGMENT])
    chains: list[list[Bundle]] = []
    models: list[dict[int, float]] = []
    stores: list[EmbeddingStore] = []

    def publish(rows: Mapping[int, float], below: int | None) -> None:
        chain = [] if below is None else chains[below]
        more = (
            {"base": chain[0].manifest.version, "deltas": tuple(b.manifest.version for b in chain[1:])} if chain else {}
        )
        bundle = write_bundle(repository, {"a": table(rows)}, schema=ONE, **more)  # type: ignore[arg-type]
        chains.append([*chain, bundle])
        models.append({**({} if below is None else models[below]), **rows})
        stores.append(EmbeddingStore.open(chains[-1], folder / "segments", hierarchy))

    publish({1: 1.0, 2: 2.0}, None)
    current = 0
    for what, given_ in script:
        if what == "ask":
            asked = np.array(given_, np.int64)
            # The version that serves, and the first, which a request may still hold.
            for version in {current, 0}:
                got = stores[version].rows("a", asked)
                expected = [models[version].get(i, DEFAULT_ROW) for i in asked.tolist()]
                np.testing.assert_array_equal(got.rows, np.repeat(np.array(expected, np.float32)[:, None], WIDTH, 1))
                weights = [models[version][i] / 2 if i in models[version] else -0.5 for i in asked.tolist()]
                np.testing.assert_array_equal(got.weights, np.array(weights, np.float32))
                held = [tier != "default" for tier in got.tiers]
                assert held == [i in models[version] for i in asked.tolist()]
        elif what == "undo":
            assert isinstance(given_, int)
            current = given_ % len(stores)
        else:
            assert isinstance(given_, dict)
            publish(given_, current if what == "delta" else None)
            current = len(stores) - 1


def features_of(ids: list[int]) -> Features:
    return Features(len(ids), (IdPart(np.zeros(1, np.int32), np.array(ids, np.int64)[:, None]),))


def ask(store: EmbeddingStore, bundle: Bundle, ids: list[int]) -> list[str]:
    out = DenseInputs.zeros(Layout.full(bundle.manifest.model_schema), len(ids), linear=True)
    return store.lookup(features_of(ids), out)


def test_untouched_rows_stay_hits_over_versions(repository: Repository, segments: Path) -> None:
    base = write_bundle(repository, {"a": table(MANY | {i: float(i) for i in range(1, 101)})}, schema=ONE)
    hierarchy = Hierarchy([DeviceSource(SystemClock(), rows=2000), SEGMENT])
    first = EmbeddingStore.open([base], segments, hierarchy)
    ids = np.arange(1, 101, dtype=np.int64)
    assert set(first.rows("a", ids).tiers) == {"segment"}
    assert set(first.rows("a", ids).tiers) == {"device"}
    delta = write_bundle(repository, {"a": table({7: -7.0})}, schema=ONE, base="1")
    second = EmbeddingStore.open([base, delta], segments, hierarchy)
    got = second.rows("a", ids)
    assert [i for i, tier in zip(ids.tolist(), got.tiers, strict=True) if tier != "device"] == [7]
    assert got.rows[6].tolist() == [-7.0] * WIDTH
    assert first.rows("a", np.array([7])).rows[0].tolist() == [7.0] * WIDTH


def test_a_new_process_and_a_new_base_begin_with_the_hot_keys(repository: Repository, tmp_path: Path) -> None:
    ids = np.arange(1, 51, dtype=np.int64)
    for _ in range(2):
        write_bundle(repository, {"a": table(MANY | {i: float(i) for i in ids.tolist()})}, schema=ONE)
    bases = [repository.open("ranker", version) for version in ("1", "2")]

    def start() -> Hierarchy:
        return Hierarchy([DeviceSource(SystemClock(), rows=2000, folder=tmp_path / "hot"), SEGMENT])

    running = start()
    first = EmbeddingStore.open([bases[0]], tmp_path / "segments", running)
    first.rows("a", ids[:20])
    second = EmbeddingStore.open([bases[1]], tmp_path / "segments", running)
    assert second.rows("a", ids).tiers == ("device",) * 20 + ("segment",) * 30
    running.close()
    again = EmbeddingStore.open([bases[1]], tmp_path / "segments", start())
    assert again.rows("a", ids).tiers == ("device",) * 50
    for path in (tmp_path / "hot").rglob("*.keys"):
        path.write_bytes(b"torn")
    cold = EmbeddingStore.open([bases[1]], tmp_path / "segments", start())
    assert set(cold.rows("a", ids).tiers) == {"segment"}


class Remote:
    """A tier that is not local, as a store sees it: it has even ids of a version, or fails as told."""

    name = "remote"

    def __init__(self) -> None:
        self.fault: Fault | None = None
        self.opened: list[Generation] = []
        self.closed = 0
        self.deadlines: list[float] = []

    def open(self, generation: Generation) -> Tier:
        self.opened.append(generation)
        return self

    def find(self, wanted: Sequence[Wanted], mark: int, deadline: float) -> Fault | None:
        self.deadlines.append(deadline)
        if self.fault is None:
            for want in wanted:
                open_ids = (want.found == 0) | (want.found >= 128)
                for i in np.flatnonzero(open_ids & (want.keys % 2 == 0)).tolist():
                    want.rows[want.at[i] : want.at[i] + want.width] = 4.0
                    if len(want.linear):
                        want.linear[want.linear_at[i]] = 2.0
                    want.found[i] = mark
        return self.fault

    def offer(self, wanted: Sequence[Wanted], mark: int) -> None:
        pass

    def describe(self) -> Mapping[str, float | str]:
        return {}

    def close(self) -> None:
        self.closed += 1


class Hand:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def wall_ms(self) -> int:
        return round(1000 * self.now)


def test_without_segments_none_is_built_and_old_rows_are_served_when_nothing_else_can(
    repository: Repository, tmp_path: Path
) -> None:
    bundle = write_bundle(repository, {"a": table(MANY)}, schema=ONE)
    clock, remote = Hand(), Remote()
    hierarchy = Hierarchy([DeviceSource(clock, rows=2000, max_age=60.0), remote], budget=0.02, clock=clock)
    store = EmbeddingStore.open([bundle], tmp_path / "segments", hierarchy)
    assert not (tmp_path / "segments").exists()
    ids = np.arange(0, 100, dtype=np.int64)
    salted = store.rows("a", ids).tiers
    held = ids[[tier == "remote" for tier in salted]]
    assert 0 < len(held) < 100
    assert remote.deadlines[-1] == clock.now + 0.02
    assert set(store.rows("a", held).tiers) == {"device"}
    clock.now += 61 + 60 / 8
    remote.fault = "late"
    got = store.rows("a", held)
    assert set(got.tiers) == {"device"}
    assert got.stale.all()
    assert (got.rows == 4.0).all()
    assert ask(store, bundle, [int(held[0])]) == ["embedding: remote late"]
    counts = hierarchy.tally.read()
    assert counts[Tallied("ranker", "a", "device", "stale")] == len(held) + 1
    assert counts[Tallied("ranker", "a", "remote", "late")] == len(held) + 1
    remote.fault = None
    got = store.rows("a", held)
    assert set(got.tiers) == {"remote"}
    assert not got.stale.any()
    assert set(store.rows("a", held).tiers) == {"device"}
    store.close()
    assert remote.closed == 1


def test_counts_add_up_and_outlive_their_store(repository: Repository, segments: Path) -> None:
    bundle = write_bundle(repository, {"a": table({1: 1.0, 2: 2.0, 3: 3.0})}, schema=ONE)
    hierarchy = Hierarchy([DeviceSource(SystemClock(), rows=100), SEGMENT])
    store = EmbeddingStore.open([bundle], segments, hierarchy)
    assert ask(store, bundle, [1, 2, 3, 9]) == []
    assert ask(store, bundle, [1, 1, 9]) == []
    expected = {
        ("device", "hit"): 2, ("device", "miss"): 5, ("segment", "hit"): 3, ("segment", "miss"): 2, ("default", "hit"): 2,
    }  # fmt: skip
    for _ in range(2):
        counts = hierarchy.tally.read()
        assert {(k.tier, k.case): n for k, n in counts.items() if n} == expected
        del store
        store = EmbeddingStore.open([bundle], segments, hierarchy)
    assert store.counts().total() == 0


def test_a_tier_that_cannot_be_opened_leaves_none_open(repository: Repository, segments: Path) -> None:
    class Broken(Remote):
        def open(self, generation: Generation) -> Tier:
            raise BundleError("tables do not fit", "tables")

    bundle = write_bundle(repository, {"a": table({1: 1.0})}, schema=ONE)
    above = Remote()
    with pytest.raises(BundleError, match="do not fit"):
        EmbeddingStore.open([bundle], segments, Hierarchy([above, Broken(), SEGMENT]))
    assert above.closed == 1


def test_an_unknown_table_is_refused_by_name(repository: Repository, segments: Path) -> None:
    store = EmbeddingStore.open([write_bundle(repository, random_tables(1))], segments)
    with pytest.raises(NotFound, match="no table 'x'; the tables are"):
        store.rows("x", np.zeros(1, np.int64))


def test_bags_and_context_go_through_all_tiers(repository: Repository, segments: Path) -> None:
    schema = Schema(
        fields=(
            FieldSpec(name="a", role="context", kind="id"),
            FieldSpec(name="b", role="candidate", kind="bag", separator=","),
        )
    )
    tables = {"a": table({1: 2.0}), "b": table({1: 4.0, 2: 8.0})}
    bundle = write_bundle(repository, tables, schema=schema)
    store = EmbeddingStore.open([bundle], segments, Hierarchy([DeviceSource(SystemClock(), rows=50), SEGMENT]))
    bag = Bag(0, np.array([0, 2, 2, 3], np.int32), np.array([1, 2, 9], np.int64))
    features = Features(3, (IdPart(np.zeros(1, np.int32), np.array([[1]], np.int64)),), bags=(bag,))
    for _ in range(2):  # from below, then from the cache
        out = DenseInputs.zeros(Layout.full(bundle.manifest.model_schema), 3, linear=True)
        assert store.lookup(features, out) == []
        np.testing.assert_array_equal(out.blocks[0].embeddings[:, [0, WIDTH]], [[2, 6], [2, 0], [2, 0.25]])
        np.testing.assert_array_equal(out.blocks[0].linear, [[1, 3], [1, 0], [1, -0.5]])
    hits = {k.tier: n for k, n in store.counts().items() if k.case == "hit" and k.table == "b"}
    assert hits == {"device": 2, "segment": 2, "default": 2}
