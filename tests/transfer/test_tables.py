import numpy as np
import pytest

from pipeline.bundle import Table
from pipeline.errors import InvalidInput
from pipeline.features import Bag, Rows
from pipeline.schema import FieldSpec, Schema
from transfer.tables import Tables, TableSettings

SCHEMA = Schema(
    fields=(
        FieldSpec(name="user", role="context"),
        FieldSpec(name="tags", role="candidate", kind="bag", separator=","),
        FieldSpec(name="item", role="candidate"),
    )
).with_width(3)


def tables(**settings) -> Tables:
    return Tables(SCHEMA, 3, linear=True, settings=TableSettings(**settings), seed=5)


def rows(ids, bags) -> Rows:
    offsets = np.cumsum([0, *map(len, bags)]).astype(np.int32)
    values = np.array([v for bag in bags for v in bag], np.int64)
    return Rows(np.array(ids, np.int64), np.zeros((len(ids), 0), np.float32), (Bag(0, offsets, values),))


BATCH = rows([[1, 2], [1, 3], [4, 2]], [[7, 8], [], [7]])


def test_gather_pools_and_falls_back_to_the_default():
    t = tables()
    t.lookup(BATCH, create=True)
    t.default[t.names.index("item")] = [9, 8, 7]
    t.default_linear[t.names.index("item")] = 0.5
    out, linear = t.gather(t.lookup(rows([[1, 999], [4, 0]], [[7, 8], []]), create=False))
    row = {int(i): t.rows[s] for s, i in enumerate(t.ids[: len(t)])}
    np.testing.assert_array_equal(out[0, 0], row[1])
    np.testing.assert_allclose(out[0, 1], (row[7] + row[8]) / 2, rtol=1e-6)
    np.testing.assert_array_equal(out[:, 2], [[9, 8, 7]] * 2)
    np.testing.assert_array_equal(out[1, 1], 0)
    np.testing.assert_array_equal(linear[:, 2], 0.5)
    assert len(t) == 6  # looking up made no row


def test_new_rows_depend_on_id_and_seed_not_on_order():
    a, b = tables(), tables()
    a.lookup(BATCH, create=True)
    b.lookup(rows([[4, 3]], [[8]]), create=True)
    b.lookup(BATCH, create=True)
    for name in a.names:
        np.testing.assert_array_equal(a.export(name).ids, b.export(name).ids)
        np.testing.assert_array_equal(a.export(name).rows, b.export(name).rows)
    assert np.abs(a.rows).max() > 0


def test_one_id_in_two_tables_is_two_rows():
    t = tables()
    t.lookup(rows([[6, 6]], [[6]]), create=True)
    assert len(t) == 3
    assert [t.export(n).ids.tolist() for n in t.names] == [[6], [6], [6]]


@pytest.mark.parametrize("optimiser", ["adagrad", "adam"])
def test_step_matches_a_dense_oracle(optimiser):
    t = tables(optimiser=optimiser, rate=0.1, linear_rate=0.2, initial_square=0.5)
    lookup = t.lookup(BATCH, create=True)
    before, rng = t.rows.copy(), np.random.default_rng(0)
    grad = rng.standard_normal((3, 3, 3)).astype(np.float32)
    linear_grad = rng.standard_normal((3, 3)).astype(np.float32)
    t.collect(lookup, grad, linear_grad, now=3)
    t.apply(2.0)
    total = np.zeros_like(before)
    weight = np.zeros(len(before), np.float32)
    slot = {int(i): s for s, i in enumerate(t.ids[: len(t)])}
    for i, (user, item) in enumerate(BATCH.ids.tolist()):
        for name, column in ((user, 0), (item, 2)):
            total[slot[name]] += grad[i, column]
            weight[slot[name]] += linear_grad[i, column]
    for i, bag in enumerate([[7, 8], [], [7]]):
        for name in bag:
            total[slot[name]] += grad[i, 1] / len(bag)
            weight[slot[name]] += linear_grad[i, 1] / len(bag)
    total, weight = total * 2, weight * 2
    if optimiser == "adagrad":
        move = 0.1 * total / np.sqrt(0.5 + (total**2).mean(1, keepdims=True))
        linear_move = 0.2 * weight / np.sqrt(0.5 + weight**2)
    else:  # the first step of Adam: momentum over deviation, both unbiased
        move = 0.1 * total / np.sqrt((total**2).mean(1, keepdims=True))
        linear_move = 0.2 * np.sign(weight)
    np.testing.assert_allclose(t.rows, before - move, atol=1e-5)
    np.testing.assert_allclose(t.weights, -linear_move, atol=1e-5)
    assert dict(zip(t.ids[: len(t)].tolist(), t.counts.tolist(), strict=False)) == {1: 2, 2: 2, 3: 1, 4: 1, 7: 2, 8: 1}


def test_only_touched_rows_are_reported_and_only_once():
    t = tables()
    lookup = t.lookup(BATCH, create=True)
    t.collect(lookup, np.ones((3, 3, 3), np.float32), None, 0)
    t.apply()
    assert sorted(t.ids[t.take_touched()].tolist()) == [1, 2, 3, 4, 7, 8]
    assert len(t.take_touched()) == 0
    t.collect(t.lookup(rows([[1, 2]], [[]]), create=True), np.ones((1, 3, 3), np.float32), None, 0)
    t.apply()
    slots = t.take_touched()
    assert sorted(t.ids[slots].tolist()) == [1, 2]
    t.put_back(slots)
    np.testing.assert_array_equal(t.touched(), slots)


def test_tables_grow_and_keep_their_rows():
    t = tables()
    t.lookup(BATCH, create=True)
    first = t.export("user")
    many = np.arange(10, 20_010).reshape(-1, 2)
    t.lookup(rows(many, [[] for _ in many]), create=True)
    assert len(t) == 6 + many.size
    np.testing.assert_array_equal(t.export("user").rows[:2], first.rows)


def test_padding_never_gets_a_row():
    t = tables()
    t.lookup(rows([[0, 2]], [[0, 7, 0]]), create=True)
    assert sorted(t.ids[: len(t)].tolist()) == [2, 7]
    out, _ = t.gather(t.lookup(rows([[1, 2]], [[0, 7, 0]]), create=False))
    np.testing.assert_array_equal(out[0, 1], t.export("tags").rows[0])
    with pytest.raises(InvalidInput):
        t.set_rows("user", Table(np.array([0]), np.zeros((1, 3), np.float32), np.zeros(1, np.int64)))


def test_default_to_mean():
    t = tables(noise=1.0)
    t.lookup(BATCH, create=True)
    t.default_to_mean(least_count=0)
    np.testing.assert_allclose(t.default[t.names.index("user")], t.export("user").rows.mean(0), rtol=1e-6)
