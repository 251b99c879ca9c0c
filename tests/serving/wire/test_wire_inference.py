from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from handmade import SCHEMA

from pipeline.errors import InvalidInput
from pipeline.hashing import hash_value
from protos.inference import message
from serving.wire.inference import InferCodec

CODEC = InferCodec(SCHEMA, 100)
Request = message("ModelInferRequest")
Response = message("ModelInferResponse")


def strings(*values: str) -> bytes:
    return b"".join(struct.pack("<I", len(v.encode())) + v.encode() for v in values)


def packed(n: int = 2) -> Any:
    request = Request(model_name="ranker", id="7")
    for name, datatype, shape, values in (
        ("ids", "INT64", [n, 2], np.arange(2 * n, dtype="<i8") + 1),
        ("numbers", "FP32", [n, 2], np.ones(2 * n, "<f4")),
        ("bag:tags", "INT64", [n, 3], np.array([[5, 0, 6]] * n, "<i8")),
        ("bag:genres", "INT64", [n, 1], np.zeros(n, "<i8")),
    ):
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(values.tobytes())
    return request


def named() -> Any:
    request = Request(model_name="ranker")
    for name, datatype, shape, content in (
        ("user", "BYTES", [2], strings("ann", "")),
        ("item", "INT64", [2, 1], np.array([3, 4], "<i8").tobytes()),
        ("age", "FP32", [2], np.array([1, np.nan], "<f4").tobytes()),
        ("price", "FP64", [2], np.array([1.5, 2.5], "<f8").tobytes()),
        ("tags", "BYTES", [2], strings("a,b", "")),
        ("genres", "BYTES", [2], strings("x", "y|z")),
    ):
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(content)
    return request


def typed(request: Any) -> Any:
    """The same request with typed contents."""
    for tensor, content in zip(request.inputs, request.raw_input_contents, strict=True):
        if tensor.datatype == "INT64":
            tensor.contents.int64_contents.extend(np.frombuffer(content, "<i8").tolist())
        elif tensor.datatype == "FP32":
            tensor.contents.fp32_contents.extend(np.frombuffer(content, "<f4").tolist())
        elif tensor.datatype == "FP64":
            tensor.contents.fp64_contents.extend(np.frombuffer(content, "<f8").tolist())
        else:
            at = 0
            while at < len(content):
                (size,) = struct.unpack_from("<I", content, at)
                tensor.contents.bytes_contents.append(content[at + 4 : at + 4 + size])
                at += 4 + size
    del request.raw_input_contents[:]
    return request


@pytest.mark.parametrize("wrap", [lambda r: r, typed], ids=["raw", "typed"])
def test_packed_rows_are_taken_as_they_are(wrap: Any) -> None:
    features, raw = CODEC.decode(wrap(packed()))
    assert raw is (wrap is not typed)
    rows = features.rows(SCHEMA)
    assert rows.ids.tolist() == [[1, 2], [3, 4]]
    assert rows.bags[0].offsets.tolist() == [0, 2, 4]
    assert rows.bags[0].values.tolist() == [5, 6, 5, 6]
    assert rows.bags[1].offsets.tolist() == [0, 0, 0]


@pytest.mark.parametrize("wrap", [lambda r: r, typed], ids=["raw", "typed"])
def test_named_values_are_hashed(wrap: Any) -> None:
    rows = CODEC.decode(wrap(named()))[0].rows(SCHEMA)
    assert rows.ids.tolist() == [
        [hash_value("user", "ann"), hash_value("item", 3)],
        [hash_value("user", ""), hash_value("item", 4)],
    ]
    np.testing.assert_array_equal(rows.numbers, np.array([[1, 1.5], [np.nan, 2.5]], np.float32))
    assert rows.bags[0].values.tolist() == [hash_value("tags", "a"), hash_value("tags", "b")]
    assert rows.bags[1].values.tolist() == [hash_value("genres", v) for v in ("x", "y", "z")]


@pytest.mark.parametrize(
    ("datatype", "dtype", "text"),
    [("INT32", "<i4", "7"), ("FP32", "<f4", "7"), ("BOOL", "?", "1"), ("UINT64", "<u8", "7")],
)
def test_ids_of_other_types_are_hashed_by_their_canonical_text(datatype: str, dtype: str, text: str) -> None:
    request = named()
    request.inputs[1].datatype = datatype
    request.raw_input_contents[1] = np.array([7, 7], dtype).tobytes()
    assert CODEC.decode(request)[0].rows(SCHEMA).ids[0, 1] == hash_value("item", text)


def change(request: Any, position: int, **fields: Any) -> Any:
    for key, value in fields.items():
        if key == "shape":
            del request.inputs[position].shape[:]
            request.inputs[position].shape.extend(value)
        elif key == "content":
            request.raw_input_contents[position] = value
        else:
            setattr(request.inputs[position], key, value)
    return request


def without(request: Any, position: int) -> Any:
    del request.inputs[position]
    del request.raw_input_contents[position]
    return request


def with_output(name: str) -> Any:
    request = packed()
    request.outputs.add(name=name)
    return request


def with_both() -> Any:
    request = packed()
    request.inputs[0].contents.int64_contents.extend([1, 2, 3, 4])
    return request


def in_shared_memory() -> Any:
    request = packed()
    request.inputs[0].parameters["shared_memory_region"].string_param = "r"
    return request


def wrong_contents() -> Any:
    request = typed(packed())
    request.inputs[0].ClearField("contents")
    request.inputs[0].contents.fp32_contents.extend([1, 2, 3, 4])
    return request


INFINITE = np.array([1, np.inf, 1, 1], "<f4").tobytes()


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (Request(model_name="ranker"), "inputs"),
        (without(packed(), 1), "numbers"),
        (without(named(), 0), "user"),
        (change(packed(), 0, name="id"), "id"),
        (change(packed(), 0, shape=[2, 3]), "ids"),
        (change(packed(), 0, shape=[2]), "ids"),
        (change(packed(), 0, shape=[1, 2, 2]), "ids"),
        (change(packed(), 0, shape=[-1, 2]), "ids"),
        (change(packed(), 0, shape=[1, 4]), "numbers"),
        (change(packed(), 0, datatype="FP64"), "ids"),
        (change(packed(), 0, datatype="COMPLEX"), "ids"),
        (change(packed(), 0, content=b"123"), "ids"),
        (change(packed(), 1, content=INFINITE), "price"),
        (change(named(), 2, content=np.array([1, np.inf], "<f4").tobytes()), "age"),
        (change(named(), 3, content=np.array([1, 1e300], "<f8").tobytes()), "price"),
        (change(named(), 3, datatype="INT64"), "price"),
        (change(named(), 4, datatype="INT64", content=np.zeros(2, "<i8").tobytes()), "tags"),
        (change(named(), 0, content=strings("ann")), "user"),
        (change(named(), 0, content=strings("ann", "bob")[:-1]), "user"),
        (change(named(), 0, content=struct.pack("<I", 1) + b"\xff" + strings("a")), "user"),
        (change(named(), 1, shape=[1, 2]), "item"),
        (change(packed(), 1, name="ids"), "ids"),
        (packed(101), "ids"),
        (packed(0), "ids"),
        (with_output("logit"), "logit"),
        (with_both(), "ids"),
        (in_shared_memory(), "ids"),
        (wrong_contents(), "ids"),
    ],
)
def test_a_bad_request_is_told_which_input(request_: Any, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        CODEC.decode(request_)
    assert caught.value.field == field


def test_answers_come_as_they_were_asked_for() -> None:
    scores = np.array([0.25, 0.5], np.float32)
    raw = Response.FromString(CODEC.encode(packed(), scores, raw=True, version="3", parameters={"arm": "stable"}))
    assert np.frombuffer(raw.raw_output_contents[0], "<f4").tolist() == [0.25, 0.5]
    assert not raw.outputs[0].HasField("contents")
    assert (raw.id, raw.model_version, raw.parameters["arm"].string_param) == ("7", "3", "stable")
    typed_ = Response.FromString(CODEC.encode(packed(), scores, raw=False, version="3", parameters={}))
    assert list(typed_.outputs[0].contents.fp32_contents) == [0.25, 0.5]
    assert not typed_.raw_output_contents


def test_metadata_and_config_tell_the_packed_form() -> None:
    metadata = CODEC.metadata("ranker", ["1"])
    assert [(i.name, i.datatype, list(i.shape)) for i in metadata.inputs] == [
        ("ids", "INT64", [-1, 2]),
        ("numbers", "FP32", [-1, 2]),
        ("bag:tags", "INT64", [-1, -1]),
        ("bag:genres", "INT64", [-1, -1]),
    ]
    config = CODEC.config("ranker")
    assert config.max_batch_size == 100
    assert [(i.name, list(i.dims)) for i in config.input][:2] == [("ids", [2]), ("numbers", [2])]
