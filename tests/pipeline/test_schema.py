from __future__ import annotations

import time
from typing import Any

import pytest
from handmade import SCHEMA
from pydantic import ValidationError

from pipeline.schema import FieldSpec, Schema


def test_fields_by_kind_keep_schema_order() -> None:
    assert [f.name for f in SCHEMA.ids] == ["user", "item"]
    assert [f.name for f in SCHEMA.bags] == ["tags", "genres"]
    assert [f.name for f in SCHEMA.numbers] == ["age", "price"]
    assert [f.name for f in SCHEMA.embedded] == ["user", "tags", "item", "genres"]
    assert SCHEMA.with_width(8).embedding_width == 32
    assert SCHEMA.with_width(8).bags[0].pooling == "mean"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"kind": "bag"}, "separator"),
        ({"kind": "id", "separator": ","}, "separator"),
        ({"kind": "id", "transform": "log1p"}, "transform"),
        ({"kind": "number", "table": "t"}, "table"),
        ({"kind": "number", "width": 4}, "table"),
        ({"kind": "text"}, "kind"),
        ({"name": "a b"}, "name"),
        ({"width": 0}, "width"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_field_that_contradicts_itself_is_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FieldSpec.model_validate({"name": "f", "role": "context", **spec})


def test_names_are_unique() -> None:
    field = FieldSpec(name="f", role="context", kind="id")
    with pytest.raises(ValidationError, match="'f' is named twice"):
        Schema(fields=(field, field))


def test_many_fields_are_checked_in_a_time_that_grows_with_their_number() -> None:
    begin = time.process_time()
    Schema(fields=tuple(FieldSpec(name=f"n{at}", role="candidate", kind="number") for at in range(20_000)))
    assert time.process_time() - begin < 6, "by comparing each with all others it was a minute"


def test_schemas_match_by_what_a_caller_sees() -> None:
    assert SCHEMA.inputs_match(SCHEMA.with_width(8)) is None
    fields = list(SCHEMA.fields)
    fields[5] = FieldSpec(name="genres", role="candidate", kind="bag", separator=",")
    assert SCHEMA.inputs_match(Schema(fields=tuple(fields))) == "field 'genres': separator is '|' here and ',' there"
    fewer = Schema(fields=(*SCHEMA.fields[1:4], FieldSpec(name="size", role="candidate", kind="number")))
    assert SCHEMA.inputs_match(fewer) is None
    assert fewer.inputs_match(SCHEMA) is None
    assert SCHEMA.fields_beside(fewer) == ["user", "price", "genres"]
    assert fewer.fields_beside(SCHEMA) == ["size"]
    other = Schema(fields=(FieldSpec(name="size", role="candidate", kind="number"),))
    assert SCHEMA.inputs_match(other) == "they have no field in common"


def test_requests_of_two_schemas_have_the_fields_of_the_first_and_then_those_that_the_second_alone_has() -> None:
    other = Schema(fields=(FieldSpec(name="brand", role="candidate", kind="id"), *reversed(SCHEMA.fields)))
    joined = SCHEMA.joined(other)
    assert [f.name for f in joined.fields] == [*(f.name for f in SCHEMA.fields), "brand"]
    assert joined.columns == "user,item,brand;age,price;tags,genres"


def test_survives_json() -> None:
    schema = SCHEMA.with_width(8)
    assert Schema.model_validate_json(schema.model_dump_json()) == schema
