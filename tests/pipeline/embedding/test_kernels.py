from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.embedding.kernels import IdIndex, build, capacity_for, find, splitmix64

ids = st.one_of(
    st.sampled_from([-1, 1, -(2**63), 2**63 - 1, 2, 3]), st.integers(-(2**63), 2**63 - 1).filter(lambda i: i != 0)
)


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.lists(st.one_of(ids, st.just(0)), max_size=60)), max_size=12))
def test_an_index_is_a_dict(steps: list[tuple[bool, list[int]]]) -> None:
    index, model = IdIndex(1), dict[int, int]()
    for insert, batch in steps:
        array = np.array(batch, np.int64)
        if insert:
            for i in batch:
                if i != 0:
                    model.setdefault(i, len(model))
            assert index.insert(array).tolist() == [model.get(i, -1) for i in batch]
        else:
            assert index.find(array).tolist() == [model.get(i, -1) for i in batch]
        assert len(index) == len(model)
        assert index.ids().tolist() == list(model)


def test_shapes_are_kept() -> None:
    index = IdIndex()
    batch = np.arange(1, 7, dtype=np.int64).reshape(2, 3)
    assert index.insert(batch).shape == (2, 3)
    np.testing.assert_array_equal(index.find(batch[:, ::-1]), [[2, 1, 0], [5, 4, 3]])


@settings(deadline=None)
@given(st.sets(ids, max_size=200), st.lists(ids, max_size=50))
def test_built_tables_find_what_was_put_in(held: set[int], asked: list[int]) -> None:
    order = list(held)
    cells = capacity_for(len(order))
    keys, slots = np.zeros(cells, np.int64), np.zeros(cells, np.uint32)
    build(np.array(order, np.int64), keys, slots)
    wanted = np.array([*order, *asked], np.int64)
    out = np.empty(len(wanted), np.int64)
    found = find(wanted, keys, slots, out)
    expected = [order.index(i) if i in held else -1 for i in wanted.tolist()]
    assert out.tolist() == expected
    assert found == sum(e >= 0 for e in expected)


@given(st.lists(st.integers(0, 2**64 - 1), unique=True, max_size=100))
def test_mixing_is_a_bijection(values: list[int]) -> None:
    with np.errstate(over="ignore"):
        mixed = [int(splitmix64(np.uint64(v))) for v in values]
    assert len(set(mixed)) == len(values)
