"""Segments compared with a plain dict: any width, dtype and key, several versions on top of each other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from handmade import EXTREME, random_tables, write_bundle
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.arrays import F32, I64
from pipeline.bundle.bundle import Bundle, Table
from pipeline.bundle.row_format import RowFormat
from pipeline.bundle.versions import Repository
from pipeline.embedding.segment.file import Segment
from pipeline.embedding.segment.generations import ensure_segment, open_stack
from pipeline.embedding.segment.tier import SegmentTier
from pipeline.embedding.tier import DEFAULT_STATUS, STALE_STATUS, Wanted, salt_of
from pipeline.errors import BundleError
from pipeline.schema import FieldSpec, Schema

MARK = 3


def ask(stacks: Sequence[Sequence[Segment]], keys: I64, width: int, *, linear: bool) -> Wanted:
    """Look keys up, destinations in reverse order and apart, so that a row written elsewhere is seen."""
    m = len(keys)
    want = Wanted(
        group=0,
        width=width,
        keys=keys,
        at=np.ascontiguousarray(np.arange(m)[::-1] * (width + 3)),
        rows=np.full(m * (width + 3), 7, np.float32),
        linear_at=np.ascontiguousarray(np.arange(m)[::-1] * 2),
        linear=np.full(2 * m if linear else 0, 7, np.float32),
        found=np.zeros(m, np.uint8),
    )
    assert SegmentTier(stacks).find([want], MARK, 0.0) is None
    return want


def check(want: Wanted, truth: dict[int, tuple[F32, float]]) -> None:
    """Every key that is held has its row and mark, every other nothing, and no other element was written."""
    rows, linear = want.rows.copy(), want.linear.copy()
    for i, key in enumerate(want.keys.tolist()):
        at = int(want.at[i])
        if key in truth:
            assert want.found[i] == MARK
            np.testing.assert_array_equal(rows[at : at + want.width], truth[key][0])
            rows[at : at + want.width] = 7
            if len(linear):
                assert linear[want.linear_at[i]] == np.float32(truth[key][1])
                linear[want.linear_at[i]] = 7
        else:
            assert want.found[i] == 0
    assert (rows == 7).all()
    assert (linear == 7).all()


def held(bundles: Sequence[Bundle], width: int) -> dict[int, tuple[F32, float]]:
    """Key -> row and weight, later bundles over earlier ones."""
    truth = {}
    for bundle in bundles:
        for name, info in bundle.manifest.tables.items():
            if info.width == width:
                table = bundle.table(name)
                weights = np.zeros(len(table.ids), np.float32) if table.linear is None else table.linear
                for i, row, weight in zip(table.ids.tolist(), table.rows, weights.tolist(), strict=True):
                    truth[i ^ salt_of(name)] = (row, weight)
    return truth


def table_of(ids: I64, width: int, *, linear: bool, seed: int = 0) -> Table:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(len(ids), width)).astype(np.float32)
    return Table(
        ids, rows, np.ones(len(ids), np.int64), rng.normal(size=len(ids)).astype(np.float32) if linear else None
    )


ONE = Schema(fields=(FieldSpec(name="t", role="candidate", kind="id"),))


@pytest.mark.parametrize("stored", ["float32", "float16", "int8"])
@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("width", [1, 8, 16, 64])
def test_rows_of_any_format_within_1_7_times_their_raw_bytes(
    repository: Repository, segments: Path, width: int, linear: bool, stored: RowFormat
) -> None:
    ids = np.unique(np.random.default_rng(1).integers(-(2**63), 2**63 - 1, 4_000, np.int64))
    table = table_of(ids, width, linear=linear)
    write_bundle(repository, {"t": table}, schema=ONE, width=width, linear=linear, stored=stored)
    write_bundle(repository, {"t": table}, schema=ONE, width=width, linear=linear, stored=stored, base="1")
    item = {"float32": 4, "float16": 2, "int8": 1}[stored]
    raw = len(ids) * (8 + item * width + 4 * (stored == "int8") + 4 * linear)
    rng = np.random.default_rng(2)
    for version in "1", "2":  # a delta has a filter as well
        bundle = repository.open("ranker", version)
        segment = ensure_segment(segments, [bundle], width)
        assert segment.bytes <= 1.7 * raw
        assert sum(p.stat().st_size for p in segment.path.iterdir()) <= 1.7 * raw + 4096
        keys = np.concatenate([ids ^ salt_of("t"), rng.integers(-(2**63), 2**63 - 1, 500, np.int64)])
        check(ask([[segment]], rng.permutation(keys), width, linear=linear), held([bundle], width))


def test_tables_of_different_dtypes_share_a_segment_of_float32(repository: Repository, segments: Path) -> None:
    tables = random_tables(3)
    formats: dict[str, RowFormat] = {"user": "int8", "tags": "float16", "item": "float32", "genres": "int8"}
    bundle = write_bundle(repository, tables, stored=formats)
    segment = ensure_segment(segments, [bundle], 4)
    truth = held([bundle], 4)
    check(ask([[segment]], np.array(list(truth), np.int64), 4, linear=True), truth)


def test_what_is_closed_is_left_alone_and_what_is_stale_is_replaced(repository: Repository, segments: Path) -> None:
    table = table_of(np.arange(1, 9, dtype=np.int64), 4, linear=False)
    bundle = write_bundle(repository, {"t": table}, schema=ONE, width=4, linear=False)
    tier = SegmentTier([[ensure_segment(segments, [bundle], 4)]])
    found = np.array([0, 1, DEFAULT_STATUS, STALE_STATUS | 1, STALE_STATUS, 0], np.uint8)
    keys = np.array([1, 2, 3, 4, 99, 100], np.int64) ^ salt_of("t")
    rows = np.zeros(24, np.float32)
    none = np.zeros(0, np.int64)
    want = Wanted(0, 4, keys, np.arange(0, 24, 4), rows, none, np.zeros(0, np.float32), found)
    tier.find([want], MARK, 0.0)
    assert found.tolist() == [MARK, 1, DEFAULT_STATUS, MARK, STALE_STATUS, 0]
    np.testing.assert_array_equal(rows.reshape(6, 4)[[0, 3]], table.rows[[0, 3]])
    assert not rows.reshape(6, 4)[[1, 2, 4, 5]].any()


IDS = st.one_of(st.sampled_from([*EXTREME.tolist(), salt_of("t"), ~salt_of("t")]), st.integers(-(2**63), 2**63 - 1))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(IDS, max_size=40), min_size=1, max_size=6), st.lists(IDS, max_size=20))
def test_newer_versions_hide_older_ones_whatever_the_ids(
    tmp_path_factory: pytest.TempPathFactory, versions: list[list[int]], others: list[int]
) -> None:
    home = tmp_path_factory.mktemp("stack")
    repository = Repository(home / "bundles")
    for number, ids in zip(count(), versions, strict=False):
        # The id salt_of("t") has the key 0, which is legal like any other.
        unique = np.unique(np.array([i for i in ids if i != 0], np.int64))
        deltas = {"base": "1", "deltas": tuple(str(v) for v in range(2, number + 1))} if number else {}
        table = table_of(unique, 4, linear=True, seed=number)
        write_bundle(repository, {"t": table}, schema=ONE, width=4, **deltas)  # type: ignore[arg-type]
    asked = np.array([i for ids in (*versions, others) for i in ids] + [salt_of("t")], np.int64) ^ salt_of("t")
    for version in repository.versions("ranker"):
        chain = repository.chain(repository.open("ranker", version))
        stack = open_stack(home / "segments", chain, 4)
        check(ask([[*stack.deltas, stack.base]], asked, 4, linear=True), held(chain, 4))
        merged = ensure_segment(home / "merged", chain, 4)
        assert len(merged) == len(held(chain, 4))
        check(ask([[merged]], asked, 4, linear=True), held(chain, 4))


def test_many_partitions_of_many_tables(repository: Repository, segments: Path) -> None:
    rng = np.random.default_rng(5)
    schema = Schema(fields=tuple(FieldSpec(name=f"f{i}", role="candidate", kind="id") for i in range(5)))
    ids = np.unique(rng.integers(-(2**63), 2**63 - 1, 60_000, np.int64))
    tables = {f"f{i}": table_of(ids, 2, linear=False, seed=i) for i in range(5)}
    bundle = write_bundle(repository, tables, schema=schema, width=2, linear=False)
    segment = ensure_segment(segments, [bundle], 2)
    assert segment.meta.partitions == 3
    assert len(segment) == 5 * len(ids)
    for name, table in tables.items():
        want = ask([[segment]], ids ^ salt_of(name), 2, linear=False)
        assert (want.found == MARK).all()
        np.testing.assert_array_equal(want.rows.reshape(-1, 5)[::-1, :2], table.rows)


def test_tables_whose_ids_collide_are_refused(repository: Repository, segments: Path) -> None:
    schema = Schema(fields=tuple(FieldSpec(name=n, role="candidate", kind="id") for n in "ab"))
    other = np.array([5 ^ salt_of("a") ^ salt_of("b")], np.int64)
    tables = {
        "a": table_of(np.array([5], np.int64), 4, linear=False),
        "b": table_of(other, 4, linear=False),
    }
    bundle = write_bundle(repository, tables, schema=schema, linear=False)
    with pytest.raises(BundleError, match="collide"):
        ensure_segment(segments, [bundle], 4)
    assert not [p for p in segments.iterdir() if p.is_dir()]
