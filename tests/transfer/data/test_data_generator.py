"""The generator: what its seed fixes, that its probabilities are true, and that it moves as it says."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.arrays import F32, F64, I64
from pipeline.errors import InvalidInput
from pipeline.features import concat_rows
from pipeline.hashing import hash_value
from pipeline.metrics import auc
from transfer.data import GeneratedLog, Log, LogChunk, open_log

ROWS = 200_000


def generated(rows: int = ROWS, seed: int = 0, **changes: Any) -> GeneratedLog:
    return GeneratedLog(rows, seed, **changes)


def item_ids(chunks: Iterator[LogChunk]) -> I64:
    return np.concatenate([chunk.rows.ids[:, 5] for chunk in chunks])


def truth(log: Log, start: float = 0.0, stop: float = 1.0) -> tuple[F64, F32]:
    """True probabilities and labels."""
    chunks = list(log.chunks(start, stop))
    known = [chunk.truth for chunk in chunks if chunk.truth is not None]
    return np.concatenate(known).astype(np.float64), np.concatenate([chunk.labels for chunk in chunks])


def test_the_seed_fixes_every_row() -> None:
    for one, two in zip(generated(50_000).chunks(), generated(50_000).chunks(), strict=True):
        np.testing.assert_array_equal(one.rows.ids, two.rows.ids)
        np.testing.assert_array_equal(one.rows.numbers, two.rows.numbers)
        np.testing.assert_array_equal(one.rows.bags[0].values, two.rows.bags[0].values)
        np.testing.assert_array_equal(one.labels, two.labels)
        assert one.routing_key.tolist() == two.routing_key.tolist()
    first, other = next(generated().chunks()), next(generated(seed=1).chunks())
    assert first.labels.tolist() != other.labels.tolist()


@given(
    cuts=st.lists(st.floats(0, 1), max_size=3),
    chunk_rows=st.sampled_from([150, 5_000, 10**6]),
    per_request=st.sampled_from([1, 7, 100]),
)
@settings(max_examples=12, deadline=None)
def test_any_range_in_any_chunks_gives_the_same_rows(cuts: list[float], chunk_rows: int, per_request: int) -> None:
    log = generated(40_003, rows_per_request=per_request, items=500)
    (whole,) = log.chunks(chunk_rows=10**6)
    edges = [0.0, *sorted(cuts), 1.0]
    parts = [c for start, stop in itertools.pairwise(edges) for c in log.chunks(start, stop, chunk_rows)]
    assert all(0 < len(part) <= chunk_rows and part.position[0] == 0 for part in parts)
    assert sum(log.rows_between(*pair) for pair in itertools.pairwise(edges)) == log.rows == len(whole)
    rows = concat_rows([part.rows for part in parts])
    np.testing.assert_array_equal(rows.ids, whole.rows.ids)
    np.testing.assert_array_equal(rows.numbers, whole.rows.numbers)
    np.testing.assert_array_equal(rows.bags[0].offsets, whole.rows.bags[0].offsets)
    np.testing.assert_array_equal(rows.bags[0].values, whole.rows.bags[0].values)
    np.testing.assert_array_equal(np.concatenate([p.labels for p in parts]), whole.labels)
    np.testing.assert_array_equal(np.concatenate([p.time_ms for p in parts]), whole.time_ms)
    np.testing.assert_array_equal(np.concatenate([p.request for p in parts]), whole.request)


def test_requests_have_distinct_candidates_and_one_context() -> None:
    log = generated(20_050)
    requests = list(log.requests())
    assert len(requests) == log.request_count == 201
    assert [r.features.n for r in requests] == [100] * 200 + [50]
    assert [r.request for r in requests] == list(range(201))
    for request in requests:
        request.features.check(log.schema)
        rows = request.features.rows(log.schema)
        assert len(set(rows.ids[:, 5].tolist())) == request.features.n
        assert int(rows.ids[0, 0]) == hash_value("user_id", int(request.routing_key))
    whole = next(log.chunks())
    assert len({tuple(row) for row in whole.rows.ids[:100, :5].tolist()}) == 1
    assert requests[1].time_ms - requests[0].time_ms == 20  # 100 rows at 5,000 rows/s


def test_ids_are_the_hashes_of_the_raw_values() -> None:
    ids = next(generated().chunks()).rows.ids
    known = {
        1: {hash_value("segment", f"s{i}") for i in range(8)},
        2: {hash_value("country", c) for c in (None, "AR", "BR", "DE", "EG", "ES", "FR", "GB", "IN", "JP", "MX", "US")},
        3: {hash_value("device", d) for d in ("phone", "tablet", "desktop", "tv")},
        4: {hash_value("hour", h) for h in range(24)},
        5: {hash_value("item_id", i) for i in range(6_000)},
        6: {hash_value("category", f"c{i}") for i in range(24)},
        7: {hash_value("brand", f"c{i}-{j}") for i in range(24) for j in range(6)},
    }
    for column, values in known.items():
        assert set(ids[:, column].tolist()) <= values
    bag = next(generated().chunks()).rows.bags[0]
    assert set(bag.values.tolist()) == {hash_value("tags", f"t{i}") for i in range(60)}
    assert 0 in np.diff(bag.offsets)  # items without a tag exist


def test_labels_follow_the_true_probabilities() -> None:
    log = generated(400_000)
    probability, labels = truth(log)
    error = (labels - probability).sum() / np.sqrt((probability * (1 - probability)).sum())
    assert abs(error) < 4
    for part in np.array_split(np.argsort(probability), 10):
        sd = np.sqrt((probability[part] * (1 - probability[part])).sum())
        assert abs((labels[part] - probability[part]).sum()) < 4 * sd
    assert 0.18 < labels.mean() < 0.22
    assert 0.75 < auc(labels, probability) < 0.81
    assert log.positives == int(labels.sum())


def test_missing_values_occur_and_infinities_do_not() -> None:
    numbers = next(generated().chunks()).rows.numbers
    missing = np.isnan(numbers).mean(axis=0)
    assert np.all((missing > 0.005) & (missing < 0.12))
    assert not np.isinf(numbers).any()


def test_a_world_that_stands_still() -> None:
    log = generated(drift=0.0, rows_per_second=100.0)
    early, late = set(item_ids(log.chunks(0, 0.5)).tolist()), set(item_ids(log.chunks(0.5, 1)).tolist())
    assert len(early | late) <= 3_000
    assert abs(truth(log, 0, 0.5)[0].mean() / truth(log, 0.5, 1)[0].mean() - 1) < 0.04


def test_new_ids_arrive_and_old_ones_fade() -> None:
    log = generated(rows_per_second=200.0)  # 1,000 seconds
    first = np.unique(item_ids(log.chunks(0, 0.1)))
    shares = [np.isin(item_ids(log.chunks(k / 10, (k + 1) / 10)), first).mean() for k in range(1, 10)]
    assert all(later < sooner for sooner, later in itertools.pairwise(shares))
    assert shares[0] > 0.9
    assert shares[-1] < 0.75
    fast = generated(rows_per_second=200.0, drift=3.0)
    first = np.unique(item_ids(fast.chunks(0, 0.1)))
    assert np.isin(item_ids(fast.chunks(0.9, 1)), first).mean() < 0.3


def test_tastes_turn() -> None:
    """What users of a segment think of a category changes, and faster with more drift."""

    def liking(log: Log, start: float, stop: float) -> F64:
        chunks = list(log.chunks(start, stop))
        pair = np.concatenate([c.rows.ids[:, 1] * 31 + c.rows.ids[:, 6] for c in chunks])
        probability = np.concatenate([c.truth for c in chunks if c.truth is not None]).astype(np.float64)
        _, inverse, count = np.unique(pair, return_inverse=True, return_counts=True)
        mean = np.bincount(inverse, probability) / count
        return np.log(mean / (1 - mean)) if len(count) == 8 * 24 else np.zeros(1)

    def likeness(**changes: Any) -> float:
        log = generated(400_000, rows_per_second=100.0, **changes)  # 4,000 seconds
        return float(np.corrcoef(liking(log, 0, 0.2), liking(log, 0.8, 1))[0, 1])

    still, slow = likeness(drift=0.0), likeness(drift=1.0)
    assert still > 0.8
    assert slow < still - 0.3


def test_the_base_rate_moves_gently() -> None:
    log = generated(1_000_000)  # 200 seconds
    means = [truth(log, k / 5, (k + 1) / 5)[0].mean() for k in range(5)]
    assert max(means) / min(means) < 1.08


def test_an_abrupt_change_comes_where_it_is_asked_for() -> None:
    still, jump = generated(drift=0.0), generated(drift=0.0, abrupt_at=0.5)
    before, after = truth(still)[0], truth(jump)[0]
    np.testing.assert_array_equal(before[: ROWS // 2], after[: ROWS // 2])
    assert after[ROWS // 2 :].mean() > before[ROWS // 2 :].mean() * 1.1
    assert np.corrcoef(before[ROWS // 2 :], after[ROWS // 2 :])[0, 1] < 0.9


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rows", 0),
        ("seed", -1),
        ("rows_per_request", 0),
        ("rows_per_second", 0.0),
        ("base_rate", 1.0),
        ("drift", -1.0),
        ("abrupt_at", 1.5),
        ("users", 0),
        ("items", 150),
    ],
)
def test_arguments_out_of_range_are_named(field: str, value: Any) -> None:
    with pytest.raises(InvalidInput, match=field) as caught:
        GeneratedLog(**{"rows": 1_000, field: value})
    assert caught.value.field == field


def test_one_door(tmp_path: Any) -> None:
    log = open_log(None, tmp_path / "cache", rows=1_000, seed=3, base_rate=0.1)
    assert (log.name, log.rows, log.request_count) == ("generated", 1_000, 10)
    assert not (tmp_path / "cache").exists()
