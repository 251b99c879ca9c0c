"""Index of a field: raw values become a team's own row numbers, alike on every path."""

import numpy as np
import pytest

from pipeline.errors import InvalidInput
from pipeline.farmhash import farm64
from pipeline.hashing import hash_bag_column, hash_column, hash_value
from pipeline.index import Index
from pipeline.schema import FieldSpec


@pytest.mark.parametrize(
    ("text", "expected"),
    [  # computed by FarmHash's own library; the first three are BigQuery's documented examples
        ("1footrue", 2**64 - 1541654101129638711), ("2applefalse", 2794438866806483259), ("3true", 2**64 - 4880158226897771312),
        ("", 11160318154034397263), ("aaa", 17195123558281476841), ("a" * 8, 15342088777217881605), ("a" * 20, 15065261471293997870),
        ("a" * 40, 2168401864796137711), ("a" * 64, 5893282057753879417), ("a" * 65, 7778058094944459892), ("a" * 200, 14721331430260164897),
    ],
)  # fmt: skip
def test_farm64_is_that_of_its_authors(text, expected):
    assert farm64(text.encode()) == expected


def test_a_value_has_the_id_of_its_row_number():
    index = Index(hash="farm64", buckets=100)
    row = farm64(b"user 7") % 100
    assert hash_value("u", "user 7", (), index) == hash_value("u", row)
    values, again = hash_column("u", ["user 7", None, ""], (), index), hash_value("u", None)
    assert values.tolist() == [hash_value("u", row), again, again]
    _, bag = hash_bag_column("u", ["user 7,x", None], ",", ("x",), index)
    assert bag.tolist() == [hash_value("u", row), again]
    assert hash_column("u", np.array([712]), (), Index(hash="identity", buckets=100)).tolist() == [hash_value("u", 12)]
    with pytest.raises(InvalidInput, match="no integer"):
        hash_value("u", "x", (), Index(hash="identity", buckets=100))


def test_only_ids_and_bags_have_one_and_arms_must_agree_on_it():
    with pytest.raises(ValueError, match="index belongs to ids"):
        FieldSpec(name="p", role="context", kind="number", index=Index(hash="xxh64", buckets=2))
