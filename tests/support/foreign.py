"""Networks from elsewhere, and bundles of them: two numbers per candidate, and what goes wrong with such networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.bundle.bundle import Bundle, BundleWriter, Manifest, Table, TableInfo
from pipeline.schema import FieldSpec, Schema

NUMBERS = Schema(
    fields=(
        FieldSpec(name="user", role="context", kind="id"),
        FieldSpec(name="age", role="context", kind="number"),
        FieldSpec(name="price", role="candidate", kind="number"),
    )
).with_width(1)

node = helper.make_node
_value = helper.make_tensor_value_info
_WEIGHTS = {
    "w": np.array([[0.5], [-1.0]], np.float32),
    "axes": np.array([1], np.int64),
    "zero": np.zeros((), np.float32),
    "scale": np.ones(2, np.float32),
    "offset": np.zeros(2, np.float32),
    "turns": np.array(2**62),
    "always": np.array(True),
    "huge": np.array([1 << 31], np.int64),
}
_FILLED = [node("IsNaN", ["numbers"], ["gone"]), node("Where", ["gone", "zero", "numbers"], ["filled"])]
_SCORED = [node("MatMul", ["filled", "w"], ["column"]), node("Squeeze", ["column", "axes"], ["row"])]


def network(nodes: Sequence[Any]) -> onnx.ModelProto:
    """A bundle's network of `embeddings` (not read) and `numbers`; the nodes go from `numbers` to `logit`."""
    used = {name for one in nodes for name in one.input}
    graph = helper.make_graph(
        list(nodes),
        "foreign",
        [_value("embeddings", TensorProto.FLOAT, ["n", 1]), _value("numbers", TensorProto.FLOAT, ["n", 2])],
        [_value("logit", TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(value, name) for name, value in _WEIGHTS.items() if name in used],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def row_by_row(weight: float = 1.0) -> onnx.ModelProto:
    """Scores each row by itself; equal weights make equal files."""
    made = network([*_FILLED, *_SCORED, node("Identity", ["row"], ["logit"])])
    made.doc_string = str(weight)
    return made


def mean_over_batch() -> onnx.ModelProto:
    mean = [node("ReduceMean", ["row"], ["mean"], axes=[0], keepdims=1), node("Sub", ["row", "mean"], ["logit"])]
    return network([*_FILLED, *_SCORED, *mean])


def training_norm() -> onnx.ModelProto:
    norm = node(
        "BatchNormalization", ["filled", "scale", "offset", "offset", "scale"], ["normal", "m", "v"], training_mode=1
    )
    scored = [node("MatMul", ["normal", "w"], ["column"]), node("Squeeze", ["column", "axes"], ["logit"])]
    return network([*_FILLED, norm, *scored])


def drawing() -> onnx.ModelProto:
    noise = [node("RandomNormalLike", ["row"], ["noise"]), node("Add", ["row", "noise"], ["logit"])]
    return network([*_FILLED, *_SCORED, *noise])


def needs_price() -> onnx.ModelProto:
    """Fills the age that is missing, and not the price."""
    split = [
        node("Split", ["numbers"], ["age", "price"], axis=1),
        node("IsNaN", ["age"], ["gone"]),
        node("Where", ["gone", "zero", "age"], ["known"]),
        node("Concat", ["known", "price"], ["filled"], axis=1),
    ]
    return network([*split, *_SCORED, node("Identity", ["row"], ["logit"])])


def endless() -> onnx.ModelProto:
    """2^62 turns before the answer."""
    body = helper.make_graph(
        [node("Add", ["have", "nought"], ["sum"]), node("Identity", ["go"], ["on"])],
        "turn",
        [
            _value("turn", TensorProto.INT64, []),
            _value("go", TensorProto.BOOL, []),
            _value("have", TensorProto.FLOAT, ["n"]),
        ],
        [_value("on", TensorProto.BOOL, []), _value("sum", TensorProto.FLOAT, ["n"])],
        initializer=[numpy_helper.from_array(np.zeros((), np.float32), "nought")],
    )
    return network([*_FILLED, *_SCORED, node("Loop", ["turns", "always", "row"], ["logit"], body=body)])


def greedy() -> onnx.ModelProto:
    """Makes an array of 8 GiB before the answer."""
    large = [
        node("ConstantOfShape", ["huge"], ["large"]),
        node("ReduceMax", ["large"], ["most"], keepdims=0),
        node("Mul", ["most", "zero"], ["nothing"]),
        node("Add", ["row", "nothing"], ["logit"]),
    ]
    return network([*_FILLED, *_SCORED, *large])


def write_foreign(path: Path, model: onnx.ModelProto) -> Bundle:
    """A bundle of such a network; its name and version are those of the path."""
    with BundleWriter(path) as writer:
        onnx.save(model, str(writer.path("dense.onnx")))
        writer.table("user", Table(np.array([5], np.int64), np.ones((1, 1), np.float32), np.ones(1, np.int64)))
        return writer.finish(
            Manifest(
                name=path.parent.name,
                version=path.name,
                architecture="onnx",
                schema=NUMBERS,
                tables={"user": TableInfo(width=1, rows=1, default=(0.0,))},
            )
        )
