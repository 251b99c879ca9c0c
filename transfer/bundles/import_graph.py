"""Adapter of an imported ONNX network to a bundle's network: `embeddings`, `numbers` -> `logit`.

Nodes before it pick the columns that the network was trained on from the bundle's inputs. Nodes after it turn
probabilities into log-odds. The network itself is unchanged. It knows nothing of ids, tables or files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

from pipeline.arrays import Arrays
from pipeline.errors import BundleError
from pipeline.schema import Schema

__all__ = ["Kind", "adapted"]

Kind = Literal["probability", "logit"]

SMALLEST_PROBABILITY = 1e-7
"""Probabilities are kept this far from 0 and 1 before their log-odds are taken."""
_FLOATS = {TensorProto.FLOAT, TensorProto.DOUBLE}
_NUMERIC = {*_FLOATS, TensorProto.INT64, TensorProto.INT32}


@dataclass(frozen=True, slots=True)
class _Answer:
    """An output of the network: its name and type, columns (0: unknown or a vector) and what its numbers are."""

    name: str
    dtype: int
    columns: int
    kind: Kind


def adapted(
    model: ModelProto,
    schema: Schema,
    columns: Sequence[str],
    *,
    output: str | None = None,
    kind: Kind | None = None,
    fill: Mapping[str, float] | None = None,
) -> ModelProto:
    """The network with a bundle's inputs and output.

    Args:
        model: one numeric input `[n, len(columns)]`, or one input `[n, 1]` per column, under its name.
        schema: the bundle's; fields of kind id have vectors of width 1 that hold their codes.
        columns: fields that the network reads, in its order.
        output: name of the output with the answer; needed where several could be.
        kind: of its numbers; needed unless they are the probabilities `[n, 2]` of two classes.
        fill: what the network reads where a number is missing; NaN for those that are not named.

    Raises:
        BundleError: inputs or outputs do not fit; the message names them.
    """
    model = ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    _without_zipmaps(graph)
    answer = _answer(graph, output, kind)
    taken = {name for node in graph.node for name in (*node.input, *node.output)} | {t.name for t in graph.initializer}
    if taken & {"embeddings", "numbers", "logit"} - {v.name for v in (*graph.input, *graph.output)}:
        raise BundleError("the network uses the names embeddings, numbers or logit inside; rename these", "name")
    _prefix(graph)
    front, inputs = _front(graph, schema, columns, filled=bool(fill))
    back = _back(answer)
    nodes = [*front, *graph.node, *back]
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    graph.input.extend(inputs)
    graph.output.append(helper.make_tensor_value_info("logit", TensorProto.FLOAT, ["n"]))
    graph.initializer.extend(_constants(schema, columns, fill or {}))
    del graph.value_info[:]  # shapes of before
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise BundleError(f"the network does not survive its new inputs and output: {error}") from None
    return model


def _without_zipmaps(graph: onnx.GraphProto) -> None:
    """Converters of scikit-learn models end in a list of dictionaries; what goes into it is the plain tensor."""
    for node in [n for n in graph.node if n.op_type == "ZipMap"]:
        graph.node.remove(node)
        old = next(v for v in graph.output if v.name == node.output[0])
        graph.output.remove(old)
        graph.output.append(helper.make_tensor_value_info(node.input[0], TensorProto.FLOAT, [None, 2]))


def _answer(graph: onnx.GraphProto, name: str | None, kind: Kind | None) -> _Answer:
    floats = [v for v in graph.output if v.type.tensor_type.elem_type in _FLOATS]
    if name is not None:
        floats = [v for v in floats if v.name == name]
    if len(floats) != 1:
        raise BundleError(
            f"outputs are {[v.name for v in graph.output]}; name the one of floats that answers with `output`", "output"
        )
    (value,) = floats
    shape = value.type.tensor_type.shape.dim
    columns = shape[1].dim_value if len(shape) == 2 else 0
    if columns > 2:
        raise BundleError(f"output {value.name!r} has {columns} columns; a click has two classes", "output")
    if kind is None and columns != 2:
        raise BundleError(f"say what output {value.name!r} holds, with `kind`: probability or logit", "kind")
    return _Answer(value.name, value.type.tensor_type.elem_type, columns, kind or "probability")


def _prefix(graph: onnx.GraphProto) -> None:
    """Rename the network's own inputs, so that they differ from the bundle's."""
    weights = {t.name for t in graph.initializer}
    renamed = {v.name: f"own/{v.name}" for v in graph.input if v.name not in weights}
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
    for value in graph.input:
        value.name = renamed.get(value.name, value.name)


def _front(
    graph: onnx.GraphProto, schema: Schema, columns: Sequence[str], *, filled: bool
) -> tuple[list[onnx.NodeProto], list[ValueInfoProto]]:
    """Nodes that make the network's inputs, and the bundle's inputs."""
    weights = {t.name for t in graph.initializer}
    own = [v for v in graph.input if v.name not in weights]
    for value in own:
        if value.type.tensor_type.elem_type not in _NUMERIC:
            raise BundleError(
                f"input {value.name[4:]!r} is not numeric; convert the model with float inputs and give ids their codes",
                value.name[4:],
            )
    wanted: list[tuple[ValueInfoProto, str]]
    if len(own) == 1:
        shape = own[0].type.tensor_type.shape.dim
        width = shape[1].dim_value if len(shape) == 2 else 0
        if width not in (0, len(columns)):
            raise BundleError(
                f"input {own[0].name[4:]!r} has {width} columns where {len(columns)} are named: {', '.join(columns)}",
                "columns",
            )
        wanted = [(own[0], "all")]
    else:
        names = {v.name[4:] for v in own}
        if names != set(columns):
            raise BundleError(
                f"inputs are {sorted(names)}, columns {sorted(columns)}; name as columns what the network reads",
                "columns",
            )
        wanted = [(v, v.name[4:]) for v in own]
    blocks = [name for name, fields in (("embeddings", schema.embedded), ("numbers", schema.numbers)) if fields]
    nodes = [helper.make_node("Concat", blocks, ["own/bundle"], axis=1)]
    if filled:
        nodes = [
            helper.make_node("Concat", blocks, ["own/sent"], axis=1),
            helper.make_node("IsNaN", ["own/sent"], ["own/missing"]),
            helper.make_node("Where", ["own/missing", "own/fill", "own/sent"], ["own/bundle"]),
        ]
    for value, which in wanted:
        picked = f"{value.name}/picked"
        nodes.append(helper.make_node("Gather", ["own/bundle", f"own/columns/{which}"], [picked], axis=1))
        nodes.append(helper.make_node("Cast", [picked], [value.name], to=value.type.tensor_type.elem_type))
    sizes = {"embeddings": len(schema.embedded), "numbers": len(schema.numbers)}
    inputs = [helper.make_tensor_value_info(b, TensorProto.FLOAT, ["n", sizes[b]]) for b in blocks]
    return nodes, inputs


def _back(answer: _Answer) -> list[onnx.NodeProto]:
    """Nodes from the network's answer to `logit`."""
    nodes = [helper.make_node("Cast", [answer.name], ["own/answer"], to=TensorProto.FLOAT)]
    last = "own/answer"
    if answer.columns == 2:  # of the classes 0 and 1
        nodes.append(helper.make_node("Gather", [last, "own/second"], ["own/click"], axis=1))
        last = "own/click"
    nodes.append(helper.make_node("Reshape", [last, "own/flat"], ["own/row"]))
    if answer.kind == "logit":
        return [*nodes, helper.make_node("Identity", ["own/row"], ["logit"])]
    return [
        *nodes,
        helper.make_node("Max", ["own/row", "own/low"], ["own/above"]),
        helper.make_node("Min", ["own/above", "own/high"], ["own/p"]),
        helper.make_node("Sub", ["own/one", "own/p"], ["own/q"]),
        helper.make_node("Div", ["own/p", "own/q"], ["own/odds"]),
        helper.make_node("Log", ["own/odds"], ["logit"]),
    ]


def _constants(schema: Schema, columns: Sequence[str], fill: Mapping[str, float]) -> list[TensorProto]:
    order = [f.name for f in (*schema.embedded, *schema.numbers)]
    places = {name: order.index(name) for name in columns}
    arrays: Arrays = {
        "own/second": np.array([1]),
        "own/flat": np.array([-1]),
        "own/low": np.array(SMALLEST_PROBABILITY, np.float32),
        "own/high": np.array(1 - SMALLEST_PROBABILITY, np.float32),
        "own/one": np.array(1, np.float32),
        "own/fill": np.array([fill.get(name, np.nan) for name in order], np.float32),
        "own/columns/all": np.array([places[name] for name in columns]),
        **{f"own/columns/{name}": np.array([place]) for name, place in places.items()},
    }
    return [numpy_helper.from_array(array, name) for name, array in arrays.items()]
