from __future__ import annotations

import math
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.errors import InvalidInput
from pipeline.hashing import bucket, canonical, hash_bag_column, hash_column, hash_value

# The golden vectors of the contract: a client in any language must come to the same ids.
VECTORS: list[tuple[str, Any, int]] = [
    ("user_id", 712, 240845954018805456),
    ("user_id", "712", 240845954018805456),
    ("onehot_feat4", 3.0, -4311702463208625639),
    ("onehot_feat4", 3, -4311702463208625639),
    ("price", 0.1, -8234241872890937318),
    ("price", 1e-07, 8366117873343367662),
    ("price", 123456.75, -804324527757342777),
    ("tag", "39", -3810337044868718659),
    ("city", "Göttingen", 5885764708503931368),
    ("city", "", -4898413116935309551),
    ("city", None, -4898413116935309551),
    ("is_new", True, 8214416780788167828),
    ("is_new", False, 4914333221430957184),
    ("delta", -5, 4406658287504538846),
    ("big", 9007199254740993, -8320630706320859000),
    ("name", "a=b", -328109525451765919),
    ("space", " x ", -4736222151397535126),
]
BUCKETS = [
    ("r1", "712", 5333),
    ("r1", "713", 7322),
    ("r2", "712", 5405),
    ("ranker-2026", "user:42", 3282),
    ("", "x", 3925),
    ("r1", "Göttingen", 5504),
]


@pytest.mark.parametrize(("field", "value", "expected"), VECTORS)
def test_golden_ids(field: str, value: Any, expected: int) -> None:
    assert hash_value(field, value) == expected
    assert hash_column(field, [value, value]).tolist() == [expected] * 2


@pytest.mark.parametrize(("salt", "key", "expected"), BUCKETS)
def test_golden_buckets(salt: str, key: str, expected: int) -> None:
    assert bucket(salt, key) == expected


def test_missing_is_one_value_however_it_is_written() -> None:
    assert {hash_value("f", v) for v in (None, "", math.nan, np.float32("nan"), b"")} == {hash_value("f", "")}


def test_numpy_and_bytes_hash_as_python_does() -> None:
    assert hash_value("f", np.int32(7)) == hash_value("f", np.float64(7)) == hash_value("f", b"7") == hash_value("f", 7)
    assert hash_value("f", np.bool_(True)) == hash_value("f", True)


def test_decimals_and_uuids_are_their_exact_text() -> None:
    assert canonical(Decimal(9007199254740993)) == "9007199254740993"
    assert canonical(Decimal("1.50")) == canonical(1.5)
    assert [canonical(Decimal(text)) for text in ("10", "-0.00", "NaN", "1E+3")] == ["10", "0", "", "1000"]
    assert canonical(UUID(int=1)) == "00000000-0000-0000-0000-000000000001"


@pytest.mark.parametrize(
    "value", [2.0**53, -(2.0**60), math.inf, np.float32(2**24), np.float16(4096), Decimal("Infinity")]
)
def test_a_float_that_stands_for_several_whole_numbers_is_refused(value: Any) -> None:
    with pytest.raises(InvalidInput):
        canonical(value)
    if isinstance(value, float | np.floating):
        with pytest.raises(InvalidInput, match=r"field 'item'.*2\^"):
            hash_column("item", np.array([1, value, 2], getattr(value, "dtype", np.float64)))


def test_declared_texts_mean_missing_in_values_columns_and_bags() -> None:
    texts = frozenset({"None", "-1"})
    gone = hash_value("f", None)
    assert [hash_value("f", v, texts) for v in ("None", -1, -1.0, "", None)] == [gone] * 5
    assert hash_value("f", "None") != gone  # a bundle that declares nothing hashes as before
    assert hash_column("f", ["None", "none", "-1"], texts).tolist() == [gone, hash_value("f", "none"), gone]
    offsets, ids = hash_bag_column("f", ["a,None", "None", "", None], ",", texts)
    assert offsets.tolist() == [0, 2, 2, 2, 2]
    assert ids.tolist() == [hash_value("f", "a"), gone]


@pytest.mark.parametrize("value", [[1], {"a": 1}, object(), b"\xff"])
def test_what_has_no_text_is_refused(value: Any) -> None:
    with pytest.raises(InvalidInput):
        canonical(value)


def test_a_hash_of_zero_becomes_one(monkeypatch: pytest.MonkeyPatch) -> None:
    # No text with that hash is known, so the hash itself is replaced.
    monkeypatch.setattr(xxhash, "xxh3_64_intdigest", lambda _: 0)
    assert hash_value("f", "x") == 1


values = st.one_of(
    st.lists(st.one_of(st.none(), st.text(max_size=8))),
    st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1))),
    st.lists(st.one_of(st.none(), st.just(math.nan), st.floats(1 - 2.0**53, 2.0**53 - 1))),
    st.lists(st.booleans()),
)


@given(values)
@example([None, math.nan])
@example([])
@example([None])
def test_a_column_hashes_as_its_values(column: list[Any]) -> None:
    expected = [hash_value("f", v) for v in column]
    ids = hash_column("f", column)
    assert ids.dtype == np.int64
    assert ids.tolist() == expected
    array = pa.array(column)
    assert hash_column("f", array).tolist() == expected
    assert hash_column("f", pa.chunked_array([array, array])).tolist() == expected * 2
    if column and not pa.types.is_null(array.type):
        assert hash_column("f", array.dictionary_encode()).tolist() == expected


@given(st.lists(st.one_of(st.none(), st.lists(st.text("abc1", min_size=1, max_size=3), max_size=4))))
def test_bags_hash_element_by_element(bags: list[list[str] | None]) -> None:
    offsets, ids = hash_bag_column("tag", [None if b is None else ",".join(b) for b in bags], ",")
    assert offsets.dtype == np.int32
    assert offsets.tolist() == np.concatenate([[0], np.cumsum([len(b or []) for b in bags])]).tolist()
    assert ids.tolist() == [hash_value("tag", e) for b in bags for e in b or []]


def test_a_column_of_mixed_types_is_refused_by_name() -> None:
    with pytest.raises(InvalidInput, match="'age'"):
        hash_column("age", [1, "x"])
