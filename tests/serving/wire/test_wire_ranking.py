from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from handmade import SCHEMA, random_rows, random_tables
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InvalidInput
from pipeline.features import Features, Rows
from pipeline.hashing import hash_value
from pipeline.schema import Schema
from protos.baton.ranking.v1 import ranking_pb2 as pb
from serving.client import rank_request
from serving.wire.packed import PackedRankRequest
from serving.wire.ranking import RankCodec

CODEC = RankCodec(SCHEMA, 100)
TABLES = random_tables(0, 20)


def same(a: Rows, b: Rows) -> None:
    np.testing.assert_array_equal(a.ids, b.ids)
    np.testing.assert_array_equal(a.numbers, b.numbers)
    for x, y in zip(a.bags, b.bags, strict=True):
        assert x.column == y.column
        np.testing.assert_array_equal(x.offsets, y.offsets)
        np.testing.assert_array_equal(x.values, y.values)


def request(n: int = 3) -> pb.RankRequest:
    """One request in named columns of raw values."""
    message = pb.RankRequest(endpoint="ranker")
    message.context.columns.add(field="user").strings.values.append("ann")
    message.context.columns.add(field="age").numbers.values.append(31.0)
    message.context.columns.add(field="tags").strings.values.append("red,blue")
    message.candidates.columns.add(field="item").integers.values.extend(range(n))
    message.candidates.columns.add(field="price").numbers.values.extend([1.5] * n)
    message.candidates.columns.add(field="genres").strings.values.extend(["a|b"] * n)
    return message


def both(message: pb.RankRequest, codec: RankCodec = CODEC) -> list[Features]:
    """Decoded as declared and as the packed twin."""
    return [codec.decode(message), codec.decode(PackedRankRequest.FromString(message.SerializeToString()))]


@given(n=st.integers(1, 20), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_what_a_client_packs_is_what_the_server_reads(n: int, seed: int) -> None:
    features = Features.from_context(SCHEMA, random_rows(np.random.default_rng(seed), n, TABLES))
    for read in both(rank_request("ranker", SCHEMA, features)):
        read.check(SCHEMA)
        same(read.rows(SCHEMA), features.rows(SCHEMA))


def test_raw_values_are_hashed_by_the_one_rule_in_any_order_of_columns() -> None:
    message = request()
    columns = list(message.candidates.columns)[::-1]
    del message.candidates.columns[:]
    message.candidates.columns.extend(columns)
    for features in both(message):
        rows = features.rows(SCHEMA)
        assert rows.ids[0].tolist() == [hash_value("user", "ann"), hash_value("item", 0)]
        assert rows.ids[2, 1] == hash_value("item", 2)
        assert rows.numbers.tolist() == [[31.0, 1.5]] * 3
        assert rows.bags[0].values[:2].tolist() == [hash_value("tags", "red"), hash_value("tags", "blue")]
        assert rows.bags[1].offsets.tolist() == [0, 2, 4, 6]


def test_context_is_kept_once() -> None:
    features = both(request(5))[1]
    assert sorted(len(p.values) for p in features.ids) == [1, 5]


def drop(side: str, field: str) -> Callable[[pb.RankRequest], None]:
    def change(message: pb.RankRequest) -> None:
        columns = getattr(message, side).columns
        kept = [c for c in columns if c.field != field]
        del columns[:]
        columns.extend(kept)

    return change


def column(side: str, field: str, **values: list[object]) -> Callable[[pb.RankRequest], None]:
    def change(message: pb.RankRequest) -> None:
        drop(side, field)(message)
        added = getattr(message, side).columns.add(field=field)
        for kind, content in values.items():
            getattr(added, kind).values.extend(content)

    return change


def duplicate(message: pb.RankRequest) -> None:
    message.candidates.columns.add(field="item").integers.values.extend(range(3))


def twice_in_matrix(message: pb.RankRequest) -> None:
    drop("candidates", "item")(message)
    message.candidates.ids.fields.extend(["item", "item"])
    message.candidates.ids.values.extend([1] * 6)


def bad_matrix(message: pb.RankRequest) -> None:
    drop("candidates", "item")(message)
    message.candidates.ids.fields.append("item")
    message.candidates.ids.values.extend([1] * 4)


def bad_offsets(message: pb.RankRequest) -> None:
    drop("candidates", "genres")(message)
    bags = message.candidates.columns.add(field="genres").bags
    bags.values.extend([5, 6])
    bags.offsets.extend([0, 2, 1, 2])


def pad_in_bag(message: pb.RankRequest) -> None:
    drop("candidates", "genres")(message)
    bags = message.candidates.columns.add(field="genres").bags
    bags.values.extend([5, 0, 6])
    bags.offsets.extend([0, 1, 2, 3])


def no_values(message: pb.RankRequest) -> None:
    drop("candidates", "item")(message)
    message.candidates.columns.add(field="item")


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        (drop("context", "user"), "user", "missing"),
        (drop("candidates", "genres"), "genres", "missing"),
        (duplicate, "item", "twice"),
        (twice_in_matrix, "item", "twice"),
        (column("candidates", "colour", strings=["x"] * 3), "colour", "not known"),
        (column("candidates", "user", strings=["x"] * 3), "user", "context"),
        (column("context", "item", integers=[1]), "item", "candidates"),
        (column("candidates", "item", numbers=[1.0] * 3), "item", "kind"),
        (column("candidates", "price", integers=[1] * 3), "price", "kind"),
        (column("candidates", "price", numbers=[1.0, float("inf"), 2.0]), "price", "infinite"),
        (column("context", "age", numbers=[float("-inf")]), "age", "infinite"),
        (column("candidates", "price", numbers=[1.0] * 2), "price", "2 values"),
        (column("context", "user", strings=["a", "b"]), "user", "one row"),
        (bad_matrix, "price", "3 values"),
        (bad_offsets, "genres", "offsets"),
        (pad_in_bag, "genres", "pads"),
        (no_values, "item", "no values"),
        (lambda m: m.candidate_ids.extend(["a", "b", "a"]), "candidate_ids", "unique"),
        (lambda m: m.recall_scores.extend([0.5]), "recall_scores", "recall_scores"),
    ],
)
def test_a_bad_request_is_told_which_field(change: Callable[[pb.RankRequest], None], field: str, says: str) -> None:
    message = request()
    change(message)
    for data in (message, PackedRankRequest.FromString(message.SerializeToString())):
        with pytest.raises(InvalidInput, match=says) as caught:
            CODEC.decode(data)
        assert caught.value.field == field


@pytest.mark.parametrize("n", [0, 101])
def test_the_number_of_candidates_is_bounded_both_ways(n: int) -> None:
    with pytest.raises(InvalidInput) as caught:
        CODEC.decode(request(n))
    assert caught.value.field == "candidates"


def test_an_unpacked_array_is_read_as_declared() -> None:
    """Legal on the wire, though nobody writes it: the twin sees nothing there, and says so by failing."""
    schema = Schema(fields=[{"name": "item", "role": "candidate"}])
    ids = b"\x0a\x04item" + b"".join(b"\x11" + v.to_bytes(8, "little") for v in (7, 9))
    rows = b"\x12" + bytes([len(ids)]) + ids
    data = b"\x2a" + bytes([len(rows)]) + rows
    codec = RankCodec(schema, 10)
    with pytest.raises(InvalidInput):
        codec.decode(PackedRankRequest.FromString(data))
    assert codec.decode(pb.RankRequest.FromString(data)).ids[0].values.tolist() == [[7], [9]]
