from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from handmade import SCHEMA, random_rows, random_tables
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InvalidInput
from pipeline.features import Bag, Features, IdPart, Rows, concat_rows

TABLES = random_tables(1, 20)


def rows_of(seed: int, n: int) -> Rows:
    return random_rows(np.random.default_rng(seed), n, TABLES)


def same(a: Rows, b: Rows) -> None:
    np.testing.assert_array_equal(a.ids, b.ids)
    np.testing.assert_array_equal(a.numbers, b.numbers)
    for left, right in zip(a.bags, b.bags, strict=True):
        assert left.column == right.column
        np.testing.assert_array_equal(left.offsets, right.offsets)
        np.testing.assert_array_equal(left.values, right.values)


@given(st.integers(0, 30), st.integers(0, 10))
def test_rows_survive_features(n: int, seed: int) -> None:
    rows = rows_of(seed, n)
    features = Features.from_rows(rows)
    assert features.n == n
    features.check(SCHEMA)
    same(features.rows(SCHEMA), rows)
    index = np.random.default_rng(seed).integers(0, n, 7) if n else np.zeros(0, np.int64)
    same(features.rows(SCHEMA, index), rows.take(index))


@given(st.integers(1, 30), st.integers(0, 10))
def test_context_is_kept_once_and_spread_again(n: int, seed: int) -> None:
    rows = rows_of(seed, n)
    features = Features.from_context(SCHEMA, rows)
    features.check(SCHEMA)
    assert sorted(len(p.values) for p in features.ids) == sorted([1, n])
    spread = features.rows(SCHEMA)
    np.testing.assert_array_equal(spread.ids[:, 0], np.repeat(rows.ids[0, 0], n))
    np.testing.assert_array_equal(spread.ids[:, 1], rows.ids[:, 1])
    np.testing.assert_array_equal(spread.numbers[:, 1], rows.numbers[:, 1])
    first = rows.bags[0].take(np.zeros(n, np.int64))
    np.testing.assert_array_equal(spread.bags[0].values, first.values)
    # Spreading and folding again changes nothing.
    same(Features.from_context(SCHEMA, spread).rows(SCHEMA), spread)
    index = np.arange(n)[::-1]
    same(features.rows(SCHEMA, index), spread.take(index))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5))
def test_chunks_below_each_other(sizes: list[int]) -> None:
    whole = rows_of(3, sum(sizes))
    ends = np.cumsum([0, *sizes])
    same(concat_rows([whole.slice(a, b) for a, b in pairwise(ends)]), whole)


def test_what_does_not_fit_is_refused_by_name() -> None:
    features = Features.from_rows(rows_of(1, 3))
    (ids,), (numbers,), bags = features.ids, features.numbers, features.bags
    user = IdPart(ids.columns[:1], np.ascontiguousarray(ids.values[:, :1]))
    infinite = numbers.values.copy()
    infinite[2, 1] = -np.inf
    torn = Bag(1, bags[1].offsets, bags[1].values[:-1])
    falling = Bag(1, np.array([0, 2, 1, len(bags[1].values)], np.int32), bags[1].values)
    cases = [
        (replace(features, ids=(user,)), "'item' is missing"),
        (replace(features, ids=(ids, user)), "'user' is given twice"),
        (replace(features, ids=()), "'user' is missing"),
        (replace(features, ids=(replace(ids, columns=np.array([0, 2], np.int32)),)), "'item' is missing"),
        (replace(features, ids=(replace(ids, columns=np.array([-2, 1], np.int32)),)), "'user' is missing"),
        (replace(features, ids=(replace(ids, values=ids.values[:, :1]),)), "2 columns were named"),
        (replace(features, ids=(replace(ids, values=ids.values[:2]),)), "2 rows where 3 candidates"),
        (replace(features, bags=bags[:1]), "'genres' is missing"),
        (replace(features, bags=(bags[0], torn)), "'genres'"),
        (replace(features, bags=(bags[0], falling)), "'genres'"),
        (replace(features, numbers=(replace(numbers, values=infinite),)), "'price' is infinite"),
    ]
    for broken, message in cases:
        with pytest.raises(InvalidInput, match=message):
            broken.check(SCHEMA)
    features.check(SCHEMA)
