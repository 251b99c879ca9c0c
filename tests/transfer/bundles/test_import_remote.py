"""The spec file of a remote arm: defaults by fields and by the server, and what is refused, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline.bundle.bundle import Bundle
from pipeline.bundle.versions import Repository
from pipeline.errors import BundleError, DataError
from pipeline.hashing import hash_value
from pipeline.model.codes import Codes
from transfer.bundles.remote.importing import RemoteFile, TensorThere, import_remote, load_remote_file

FIELDS = [
    {"name": "user", "role": "context"},
    {"name": "country", "role": "context"},
    {"name": "age", "role": "context", "kind": "number"},
    {"name": "item", "role": "candidate"},
    {"name": "price", "role": "candidate", "kind": "number"},
    {"name": "tags", "role": "candidate", "kind": "bag", "separator": ","},
]
SPEC: dict[str, Any] = {
    "remote": {"address": "grpc://127.0.0.1:9", "model": "ranker"},
    "fields": FIELDS,
    "inputs": {"x": {"fields": ["price", "age"]}},
    "outputs": {"click": {"name": "y", "column": 1}},
}


def made(folder: Path, there: dict[str, TensorThere] | None = None, **parts: Any) -> Bundle:
    file = RemoteFile.model_validate({**SPEC, **parts})
    return import_remote(file, folder / "m" / "1", name="m", inputs=there)


def test_what_the_file_does_not_say_follows_from_fields_and_codes(tmp_path: Path) -> None:
    bundle = made(
        tmp_path,
        inputs={
            "numbers": {"fields": ["price", "age"]},
            "country": {"field": "country"},
            "item": {"field": "item"},
            "user": {"field": "user", "per_request": True},
            "tags": {"field": "tags", "pad_to": 5, "hashed": True},
        },
        codes={"country": {"de": "DE"}, "user": {"u1": 7}},
        integers={"item": 1000},
    )
    spec = Bundle.open(bundle.path).remote_spec()
    assert {name: (put.dtype, put.shape) for name, put in spec.inputs.items()} == {
        "numbers": ("FP32", ("n", 2)),
        "country": ("BYTES", ("n", 1)),
        "item": ("INT64", ("n", 1)),
        "user": ("INT64", (1, 1)),
        "tags": ("INT64", ("n", 5)),
    }
    assert spec.unknown == {"country": "", "item": -1, "user": -1}
    ids = np.array([hash_value("item", 999), hash_value("item", 1000), 0])
    codes = Codes.open(bundle, "item", -1)
    assert codes.encode(ids).tolist() == [999, -1, -1]
    assert (codes.asked, codes.unknown) == (2, 1)
    assert bundle.manifest.tables == {}
    assert bundle.frozen


def test_the_server_completes_the_file(tmp_path: Path) -> None:
    there = {
        "price": TensorThere("FP64", (-1,)),
        "age": TensorThere("INT32", (-1, 1)),
        "country": TensorThere("INT32", (-1,)),
    }
    bundle = made(tmp_path, there, inputs="named", codes={"country": {"de": 1}}, unknown=0)
    found = bundle.remote_spec()
    assert {name: (put.dtype, put.shape) for name, put in found.inputs.items()} == {
        "price": ("FP64", ("n",)),
        "age": ("INT32", ("n", 1)),
        "country": ("INT32", ("n",)),
    }
    assert found.unknown == {"country": 0}


def test_the_inputs_of_another_baton(tmp_path: Path) -> None:
    spec = made(tmp_path, inputs="packed", fields=FIELDS[:-1]).remote_spec()
    assert {name: (put.fields, put.dtype, put.hashed) for name, put in spec.inputs.items()} == {
        "ids": (("user", "country", "item"), "INT64", True),
        "numbers": (("age", "price"), "FP32", False),
    }


def test_codes_and_fields_come_from_files(tmp_path: Path) -> None:
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump({"name": "clicks", "fields": FIELDS}))
    (tmp_path / "countries.csv").write_text("value,code\nde,1\nfr,2\n")
    (tmp_path / "users.csv").write_text("value\nanna\nbert\n")
    spec = {
        **SPEC,
        "fields": "dataset.yaml",
        "inputs": {"country": {"field": "country"}, "user": {"field": "user"}},
        "codes": {"country": "countries.csv", "user": "users.csv"},
    }
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    repository = Repository(tmp_path / "bundles")
    file = load_remote_file(tmp_path / "spec.yaml")
    bundles = [import_remote(file, repository, name="m") for _ in range(2)]
    assert [bundle.manifest.version for bundle in bundles] == ["1", "2"]
    users = Codes.open(bundles[1], "user", "nobody")
    assert users.encode(np.array([hash_value("user", "bert"), 5])).tolist() == [b"bert", b"nobody"]


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"inputs": {"x": {"fields": ["price", "user"]}}}, "'user' is an id, which reaches models as a hash: give its values"),
        ({"inputs": {"x": {"fields": ["price", "cost"]}}}, "inputs.x: 'cost' is not among the fields"),
        ({"inputs": {"x": {}}}, "inputs.x: name its field or its fields"),
        ({"inputs": {"x": {"fields": ["price", "age"], "shape": ["n", 3]}}}, r"shape \[n, 3\] does not hold 2 values"),
        ({"inputs": {"x": {"fields": ["price", "age"], "shape": [3, "n"]}}}, "first dimension of its shape is n"),
        ({"inputs": {"x": {"field": "price", "per_request": True}}}, "'price' is a candidate's"),
        ({"inputs": {"x": {"field": "tags", "hashed": True}}}, "needs pad_to"),
        ({"inputs": {"x": {"field": "price", "dtype": "BYTES"}}}, "'price' is a number, which cannot be sent as BYTES"),
        ({"inputs": {"x": {"field": "price", "hashed": True}}}, "hashed is for ids and bags"),
        ({"inputs": "named"}, "cannot send the bag 'tags'"),
        ({"inputs": "packed"}, "cannot send the bag 'tags'"),
        ({"codes": {"user": {"a": 1}}}, "codes: 'user' is sent by no input"),
        ({"outputs": {"click": "a", "purchase": "b"}}, "one head is served; keep one of click, purchase"),
        ({"fill": {"user": 1}}, "fill: 'user' is not a field of kind number"),
        (
            {"inputs": {"x": {"field": "user", "dtype": "UINT8"}}, "codes": {"user": {"a": 256, "b": 1}}},
            "UINT8 does not hold 256 exactly, a code of 'user'",
        ),
        (
            {"inputs": {"x": {"field": "user", "dtype": "FP32"}}, "codes": {"user": {"a": (1 << 24) + 1}}},
            "FP32 does not hold 16777217 exactly",
        ),
        ({"inputs": {"x": {"field": "user", "dtype": "INT64"}}, "codes": {"user": {"a": "A"}}}, "INT64 cannot hold the codes"),
        ({"inputs": {"x": {"field": "user"}}, "codes": {"user": {"a": "A"}}, "unknown": 3}, "texts and numbers are mixed"),
    ],
)  # fmt: skip
def test_what_cannot_be_sent_is_refused_by_name(tmp_path: Path, parts: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        made(tmp_path, **parts)
    assert not list(tmp_path.rglob("*.json"))


def test_all_faults_of_a_file_are_said_at_once(tmp_path: Path) -> None:
    spec = {**SPEC, "remote": {"address": "http://x", "model": ""}, "more": 1}
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    with pytest.raises(DataError) as caught:
        load_remote_file(tmp_path / "spec.yaml")
    for place in ("remote.address", "remote.model", "more"):
        assert place in str(caught.value)


def test_a_spec_that_was_changed_by_hand_is_found(tmp_path: Path) -> None:
    bundle = made(tmp_path)
    spec = bundle.path / "remote.json"
    spec.write_text(spec.read_text().replace("127.0.0.1", "127.0.0.2"))
    with pytest.raises(BundleError, match=r"remote.json does not match its SHA-256"):
        Bundle.open(bundle.path)
