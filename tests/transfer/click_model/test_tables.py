import numpy as np
import pytest

from pipeline.bundle.bundle import Table
from pipeline.errors import InvalidInput
from pipeline.features import Bag, Rows
from pipeline.schema import FieldSpec, Schema
from transfer.click_model.blocks import TableSettings
from transfer.click_model.tables import Tables, merged

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


def test_a_rare_id_waits_for_its_row():
    t = tables(admit_after=3)
    for seen in range(3):
        lookup = t.lookup(rows([[1, 2]], [[7]]), create=True)
        assert (lookup.ids >= 0).all() == (seen == 2)
        t.collect(lookup, np.ones((1, 3, 3), np.float32), np.ones((1, 3), np.float32), seen)
        t.apply()
    assert len(t) == 3
    t.lookup(rows([[5, 5], [5, 6], [5, 7]], [[], [], []]), create=True)
    assert t.export("user").ids.tolist() == [1, 5]  # three times in one batch is often enough
    again = tables(admit_after=3)
    again.load_state(t.state())
    for both in (t, again):
        both.lookup(rows([[9, 6], [9, 6]], [[], []]), create=True)
        assert both.export("item").ids.tolist() == [2, 6]  # 6 was seen once before


def test_rows_not_seen_for_long_go_and_the_others_stay_as_they_are():
    t = tables(evict_after=100)
    t.collect(t.lookup(BATCH, create=True), np.ones((3, 3, 3), np.float32), None, 10)
    t.apply()
    t.take_touched()
    t.collect(t.lookup(rows([[1, 2], [50, 60]], [[7], []]), create=True), np.ones((2, 3, 3), np.float32), None, 105)
    t.apply()
    before = {name: t.export(name) for name in t.names}
    assert t.age(112) == 3  # 3, 4 and the tag 8
    for name in t.names:
        after, kept = t.export(name), np.isin(before[name].ids, [1, 2, 7, 50, 60])
        assert after.ids.tolist() == before[name].ids[kept].tolist()
        np.testing.assert_array_equal(after.rows, before[name].rows[kept])
    assert sorted(t.ids[t.touched()].tolist()) == [1, 2, 7, 50, 60]
    assert t.age(113) == 0  # not yet time to look again
    t.lookup(rows([[4, 3]], [[8]]), create=True)
    assert len(t) == 8


def test_changes_bring_an_older_state_up_to_date():
    rng = np.random.default_rng(0)
    t = tables(optimiser="adam")
    whole, parts = None, []
    for step in range(12):
        ids = rng.integers(1, 10 + 5 * step, (6, 2))
        batch = rows(ids, [rng.integers(1, 20, rng.integers(0, 3)).tolist() for _ in ids])
        t.collect(t.lookup(batch, create=True), rng.random((6, 3, 3), np.float32), rng.random((6, 3), np.float32), step)
        if step % 3:
            t.apply(0.5)
        if step % 4 == 0:  # also with gradients that wait
            changed = t.changed()
            if whole is None:
                whole = t.state()
            else:
                assert changed is not None
                parts.append(t.state(changed))
            t.saved()
    assert len(parts[-1]["ids"]) < len(t)
    for part in parts:
        whole = merged(whole, part)
    mirror = tables(optimiser="adam")
    mirror.load_state(whole)
    parts.append(t.state(t.changed()))
    final = merged(whole, parts[-1])
    for key, value in t.state().items():
        np.testing.assert_array_equal(final[key], value, err_msg=key)


def test_settings_out_of_range_are_named():
    with pytest.raises(InvalidInput, match="admit_after"):
        TableSettings(admit_after=0)
    with pytest.raises(InvalidInput, match="evict_after"):
        TableSettings(evict_after=0)
