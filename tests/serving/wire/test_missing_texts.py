"""A text that a field declares as missing is missing at every entrance; a bundle that declares none hashes as before."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest

from pipeline.errors import InvalidInput
from pipeline.farmhash import farm64
from pipeline.features import Features
from pipeline.hashing import hash_value
from pipeline.index import Index
from pipeline.schema import MISSING_TEXTS, FieldSpec, Schema
from protos.baton.ranking.v1 import ranking_pb2 as pb
from protos.inference import message
from serving.wire.inference import InferCodec
from serving.wire.ranking import RankCodec
from transfer.bundles.importing.spec import ImportSpec

TEXTS = ["", *MISSING_TEXTS, "-1", "x"]


def schema(missing: tuple[Any, ...]) -> Schema:
    bag = FieldSpec(name="tags", role="candidate", kind="bag", separator=",", missing=missing)
    return Schema(fields=(FieldSpec(name="item", role="candidate", missing=missing), bag))


def triton(known: Schema, datatype: str = "BYTES", content: bytes | None = None, n: int = len(TEXTS)) -> Features:
    texts = b"".join(struct.pack("<I", len(text)) + text.encode() for text in TEXTS[:n])
    request = message("ModelInferRequest")(model_name="ranker")
    for name, kind, values in (("item", datatype, content or texts), ("tags", "BYTES", texts)):
        request.inputs.add(name=name, datatype=kind, shape=[n])
        request.raw_input_contents.append(values)
    return InferCodec(known, 100).decode(request)[0]


def rank(known: Schema) -> Features:
    request = pb.RankRequest(endpoint="ranker")
    for name in ("item", "tags"):
        request.candidates.columns.add(field=name).strings.values.extend(TEXTS)
    return RankCodec(known, 100).decode(request)


@pytest.mark.parametrize("decode", [triton, rank])
@pytest.mark.parametrize("missing", [(), MISSING_TEXTS, ("-1",)])
def test_texts_are_missing_where_the_bundle_says_so(decode: Any, missing: tuple[str, ...]) -> None:
    known = schema(missing)
    rows = decode(known).rows(known)
    assert rows.ids[:, 0].tolist() == [hash_value("item", "" if text in missing else text) for text in TEXTS]
    assert np.diff(rows.bags[0].offsets).tolist() == [int(text not in ("", *missing)) for text in TEXTS]


def test_numbers_may_mean_missing_too() -> None:
    known = schema((-1,))
    for datatype, kind in (("INT64", "<i8"), ("FP32", "<f4"), ("FP64", "<f8")):
        found = triton(known, datatype, np.array([-1, 7], kind).tobytes(), 2).rows(known)
        assert found.ids[:, 0].tolist() == [hash_value("item", None), hash_value("item", 7)]


@pytest.mark.parametrize(("datatype", "kind", "value"), [("FP32", "<f4", 2.0**24), ("FP64", "<f8", 2.0**53)])
def test_a_float_that_is_no_exact_id_is_refused_by_field(datatype: str, kind: str, value: float) -> None:
    with pytest.raises(InvalidInput, match="'item'") as caught:
        triton(schema(()), datatype, np.array([value, 7], kind).tobytes(), 2)
    assert caught.value.field == "item"


@pytest.mark.parametrize("decode", [triton, rank])
def test_a_field_with_an_index_has_the_id_of_its_row_number_at_every_entrance(decode: Any) -> None:
    index = Index(hash="farm64", buckets=7)
    fields = tuple(field.model_copy(update={"index": index}) for field in schema(("-1",)).fields)
    known = Schema(fields=fields)
    rows = decode(known).rows(known)
    numbers = [None if text in ("", "-1") else farm64(text.encode()) % 7 for text in TEXTS]
    assert rows.ids[:, 0].tolist() == [hash_value("item", number) for number in numbers]
    assert rows.bags[0].values.tolist() == [hash_value("tags", number) for number in numbers if number is not None]
    assert "index" in (schema(("-1",)).inputs_match(known) or "")


def test_arms_must_agree_on_missing_texts() -> None:
    assert "missing" in (schema(()).inputs_match(schema(("-1",))) or "")
    assert schema(("b", "a", "")).inputs_match(schema(("a", "b"))) is None


def test_an_imported_model_has_the_defaults_of_a_log() -> None:
    fields = [{"name": "item", "role": "candidate"}, {"name": "seller", "role": "candidate", "missing": []}]
    imported = ImportSpec.model_validate({"fields": fields, "codes": {"item": {"a": 1}}}).schema_of_bundle
    assert [f.missing for f in imported.fields] == [MISSING_TEXTS, ()]
