"""Prediction record: a packed record is unpacked unchanged, and other bytes are refused."""

from __future__ import annotations

import contextlib

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InvalidInput
from pipeline.features import Bag, Features, IdPart, NumberPart
from pipeline.traffic.record import ARMS, PredictionRecord, pack, read_head, unpack

NAMES = st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), max_size=12)
I64 = st.integers(-(1 << 63), (1 << 63) - 1)
F32 = st.floats(width=32)


@st.composite
def records(draw: st.DrawFn) -> PredictionRecord:
    n = draw(st.integers(0, 5))

    def array(dtype: type, elements: st.SearchStrategy, *shape: int) -> npt.NDArray:
        size = int(np.prod(shape))
        return np.array(draw(st.lists(elements, min_size=size, max_size=size)), dtype).reshape(shape)

    def rows() -> int:
        return draw(st.sampled_from([1, n]))

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
    return PredictionRecord(
        draw(NAMES),
        draw(I64),
        draw(NAMES),
        draw(st.sampled_from(ARMS)),
        draw(NAMES),
        draw(st.integers(0, (1 << 63) - 1)),
        Features(n, tuple(ids), tuple(numbers), tuple(bags)),
        array(np.float32, F32, n),
        draw(st.integers(0, (1 << 64) - 1)),
        draw(st.booleans()),
        draw(st.one_of(st.none(), st.just(array(np.int64, I64, n)))),
    )


def same(a: npt.NDArray | None, b: npt.NDArray | None) -> None:
    if a is None or b is None:
        assert a is b
        return
    assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


@given(records())
@settings(derandomize=True, deadline=None)
def test_round_trip(record: PredictionRecord) -> None:
    back = unpack(pack(record))
    head = read_head(pack(record))
    for name in ("prediction_id", "time_ms", "endpoint", "arm", "routing_hash"):
        assert getattr(head, name) == getattr(record, name)
    assert head.n == record.features.n
    for name in ("prediction_id", "time_ms", "endpoint", "arm", "bundle", "version", "routing_hash", "overridden"):
        assert getattr(back, name) == getattr(record, name)
    same(back.scores, record.scores)
    same(back.candidate_ids, record.candidate_ids)
    f, g = back.features, record.features
    assert (f.n, len(f.ids), len(f.numbers), len(f.bags)) == (g.n, len(g.ids), len(g.numbers), len(g.bags))
    for part, other in zip(f.ids + f.numbers, g.ids + g.numbers, strict=True):
        same(part.columns, other.columns)
        same(part.values, other.values)
    for bag, other_bag in zip(f.bags, g.bags, strict=True):
        assert bag.column == other_bag.column
        same(bag.offsets, other_bag.offsets)
        same(bag.values, other_bag.values)


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
@settings(derandomize=True, deadline=None)
def test_damage_is_refused_or_harmless(record: PredictionRecord, data: st.DataObject) -> None:
    blob = bytearray(pack(record))
    blob[data.draw(st.integers(0, len(blob) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        back = unpack(bytes(blob))
    except InvalidInput:
        with contextlib.suppress(InvalidInput):
            read_head(bytes(blob))
    else:
        assert read_head(bytes(blob)).prediction_id == back.prediction_id


def test_arrays_are_views_of_the_blob() -> None:
    features = Features(2, (IdPart(np.zeros(1, np.int32), np.array([[1], [2]])),))
    record = PredictionRecord("p", 1, "e", "stable", "b", 1, features, np.zeros(2, np.float32))
    back = unpack(pack(record))
    assert not back.scores.flags.writeable
    assert not back.features.ids[0].values.flags.owndata
