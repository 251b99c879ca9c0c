"""Context that came once per candidate is kept once, and nothing else changes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from pipeline.context import context_once
from pipeline.features import Features, Rows
from pipeline.schema import FieldSpec, Schema

SCHEMA = Schema(
    fields=(
        FieldSpec(name="user", role="context", kind="id"),
        FieldSpec(name="item", role="candidate", kind="id"),
        FieldSpec(name="hour", role="context", kind="number"),
        FieldSpec(name="place", role="context", kind="id"),
        FieldSpec(name="price", role="candidate", kind="number"),
    )
)


def rows_of(ids: npt.NDArray[np.int64], numbers: npt.NDArray[np.float32]) -> Features:
    return Features.from_rows(Rows(ids, numbers))


def same(one: Features, other: Features) -> None:
    mine, theirs = one.rows(SCHEMA), other.rows(SCHEMA)
    np.testing.assert_array_equal(mine.ids, theirs.ids)
    np.testing.assert_array_equal(mine.numbers, theirs.numbers)


@given(st.integers(1, 20), st.booleans(), st.booleans(), st.integers(0, 2**32 - 1))
def test_rows_are_the_same_whatever_is_shared(n: int, ids_shared: bool, numbers_shared: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    ids = rng.integers(-3, 3, (n, 3))
    numbers = rng.choice(np.array([0.0, 1.5, np.nan], np.float32), (n, 2))
    if ids_shared:
        ids[:, [0, 2]] = ids[0, [0, 2]]
    if numbers_shared:
        numbers[:, 0] = numbers[0, 0]
    features = rows_of(ids, numbers)
    once = context_once(features, SCHEMA)
    once.check(SCHEMA)
    same(features, once)
    if n > 1 and ids_shared and numbers_shared:
        assert once.shares_context(SCHEMA)


def test_a_context_that_differs_stays_as_it_came() -> None:
    ids = np.array([[1, 5, 9], [1, 6, 8]])
    features = rows_of(ids, np.array([[1.0, 2.0], [2.0, 2.0]], np.float32))
    assert context_once(features, SCHEMA) is features


def test_what_has_come_once_is_not_looked_at() -> None:
    rows = Rows(np.array([[1, 5, 9], [1, 6, 9]]), np.array([[1.0, 2.0], [1.0, 3.0]], np.float32))
    features = Features.from_context(SCHEMA, rows)
    same(features, context_once(features, SCHEMA))
    assert [len(part.values) for part in context_once(features, SCHEMA).ids] == [1, 2]


def test_missing_numbers_are_equal_to_each_other() -> None:
    features = rows_of(np.array([[1, 5, 9], [1, 6, 9]]), np.array([[np.nan, 2.0], [np.nan, 3.0]], np.float32))
    assert context_once(features, SCHEMA).shares_context(SCHEMA)
