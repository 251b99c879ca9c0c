"""Format of rows in Redis, and the parser of replies: rows come back complete, and nothing else is taken for a row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.arrays import F32, I32, I64, U8
from pipeline.bundle.row_format import RowFormat
from pipeline.embedding.redis.rows import (
    DONE_STATUS,
    GARBAGE_STATUS,
    MORE_STATUS,
    REFUSED_STATUS,
    RedisRowLayout,
    collect,
    encode,
    scan,
    scatter,
)
from pipeline.embedding.tier import PENDING_STATUS, STALE_STATUS, Wanted

SEED = 0x1234_5678_9ABC_DEF0
FORMATS: list[RowFormat] = ["float32", "float16", "int8"]
TOLERANCE = {"float32": 0.0, "float16": 2.0**-11, "int8": 1 / 254}


def reply(values: list[bytes | None]) -> bytes:
    parts = [b"$-1\r\n" if v is None else b"$%d\r\n%s\r\n" % (len(v), v) for v in values]
    return b"*%d\r\n" % len(values) + b"".join(parts)


def read(raw: bytes, count: int, cuts: list[int]) -> tuple[int, I64, I32, U8]:
    """Scan a reply that arrives in pieces."""
    data = np.zeros(len(raw) + 64, np.uint8)
    data[: len(raw)] = np.frombuffer(raw, np.uint8)
    starts, sizes, state = np.zeros(count, np.int64), np.zeros(count, np.int32), np.zeros(2, np.int64)
    result = MORE_STATUS
    for filled in [*sorted({min(c, len(raw)) for c in cuts}), len(raw)]:
        result = scan(data, filled, state, starts, sizes)
        if result != MORE_STATUS:
            break
    return result, starts, sizes, data


def decode(
    layout: RedisRowLayout, keys: I64, values: list[bytes | None], cuts: list[int] | None = None, seed: int = SEED
) -> tuple[F32, F32, U8, list[int]]:
    result, starts, sizes, data = read(reply(values), len(keys), cuts or [])
    assert result == DONE_STATUS
    n = len(keys)
    rows, weights = np.full(n * layout.width + 2, 7, np.float32), np.full(n, 7, np.float32)
    found, counts = np.full(n, 255, np.uint8), np.zeros(3, np.int64)
    at = np.arange(n, dtype=np.int64)
    wanted = Wanted(0, layout.width, keys, 1 + at * layout.width, rows, at, weights, found)
    places = np.arange(n, dtype=np.int32)
    scatter((data, starts, sizes), keys, places, np.uint64(seed), layout.numbers, wanted.arrays, 3, counts)
    assert (rows[0], rows[-1]) == (7, 7)
    return rows[1:-1].reshape(n, layout.width), weights, found, counts.tolist()


def make(layout: RedisRowLayout, n: int, seed: int = 0) -> tuple[I64, F32, F32, list[bytes]]:
    rng = np.random.default_rng(seed)
    keys = rng.integers(-(2**63), 2**63 - 1, n, np.int64)
    rows = rng.normal(size=(n, layout.width)).astype(np.float32)
    weights = rng.normal(size=n).astype(np.float32)
    return keys, rows, weights, [v.tobytes() for v in encode(layout, SEED, keys, rows, weights)]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("width", [1, 3, 16])
def test_rows_come_back(format: RowFormat, linear: bool, width: int) -> None:
    layout = RedisRowLayout(width, linear, format)
    keys, rows, weights, values = make(layout, 50)
    assert {len(v) for v in values} == {layout.bytes}
    got, got_weights, found, counts = decode(layout, keys, [*values[:20], None, *values[21:]])
    held = np.arange(50) != 20
    assert counts == [49, 1, 0]
    assert (found == np.where(held, 3, 255)).all()
    limit = TOLERANCE[format] * np.abs(rows).max(axis=1, keepdims=True)
    assert (np.abs(got - rows) <= limit + 1e-9)[held].all()
    assert (got[~held] == 7).all()
    if linear:
        np.testing.assert_array_equal(got_weights[held], weights[held])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(width=16, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_halves_are_exact(numbers: list[float]) -> None:
    layout = RedisRowLayout(len(numbers), False, "float16")
    rows = np.array([numbers], np.float32)
    keys = np.array([-1], np.int64)
    values: list[bytes | None] = [encode(layout, SEED, keys, rows, None)[0].tobytes()]
    np.testing.assert_array_equal(decode(layout, keys, values)[0], rows)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_what_is_not_the_row_asked_for_is_never_served(data: st.DataObject) -> None:
    layout = RedisRowLayout(
        data.draw(st.sampled_from([1, 4, 16])), data.draw(st.booleans()), data.draw(st.sampled_from(FORMATS))
    )
    keys, _, _, values = make(layout, 8)
    target = data.draw(st.integers(0, 7))
    good = values[target]
    harm = data.draw(st.sampled_from(["bit", "cut", "longer", "other", "zeros", "generation"]))
    bad = {
        "cut": good[: data.draw(st.integers(0, len(good) - 1))],
        "longer": good + b"x",
        "other": values[(target + 1) % 8],
        "zeros": bytes(len(good)),
        "generation": encode(layout, SEED + 1, keys, np.ones((8, layout.width), np.float32), np.ones(8, np.float32))[
            target
        ].tobytes(),
    }.get(harm)
    if bad is None:
        bit = data.draw(st.integers(0, 8 * len(good) - 1))
        bad = (int.from_bytes(good, "little") ^ (1 << bit)).to_bytes(len(good), "little")
    rows, _, found, counts = decode(layout, keys, [*values[:target], bad, *values[target + 1 :]])
    assert counts == [7, 0, 1]
    assert found[target] == 255
    assert (rows[target] == 7).all()


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.one_of(st.none(), st.binary(max_size=30)), max_size=8),
    st.lists(st.integers(0, 300), max_size=6),
)
def test_answers_are_read_in_any_pieces(values: list[bytes | None], cuts: list[int]) -> None:
    result, starts, sizes, data = read(reply(values), len(values), cuts)
    assert result == DONE_STATUS
    got = [None if n < 0 else data[s : s + n].tobytes() for s, n in zip(starts, sizes, strict=True)]
    assert got == values


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 4), st.lists(st.integers(0, 60), max_size=4))
def test_junk_is_told_from_answers(junk: bytes, count: int, cuts: list[int]) -> None:
    if not junk.startswith(b"*%d\r\n" % count):
        assert read(junk, count, cuts)[0] != DONE_STATUS


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"-OOM command not allowed\r\n", REFUSED_STATUS),
        (b"+OK\r\n", GARBAGE_STATUS),
        (b"*3\r\n$-1\r\n$-1\r\n$-1\r\n", GARBAGE_STATUS),
        (b"*2\r\n$-1\r\n:5\r\n", GARBAGE_STATUS),
        (b"*2\r\n$-1\r\n$-1\r\n$-1\r\n", GARBAGE_STATUS),
        (b"*2\r\n$99999999999\r\n", GARBAGE_STATUS),
        (b"*2\r\n$3\r\nabcdef", GARBAGE_STATUS),
        (b"*2\r\n$-1\r\n$5\r\nab", MORE_STATUS),
    ],
)
def test_known_shapes_of_answers(raw: bytes, expected: int) -> None:
    assert read(raw, 2, [])[0] == expected


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), max_size=40))
def test_an_id_is_asked_for_once(wanted: list[tuple[int, bool]]) -> None:
    keys = np.array([key for key, _ in wanted], np.int64)
    found = np.array(
        [1 if known else PENDING_STATUS if key % 2 else STALE_STATUS | 1 for key, known in wanted], np.uint8
    )
    unique, places = np.zeros(64, np.int64), np.zeros(max(1, len(keys)), np.int32)
    count = collect(keys, found, np.zeros(128, np.int32), unique, 0, places)
    asked = [key for key, known in wanted if not known]
    assert sorted(unique[:count].tolist()) == sorted(set(asked))
    for place, (key, known) in zip(places, wanted, strict=False):
        assert place == -1 if known else unique[place] == key
