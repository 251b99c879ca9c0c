"""Rows whose context agrees are taken apart from it; whatever becomes of them, they are the same rows."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.features import Bag, Features, Rows
from pipeline.schema import FieldSpec, Schema
from pipeline.shared_context import ContextFinder

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


@given(requests())
def test_rows_stay_what_they_are(request: tuple[Schema, Rows, bool]) -> None:
    schema, rows, agree = request
    features = ContextFinder(schema).features(rows)
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
    find = ContextFinder(schema).features
    assert _rows_of(find(same)) == [1, 3, 1, 1]
    other_user = Rows(np.array([[7, 1], [7, 2], [8, 3]]), same.numbers, same.bags)
    other_age = Rows(same.ids, np.array([[np.nan], [np.nan], [3.0]], np.float32), same.bags)
    other_bag = Rows(same.ids, same.numbers, (Bag(0, same.bags[0].offsets, np.array([1, 2, 1, 2, 2, 1])),))
    longer_bag = Rows(
        same.ids, same.numbers, (Bag(0, np.array([0, 2, 4, 7], np.int32), np.array([1, 2, 1, 2, 1, 2, 2])),)
    )
    for rows in (other_user, other_age, other_bag, longer_bag):
        assert _rows_of(find(rows)) == [3, 3, 3]


def test_rows_that_lie_anyhow_in_memory() -> None:
    schema = Schema(fields=(FieldSpec(name="user", role="context"), FieldSpec(name="item", role="candidate")))
    raw = np.array([[5, 1], [5, 2]]).tobytes()
    shifted = np.frombuffer(b"x" + raw, np.int64, offset=1).reshape(2, 2)
    assert not shifted.flags.aligned
    assert not shifted.flags.writeable
    features = ContextFinder(schema).features(Rows(shifted, np.empty((2, 0), np.float32)))
    assert [part.values.tolist() for part in features.ids] == [[[5]], [[1], [2]]]


def _rows_of(features: Features) -> list[int]:
    return [len(p.values) for p in (*features.ids, *features.numbers)] + [b.rows for b in features.bags]
