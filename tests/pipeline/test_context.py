"""Context that came once per candidate is kept once, part by part or as a whole; the rows stay the same."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.arrays import F32, I64
from pipeline.context import context_once
from pipeline.features import Bag, Features, Rows
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


def rows_of(ids: I64, numbers: F32) -> Features:
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


ROLES = st.sampled_from(["context", "candidate"])


@st.composite
def requests(draw: st.DrawFn) -> tuple[Schema, Rows, bool]:
    """A schema, rows of it, and whether they were made to agree in the context."""
    roles = {kind: draw(st.lists(ROLES, max_size=4)) for kind in ("id", "number", "bag")}
    fields = [
        FieldSpec(name=f"{kind}{i}", role=role, kind=kind, separator="," if kind == "bag" else None)
        for kind, mine in roles.items()
        for i, role in enumerate(mine)
    ] or [FieldSpec(name="id0", role="candidate")]
    schema = Schema(fields=tuple(fields))
    n = draw(st.integers(1, 6))
    agree = draw(st.booleans())
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    ids = rng.integers(0, 3, (n, len(schema.ids)))
    numbers = rng.choice(np.array([0.0, -0.0, 1.5, np.nan], np.float32), (n, len(schema.numbers)))
    sizes = [rng.integers(0, 3, n) for _ in schema.bags]
    bags = [np.split(rng.integers(1, 3, int(size.sum())), np.cumsum(size)[:-1]) for size in sizes]
    if agree:
        ids[:, _context(schema.ids)] = ids[:1, _context(schema.ids)]
        numbers[:, _context(schema.numbers)] = numbers[:1, _context(schema.numbers)]
        for column in _context(schema.bags):
            bags[column] = [bags[column][0]] * n
    ragged = tuple(
        Bag(column, np.cumsum([0, *map(len, rows)]).astype(np.int32), np.concatenate(rows).astype(np.int64))
        for column, rows in enumerate(bags)
    )
    return schema, Rows(ids, numbers, ragged), agree


def _context(fields: tuple[FieldSpec, ...]) -> list[int]:
    return [i for i, f in enumerate(fields) if f.role == "context"]


def whole(schema: Schema, rows: Rows) -> Features:
    return context_once(Features.from_rows(rows), schema, whole=True)


@given(requests())
def test_rows_stay_what_they_are(request: tuple[Schema, Rows, bool]) -> None:
    schema, rows, agree = request
    features = whole(schema, rows)
    features.check(schema)
    again = features.rows(schema)
    assert again.ids.tobytes() == rows.ids.tobytes()
    assert again.numbers.tobytes() == rows.numbers.tobytes()
    for found, bag in zip(again.bags, rows.bags, strict=True):
        assert (found.offsets == bag.offsets).all()
        assert (found.values == bag.values).all()
    if agree and len(rows) > 1:
        assert features.shares_context(schema)


def test_one_row_that_differs_keeps_them_together() -> None:
    schema = Schema(
        fields=(
            FieldSpec(name="user", role="context"),
            FieldSpec(name="age", role="context", kind="number"),
            FieldSpec(name="seen", role="context", kind="bag", separator=","),
            FieldSpec(name="item", role="candidate"),
        )
    )
    same = Rows(
        np.array([[7, 1], [7, 2], [7, 3]]),
        np.full((3, 1), np.nan, np.float32),
        (Bag(0, np.array([0, 2, 4, 6], np.int32), np.array([1, 2, 1, 2, 1, 2])),),
    )
    assert _rows_of(whole(schema, same)) == [1, 3, 1, 1]
    other_user = Rows(np.array([[7, 1], [7, 2], [8, 3]]), same.numbers, same.bags)
    other_age = Rows(same.ids, np.array([[np.nan], [np.nan], [3.0]], np.float32), same.bags)
    other_bag = Rows(same.ids, same.numbers, (Bag(0, same.bags[0].offsets, np.array([1, 2, 1, 2, 2, 1])),))
    longer_bag = Rows(
        same.ids, same.numbers, (Bag(0, np.array([0, 2, 4, 7], np.int32), np.array([1, 2, 1, 2, 1, 2, 2])),)
    )
    for rows in (other_user, other_age, other_bag, longer_bag):
        assert _rows_of(whole(schema, rows)) == [3, 3, 3]


def test_rows_that_lie_anyhow_in_memory() -> None:
    schema = Schema(fields=(FieldSpec(name="user", role="context"), FieldSpec(name="item", role="candidate")))
    raw = np.array([[5, 1], [5, 2]]).tobytes()
    shifted = np.frombuffer(b"x" + raw, np.int64, offset=1).reshape(2, 2)
    assert not shifted.flags.aligned
    assert not shifted.flags.writeable
    features = whole(schema, Rows(shifted, np.empty((2, 0), np.float32)))
    assert [part.values.tolist() for part in features.ids] == [[[5]], [[1], [2]]]


def _rows_of(features: Features) -> list[int]:
    return [len(p.values) for p in (*features.ids, *features.numbers)] + [b.rows for b in features.bags]
