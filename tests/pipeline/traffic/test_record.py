"""Prediction record: a packed record is unpacked unchanged, other bytes are refused, and records of Baton 0.1 are read."""

from __future__ import annotations

from dataclasses import fields, replace
from struct import Struct
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InvalidInput
from pipeline.features import Bag, Features, IdPart, NumberPart
from pipeline.hashing import HELD_BUCKET, NO_BUCKET
from pipeline.traffic.record import ARMS, HeadScores, PredictionRecord, made_by, pack, read_head, unpack
from pipeline.traffic.record.layout import HEAD, Block

NAMES = st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), max_size=12)
TEXTS = st.text(st.characters(blacklist_categories=("Cs",)), max_size=12)
I64 = st.integers(-(1 << 63), (1 << 63) - 1)
VERSIONS = st.integers(0, (1 << 63) - 1)
F32 = st.floats(width=32)
FRACTIONS = st.floats(0, 1, width=32)

OLD = bytes.fromhex(
    "42505231000000007b68e5cf8b01000001030000030000000c00000000000000fdffffffffffffff020001000100140072616e6b65720073"
    "747564656e7400306371346e000000000000803e0000003f0000003e0000000065000000000000009affffffffffffff6700000000000000"
    "010000000200000002000000000000000b0000000000000000000000000000c0030000000100000001000000000000000500000000000000"
    "06000000000000000700000000000000030000000100000000000000000000000000c07f0000003f000000c0000000000300000000000000"
    "00000000020000000200000003000000080000000000000009000000000000000a00000000000000"
)
"""A record as `pack` of commit 976f7cb (Baton 0.1) wrote it."""


@st.composite
def records(draw: st.DrawFn) -> PredictionRecord:
    """Records with any of the blocks."""
    n = draw(st.integers(0, 5))

    def array(dtype: type, elements: st.SearchStrategy, *shape: int) -> npt.NDArray:
        size = int(np.prod(shape))
        return np.array(draw(st.lists(elements, min_size=size, max_size=size)), dtype).reshape(shape)

    def rows() -> int:
        return draw(st.sampled_from([1, n]))

    def maybe(value: Any, otherwise: Any = None) -> Any:
        return value if draw(st.booleans()) else otherwise

    ids, numbers, bags = [], [], []
    for _ in range(draw(st.integers(0, 2))):
        k = draw(st.integers(1, 3))
        ids.append(IdPart(np.arange(k, dtype=np.int32), array(np.int64, I64, rows(), k)))
    for _ in range(draw(st.integers(0, 2))):
        k = draw(st.integers(1, 3))
        numbers.append(NumberPart(np.arange(k, dtype=np.int32), array(np.float32, F32, rows(), k)))
    for column in range(draw(st.integers(0, 2))):
        sizes = array(np.int32, st.integers(0, 3), rows())
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
        bags.append(Bag(column, offsets, array(np.int64, I64, int(offsets[-1]))))
    heads = [
        HeadScores(draw(st.sampled_from(ARMS)), draw(NAMES), array(np.float32, F32, n))
        for _ in range(draw(st.integers(0, 2)))
    ]
    return PredictionRecord(
        prediction_id=draw(NAMES),
        time_ms=draw(I64),
        endpoint=draw(NAMES),
        arm=draw(st.sampled_from(ARMS)),
        bundle=draw(NAMES),
        version=draw(VERSIONS),
        features=Features(n, tuple(ids), tuple(numbers), tuple(bags)),
        scores=array(np.float32, F32, n),
        routing_hash=draw(st.integers(0, (1 << 64) - 1)),
        overridden=draw(st.booleans()),
        candidate_ids=maybe(array(np.int64, I64, n)),
        network=draw(NAMES),
        stable_version=draw(VERSIONS),
        candidate_version=draw(VERSIONS),
        inclusion_probability=draw(st.floats(0, 1, width=32, exclude_min=True)),
        request_id=draw(TEXTS),
        candidate_texts=maybe(draw(st.lists(TEXTS, min_size=n, max_size=n)), ()),
        heads=tuple(heads),
        recall_scores=maybe(array(np.float32, F32, n)),
        keep_fraction=maybe(draw(FRACTIONS), 1.0),
        load=maybe(draw(st.floats(0, 1e6, width=32)), 0.0),
        cached=maybe(array(np.bool_, st.booleans(), n)),
        bucket=draw(st.integers(NO_BUCKET, HELD_BUCKET)),
    )


def plain(value: Any) -> Any:
    """A part of a record as values that compare: arrays by type, shape and bytes."""
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tobytes()
    if isinstance(value, (HeadScores, Features, IdPart, NumberPart, Bag)):
        return type(value), [plain(getattr(value, field.name)) for field in fields(value)]
    if isinstance(value, tuple):
        return [plain(one) for one in value]
    return value


def same(a: PredictionRecord, b: PredictionRecord) -> None:
    for field in fields(PredictionRecord):
        mine, other = getattr(a, field.name), getattr(b, field.name)
        if field.name == "candidate_texts":
            mine, other = list(mine), list(other)
        assert plain(mine) == plain(other), field.name


@given(records())
@settings(derandomize=True, deadline=None)
def test_round_trip(record: PredictionRecord) -> None:
    blob = pack(record)
    same(unpack(blob), record)
    head = read_head(blob)
    for name in ("prediction_id", "time_ms", "endpoint", "routing_hash", "arm"):
        assert getattr(head, name) == getattr(record, name)
    assert head.n == record.features.n


@given(records(), st.data())
@settings(derandomize=True, deadline=None)
def test_a_part_of_a_record_is_refused(record: PredictionRecord, data: st.DataObject) -> None:
    blob = pack(record)
    for read in (unpack, read_head):
        with pytest.raises(InvalidInput, match="not a prediction record"):
            read(blob[: data.draw(st.integers(0, len(blob) - 1))])
        with pytest.raises(InvalidInput, match="not a prediction record"):
            read(blob + b"\0" * 8)


@given(records(), st.data())
@settings(derandomize=True, deadline=None, max_examples=300)
def test_a_damaged_byte_is_refused_or_leaves_the_keys(record: PredictionRecord, data: st.DataObject) -> None:
    blob = pack(record)
    damaged = bytearray(blob)
    damaged[data.draw(st.integers(0, len(blob) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        head = read_head(bytes(damaged))
    except InvalidInput:
        with pytest.raises(InvalidInput, match="not a prediction record"):
            unpack(bytes(damaged))
        return
    assert head == read_head(blob)
    try:
        back = unpack(bytes(damaged))
    except InvalidInput:
        return
    for name in ("prediction_id", "time_ms", "endpoint", "arm", "bundle", "version", "network", "stable_version"):
        assert getattr(back, name) == getattr(record, name)
    sound(back)


def sound(record: PredictionRecord) -> None:
    """Compiled loops may follow the arrays of a record wherever they point."""
    f = record.features
    for part in (*f.ids, *f.numbers):
        assert len(part.values) in (1, f.n)
        assert part.values.shape[1] == len(part.columns)
        assert ((part.columns >= 0) & (part.columns < 1 << 16)).all()
    for bag in f.bags:
        assert bag.rows in (1, f.n)
        assert (bag.offsets[0], bag.offsets[-1]) == (0, len(bag.values))
        assert (np.diff(bag.offsets) >= 0).all()
    arrays = [record.scores, record.candidate_ids, record.recall_scores, record.cached]
    arrays += [head.scores for head in record.heads]
    assert all(array is None or array.shape == (f.n,) for array in arrays)
    assert not record.candidate_texts or len(list(record.candidate_texts)) == f.n


# Blocks.


def with_blocks(blob: bytes, change: dict[int, bytes | None]) -> bytes:
    """A record with blocks added, replaced or (None) left out, and a right head: what a later Baton may write."""
    count, names = Struct("<HH").unpack_from(blob, HEAD.size - 10)
    directory = HEAD.size + 8 * count
    end = directory + names
    at, blocks = -(-end // 8) * 8, {}
    for kind, size in Struct("<HxxI").iter_unpack(blob[HEAD.size : directory]):
        blocks[kind] = blob[at : at + size]
        at += -(-size // 8) * 8
    for kind, content in change.items():
        if content is None:
            del blocks[kind]
        else:
            blocks[kind] = content
    return assembled(blob[: HEAD.size], blob[directory:end], list(blocks.items()))


def assembled(head: bytes, names: bytes, blocks: list[tuple[int, bytes]]) -> bytes:
    listed = b"".join(Struct("<HxxI").pack(kind, len(content)) for kind, content in blocks)
    before = head[8:] + listed + names
    body = b"".join(content + bytes(-len(content) % 8) for _, content in blocks)
    padding = bytes(-(8 + len(before)) % 8)
    checked = bytearray(before)
    Struct("<I").pack_into(checked, 40, 8 + len(before) + len(padding) + len(body))
    Struct("<H").pack_into(checked, HEAD.size - 18, len(blocks))
    return b"BPR2" + Struct("<I").pack(crc32(checked)) + bytes(checked) + padding + body


@given(records(), st.dictionaries(st.integers(200, 65535), st.binary(max_size=40), max_size=3))
@settings(derandomize=True, deadline=None)
def test_blocks_of_unknown_types_are_skipped(record: PredictionRecord, unknown: dict[int, bytes]) -> None:
    same(unpack(with_blocks(pack(record), {**unknown})), record)


def small(**more: Any) -> PredictionRecord:
    features = Features(
        2,
        (IdPart(np.zeros(1, np.int32), np.array([[1], [2]])),),
        (NumberPart(np.zeros(1, np.int32), np.array([[0.5]], np.float32)),),
        (Bag(0, np.array([0, 1, 3], np.int32), np.array([4, 5, 6])),),
    )
    return PredictionRecord("p", 1, "e", "stable", "b", 1, features, np.zeros(2, np.float32), **more)


def part(rows: int, columns: int, *arrays: Any) -> bytes:
    return Struct("<II").pack(rows, columns) + b"".join(a.tobytes() + bytes(-a.nbytes % 8) for a in arrays)


def i4(*values: int) -> npt.NDArray:
    return np.array(values, np.int32)


def i8(*values: int) -> npt.NDArray:
    return np.array(values, np.int64)


def f4(*values: float) -> npt.NDArray:
    return np.array(values, np.float32)


WRONG_BLOCKS: dict[str, tuple[int, bytes | None]] = {
    "no scores": (Block.SCORES, None),
    "a score too few": (Block.SCORES, bytes(4)),
    "half a candidate id": (Block.CANDIDATE_IDS, bytes(12)),
    "rows of others": (Block.IDS, part(3, 1, i4(0), i8(1, 2, 3))),
    "a negative column": (Block.IDS, part(2, 1, i4(-1), i8(1, 2))),
    "a column too far": (Block.IDS, part(2, 1, i4(1 << 16), i8(1, 2))),
    "values cut off": (Block.IDS, part(2, 1, i4(0), i8(1))),
    "more rows than memory": (Block.IDS, part((1 << 32) - 1, (1 << 32) - 1, i4(0))),
    "a part and a half": (Block.IDS, part(2, 1, i4(0), i8(1, 2)) + part(2, 1)),
    "numbers of other rows": (Block.NUMBERS, part(5, 1, i4(0), f4(1, 2, 3, 4, 5))),
    "offsets that fall": (Block.BAGS, part(2, 0, i4(0, 4, 3), i8(1, 2, 3))),
    "offsets from 1": (Block.BAGS, part(2, 0, i4(1, 2, 3), i8(1, 2, 3))),
    "a bag that ends below 0": (Block.BAGS, part(2, 0, i4(0, 1, -3), i8(1, 2, 3))),
    "a bag beyond its values": (Block.BAGS, part(2, 0, i4(0, 1, 9), i8(1, 2, 3))),
    "a bag of rows without number": (Block.BAGS, part((1 << 32) - 1, 0, i4(0, 1, 3), i8(1, 2, 3))),
    "a head of no arm": (Block.HEADS, Struct("<BxHxxxx").pack(9, 0) + bytes(8)),
    "a head cut off": (Block.HEADS, Struct("<BxHxxxx").pack(0, 4) + b"head"),
    "a head's name that is no text": (Block.HEADS, Struct("<BxHxxxx").pack(0, 8) + b"\xff" * 8 + bytes(8)),
    "one recall score": (Block.RECALL_SCORES, bytes(4)),
    "a request id that is no text": (Block.REQUEST_ID, b"\xff"),
    "texts of one candidate": (Block.CANDIDATE_TEXTS, i4(3).tobytes() + b"one"),
    "texts that end early": (Block.CANDIDATE_TEXTS, i4(1, 2).tobytes() + b"one"),
    "texts that fall": (Block.CANDIDATE_TEXTS, i4(4, 3).tobytes() + b"one"),
    "texts from below 0": (Block.CANDIDATE_TEXTS, i4(-1, 3).tobytes() + b"one"),
    "no ends of texts": (Block.CANDIDATE_TEXTS, b"one"),
    "more kept than there was": (Block.SHED, Struct("<ff").pack(1.5, 0.0)),
    "a load below 0": (Block.SHED, Struct("<ff").pack(0.5, -1.0)),
    "a load that is no number": (Block.SHED, Struct("<ff").pack(0.5, float("nan"))),
    "half a load": (Block.SHED, bytes(6)),
    "a mark of 2": (Block.CACHED, b"\0\2"),
    "a mark too few": (Block.CACHED, b"\0"),
}


@pytest.mark.parametrize("wrong", WRONG_BLOCKS)
def test_a_wrong_block_is_refused(wrong: str) -> None:
    kind, content = WRONG_BLOCKS[wrong]
    with pytest.raises(InvalidInput, match="not a prediction record"):
        unpack(with_blocks(pack(small()), {kind: content}))


def test_two_blocks_of_a_type_are_refused() -> None:
    blob = pack(small())
    names = blob[HEAD.size + 8 * 4 :][:6]
    blob = assembled(blob[: HEAD.size], names, [(Block.SCORES, bytes(8)), (Block.SCORES, bytes(8))])
    with pytest.raises(InvalidInput, match="two blocks of type 1"):
        unpack(blob)


def test_a_bucket_is_one_that_keys_have() -> None:
    beyond = pack(PredictionRecord("p", 1, "e", "stable", "b", 1, Features(0), np.zeros(0), bucket=HELD_BUCKET + 1))
    with pytest.raises(InvalidInput, match="a bucket of 10001"):
        unpack(beyond)


def test_an_inclusion_probability_is_above_0() -> None:
    for probability in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(InvalidInput, match="inclusion probability"):
            unpack(pack(small(inclusion_probability=probability)))


# Times.


@pytest.mark.parametrize("blob", [pack(small(routing_hash=7)), OLD], ids=["2", "1"])
def test_a_record_of_the_future_is_made_now(blob: bytes) -> None:
    time_ms = unpack(blob).time_ms
    assert made_by(blob, time_ms) == blob
    earlier = made_by(blob, time_ms - 1)
    assert read_head(earlier) == read_head(blob)._replace(time_ms=time_ms - 1)
    same(unpack(earlier), replace(unpack(blob), time_ms=time_ms - 1))


def test_a_time_is_not_set_right_in_a_damaged_head() -> None:
    damaged = bytearray(pack(small()))
    damaged[HEAD.size + 2] ^= 1
    with pytest.raises(InvalidInput, match="checksum"):
        made_by(bytes(damaged), 0)


# Records of Baton 0.1.


def test_a_record_of_version_1_is_read() -> None:
    head, record = read_head(OLD), unpack(OLD)
    assert head == ("0cq4n", 1_700_000_000_123, "ranker", 3, (1 << 64) - 3, "candidate", 0)
    features = Features(
        3,
        (IdPart(i4(2, 0), i8(11, -(1 << 62)).reshape(1, 2)), IdPart(i4(1), i8(5, 6, 7).reshape(3, 1))),
        (NumberPart(i4(0), f4(np.nan, 0.5, -2.0).reshape(3, 1)),),
        (Bag(0, i4(0, 2, 2, 3), i8(8, 9, 10)),),
    )
    known = PredictionRecord(
        "0cq4n",
        1_700_000_000_123,
        "ranker",
        "candidate",
        "student",
        12,
        features,
        f4(0.25, 0.5, 0.125),
        (1 << 64) - 3,
        True,
        i8(101, -102, 103),
    )
    same(record, known)
    same(unpack(pack(record)), known)


@given(st.data())
@settings(derandomize=True, deadline=None, max_examples=300)
def test_a_damaged_record_of_version_1_is_refused_or_sound(data: st.DataObject) -> None:
    damaged = bytearray(OLD)
    damaged[data.draw(st.integers(0, len(OLD) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        back = unpack(bytes(damaged))
    except InvalidInput:
        pass
    else:
        sound(back)
        assert read_head(bytes(damaged)).prediction_id == back.prediction_id
    with pytest.raises(InvalidInput, match="not a prediction record"):
        unpack(OLD[: data.draw(st.integers(0, len(OLD) - 1))])


# Arrays.


def test_arrays_are_views_of_the_blob() -> None:
    back = unpack(pack(small()))
    assert not back.scores.flags.writeable
    assert not back.features.ids[0].values.flags.owndata


def test_arrays_of_other_types_and_orders_are_written_as_they_are_meant() -> None:
    wide = np.arange(12, dtype=np.int64).reshape(3, 4)
    features = Features(3, (IdPart(np.arange(2), wide[:, ::2]), IdPart(i4(2, 3), np.asfortranarray(wide[:, :2]))))
    back = unpack(pack(PredictionRecord("p", 1, "e", "stable", "b", 1, features, np.arange(6, dtype=np.float64)[::2])))
    assert back.features.ids[0].values.tolist() == wide[:, ::2].tolist()
    assert back.features.ids[1].values.tolist() == wide[:, :2].tolist()
    assert back.scores.tolist() == [0, 2, 4]


def test_texts_are_cut_out_by_index() -> None:
    back = unpack(pack(small(candidate_texts=["käse", "\0"])))
    assert (back.candidate_texts[0], back.candidate_texts[-1], back.candidate_texts[:2]) == (
        "käse",
        "\0",
        ["käse", "\0"],
    )
    with pytest.raises(IndexError):
        back.candidate_texts[2]
