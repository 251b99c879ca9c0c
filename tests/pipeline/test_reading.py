"""Reading of a request by a model whose fields are others."""

from __future__ import annotations

import numpy as np
import pytest
from handmade import SCHEMA

from pipeline.errors import InvalidInput
from pipeline.features import Bag, Features, IdPart, NumberPart, Rows
from pipeline.hashing import hash_value
from pipeline.reading import Missing, Reading, read
from pipeline.schema import FieldSpec, Schema

BY_NAME = {field.name: field for field in SCHEMA.fields}
BRAND = FieldSpec(name="brand", role="candidate", kind="id")
SIZE = FieldSpec(name="size", role="context", kind="number")
LABELS = FieldSpec(name="labels", role="candidate", kind="bag", separator=",")
OTHER = Schema(fields=(BRAND, BY_NAME["item"], SIZE, BY_NAME["price"], LABELS, BY_NAME["genres"]))


def features() -> Features:
    """Three candidates; ids in one part of both roles, as the Open Inference Protocol gives them."""
    ids = IdPart(np.array([1, 0], np.int32), np.array([[10, 7], [11, 7], [12, 7]]))
    numbers = (
        NumberPart(np.array([0], np.int32), np.array([[30.0]], np.float32)),
        NumberPart(np.array([1], np.int32), np.array([[1.0], [2.0], [np.nan]], np.float32)),
    )
    tags = Bag(0, np.array([0, 1], np.int32), np.array([5]))
    genres = Bag(1, np.array([0, 2, 2, 3], np.int32), np.array([1, 2, 3]))
    return Features(3, (ids,), numbers, (tags, genres))


def test_a_model_reads_its_own_fields_and_takes_those_that_were_not_sent_as_missing() -> None:
    sent = features()
    sent.check(SCHEMA)
    rows = read(sent, SCHEMA.columns, OTHER).rows(OTHER)
    np.testing.assert_array_equal(rows.ids, [[hash_value("brand", None), item] for item in (10, 11, 12)])
    np.testing.assert_array_equal(rows.numbers, np.float32([[np.nan, 1], [np.nan, 2], [np.nan, np.nan]]))
    labels, genres = rows.bags
    assert labels.offsets.tolist() == [0, 0, 0, 0]
    assert (genres.offsets.tolist(), genres.values.tolist()) == ([0, 2, 2, 3], [1, 2, 3])


def test_the_arms_read_a_joined_request_as_if_it_were_made_for_each() -> None:
    joined = SCHEMA.joined(OTHER)
    absent = Missing(joined, OTHER.fields_beside(SCHEMA))
    sent = features()
    whole = Features(3, (*sent.ids, *absent.ids), (*sent.numbers, *absent.numbers), (*sent.bags, *absent.bags))
    whole.check(joined)
    assert whole.shares_context(joined) == sent.shares_context(SCHEMA)
    for schema in (SCHEMA, OTHER):
        ours, alone = (
            _arrays(read(f, c, schema).rows(schema)) for f, c in ((whole, joined.columns), (sent, SCHEMA.columns))
        )
        for one, other in zip(ours, alone, strict=True):
            np.testing.assert_array_equal(one, other)


def test_equal_columns_cost_nothing_and_others_are_worked_out_once() -> None:
    assert Reading.of(SCHEMA.columns, SCHEMA) is None
    assert Reading.of(OTHER.columns, SCHEMA) is Reading.of(OTHER.columns, SCHEMA)
    sent = features()
    assert read(sent, SCHEMA.columns, SCHEMA) is sent
    same_order = Schema(fields=(*SCHEMA.fields, BRAND))
    assert read(sent, SCHEMA.columns, same_order).ids[0].values is sent.ids[0].values, (
        "a part that is read whole is not copied"
    )


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ("user,price;age;tags,genres", "'price' is of kind number"),
        ("user;age,price;tags,genres", "column outside"),
        ("user,item;age,price;tags", "bag outside"),
        ("user,item", "does not name"),
    ],
)
def test_columns_that_contradict_the_model_or_the_features_are_refused(columns: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        read(features(), columns, SCHEMA)


def _arrays(rows: Rows) -> list[np.ndarray]:
    return [rows.ids, rows.numbers, *(array for bag in rows.bags for array in (bag.offsets, bag.values))]
