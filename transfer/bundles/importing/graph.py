"""Adapter of an imported ONNX network to a bundle's network: `embeddings`, `numbers` -> `logit`.

Nodes before it pick what the network reads from the bundle's inputs: numbers, codes of ids, texts of codes, and vectors where
a table was lifted out. Nodes after it take the column of the click and turn probabilities into log-odds. The network itself
is unchanged. It knows nothing of ids, tables or files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from pipeline.arrays import Arrays
from pipeline.errors import BundleError
from pipeline.schema import Schema
from transfer.bundles.importing.classes import Label, labels_of, positive_column
from transfer.bundles.importing.texts import UNKNOWN_TEXT

__all__ = ["Answer", "Kind", "Vectors", "Wanted", "adapted", "answer_of"]

Kind = Literal["probability", "logit"]

SMALLEST_PROBABILITY = 1e-7
"""Probabilities are kept this far from 0 and 1 before their log-odds are taken."""
ML_OPSET_VERSION = 3
_FLOATS = {TensorProto.FLOAT, TensorProto.DOUBLE}
_OWN = ("embeddings", "numbers", "logit")


@dataclass(frozen=True, slots=True)
class Answer:
    """An output of a network: its name, columns (0: unknown or a vector), the click's among them, and what its numbers are.

    Args:
        note: what to know of it before it serves.
    """

    name: str
    columns: int
    column: int
    kind: Kind
    note: str = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an input of the network is made of: `fields` as its columns, `rank` of it, `texts` by code where it reads texts."""

    name: str
    fields: tuple[str, ...]
    dtype: int
    rank: int
    texts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Vectors:
    """A tensor in the graph that is made of `columns` of the bundle's inputs, in this shape without the rows."""

    output: str
    columns: tuple[int, ...]
    tail: tuple[int, ...]
    dtype: int = TensorProto.FLOAT


def answer_of(graph: onnx.GraphProto, name: str | None, kind: Kind | None, positive: Label | None) -> Answer:
    """The output that answers. Dictionaries at the end (`ZipMap`) are removed.

    Args:
        graph: of the network.
        name: of the output; needed where several could be.
        kind: of its numbers; needed unless they are the probabilities of two classes.
        positive: the class that is the click.

    Raises:
        BundleError: there is no such output, or it is not known what it says; the message names it.
    """
    labels = {value.name: labels_of(graph, value.name) for value in graph.output}
    labels |= _without_zipmaps(graph)
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
    classes = labels[value.name]
    if columns in (0, len(classes)) and len(classes) > 1:
        columns = len(classes)
        column = positive_column(classes, positive)
        return Answer(value.name, columns, column or 0, kind or "probability")
    if columns > 2:
        raise BundleError(f"output {value.name!r} has {columns} columns; a click has two classes", "output")
    if kind is None and columns != 2:
        raise BundleError(f"say what output {value.name!r} holds, with `kind`: probability or logit", "kind")
    if columns != 2:
        return Answer(value.name, columns, 0, kind or "probability")
    column = positive_column([], positive)
    note = (
        f"the network does not name the classes of output {value.name!r}: the second column is taken as that of the click. If "
        "it is the first one, say `positive: 0` in the schema file"
    )
    return Answer(value.name, 2, 1 if column is None else column, kind or "probability", note if column is None else "")


def adapted(
    model: ModelProto,
    schema: Schema,
    answer: Answer,
    wanted: Sequence[Wanted],
    places: Mapping[str, int],
    *,
    vectors: Sequence[Vectors] = (),
    fill: Mapping[str, float] | None = None,
) -> ModelProto:
    """The network with a bundle's inputs and output.

    Args:
        model: changed by this.
        schema: the bundle's, with widths.
        answer: of it.
        wanted: its inputs.
        places: column of the number of a field, among the columns of `embeddings` and then `numbers`.
        vectors: tensors of the graph that no node makes.
        fill: what the network reads where a number is missing; NaN for those that are not named.

    Raises:
        BundleError: inputs or outputs do not fit; the message names them.
    """
    graph = model.graph
    taken = {name for node in graph.node for name in (*node.input, *node.output)} | {t.name for t in graph.initializer}
    if taken & set(_OWN) - {v.name for v in (*graph.input, *graph.output)}:
        raise BundleError("the network uses the names embeddings, numbers or logit inside; rename these", "name")
    made = _Made()
    renamed = _renamed(graph)
    blocks = [name for name, fields in (("embeddings", schema.embedded), ("numbers", schema.numbers)) if fields]
    _bundle(made, schema, blocks, fill or {})
    domains = {opset.domain: opset.version for opset in model.opset_import}
    if any(one.texts for one in wanted) and "ai.onnx.ml" not in domains:
        domains["ai.onnx.ml"] = ML_OPSET_VERSION
        model.opset_import.append(helper.make_opsetid("ai.onnx.ml", ML_OPSET_VERSION))
    made.old_texts = domains.get("ai.onnx.ml") == 1
    for number, one in enumerate(wanted):
        _input(made, one, renamed.get(one.name, one.name), [places[name] for name in one.fields], number)
    for number, tensor in enumerate(vectors):
        _vectors(made, tensor, renamed.get(tensor.output, tensor.output), number)
    front = len(made.nodes)
    _back(made, answer)
    nodes = [*made.nodes[:front], *graph.node, *made.nodes[front:]]
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    sizes = {"embeddings": schema.embedding_width, "numbers": len(schema.numbers)}
    graph.input.extend(helper.make_tensor_value_info(b, TensorProto.FLOAT, ["n", sizes[b]]) for b in blocks)
    graph.output.append(helper.make_tensor_value_info("logit", TensorProto.FLOAT, ["n"]))
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in made.constants.items())
    del graph.value_info[:]  # shapes of before
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise BundleError(f"the network does not survive its new inputs and output: {error}") from None
    return model


@dataclass
class _Made:
    """Nodes and constants of the adapter. `old_texts`: a LabelEncoder has the form of the first operator set."""

    nodes: list[NodeProto] = field(default_factory=list)
    constants: Arrays = field(default_factory=dict)
    old_texts: bool = False

    def add(self, kind: str, inputs: Sequence[str], output: str, domain: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [output], domain=domain or None, **attributes))
        return output

    def constant(self, name: str, value: object, dtype: type[np.generic] = np.int64) -> str:
        self.constants[name] = np.array(value, dtype)
        return name


def _without_zipmaps(graph: onnx.GraphProto) -> dict[str, list[Label]]:
    """Converters of scikit-learn models end in a list of dictionaries; what goes into it is the plain tensor. Its labels."""
    found: dict[str, list[Label]] = {}
    for node in [n for n in graph.node if n.op_type == "ZipMap"]:
        found[node.input[0]] = labels = labels_of(graph, node.output[0])
        graph.node.remove(node)
        old = next(v for v in graph.output if v.name == node.output[0])
        graph.output.remove(old)
        graph.output.append(helper.make_tensor_value_info(node.input[0], TensorProto.FLOAT, [None, len(labels) or 2]))
    return found


def _renamed(graph: onnx.GraphProto) -> dict[str, str]:
    """Rename those of the network's own inputs whose names the bundle's inputs have. The new names."""
    weights = {t.name for t in graph.initializer}
    renamed = {v.name: f"own/{v.name}" for v in graph.input if v.name in _OWN and v.name not in weights}
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
    return renamed


def _bundle(made: _Made, schema: Schema, blocks: Sequence[str], fill: Mapping[str, float]) -> None:
    """All columns of the bundle's inputs side by side, missing numbers filled."""
    if not fill:
        made.add("Concat", blocks, "own/bundle", axis=1)
        return
    made.add("Concat", blocks, "own/sent", axis=1)
    filled = np.full(schema.embedding_width + len(schema.numbers), np.nan, np.float32)
    for column, number in enumerate(schema.numbers):
        filled[schema.embedding_width + column] = fill.get(number.name, np.nan)
    made.constant("own/fill", filled, np.float32)
    made.add("IsNaN", ["own/sent"], "own/missing")
    made.add("Where", ["own/missing", "own/fill", "own/sent"], "own/bundle")


def _input(made: _Made, wanted: Wanted, name: str, columns: Sequence[int], number: int) -> None:
    last = f"own/input/{number}"
    at = made.constant(f"{last}/columns", columns)
    made.add("Gather", ["own/bundle", at], last, axis=1)
    if wanted.rank == 1:
        last = made.add("Reshape", [last, made.constant(f"{last}/shape", [-1])], f"{last}/vector")
    if wanted.dtype != TensorProto.STRING:
        made.add("Cast", [last], name, to=wanted.dtype)
        return
    made.add("Cast", [last], f"{last}/code", to=TensorProto.INT64)
    texts = list(wanted.texts)
    keys: dict[str, Any] = {"keys_int64s": list(range(len(texts))), "values_strings": texts}
    said = {"classes_strings": texts} if made.old_texts else keys
    made.add("LabelEncoder", [f"{last}/code"], name, "ai.onnx.ml", default_string=UNKNOWN_TEXT, **said)


def _vectors(made: _Made, tensor: Vectors, output: str, number: int) -> None:
    place = f"own/lifted/{number}"
    at = made.constant(f"{place}/columns", tensor.columns)
    made.add("Gather", ["own/bundle", at], f"{place}/columns/read", axis=1)
    shape = made.constant(f"{place}/shape", [-1, *tensor.tail])
    if tensor.dtype == TensorProto.FLOAT:
        made.add("Reshape", [f"{place}/columns/read", shape], output)
        return
    made.add("Reshape", [f"{place}/columns/read", shape], f"{place}/float")
    made.add("Cast", [f"{place}/float"], output, to=tensor.dtype)


def _back(made: _Made, answer: Answer) -> None:
    """Nodes from the network's answer to `logit`."""
    last = made.add("Cast", [answer.name], "own/answer", to=TensorProto.FLOAT)
    if answer.columns > 1:
        last = made.add("Gather", [last, made.constant("own/click/column", [answer.column])], "own/click", axis=1)
    made.add("Reshape", [last, made.constant("own/flat", [-1])], "own/row")
    if answer.kind == "logit":
        made.add("Identity", ["own/row"], "logit")
        return
    made.add("Max", ["own/row", made.constant("own/low", SMALLEST_PROBABILITY, np.float32)], "own/above")
    made.add("Min", ["own/above", made.constant("own/high", 1 - SMALLEST_PROBABILITY, np.float32)], "own/p")
    made.add("Sub", [made.constant("own/one", 1, np.float32), "own/p"], "own/q")
    made.add("Div", ["own/p", "own/q"], "own/odds")
    made.add("Log", ["own/odds"], "logit")
