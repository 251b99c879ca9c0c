"""Check of an ONNX network before it is loaded: only standard operators, no data outside the file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import TensorProto

from pipeline.errors import BundleError
from pipeline.inputs import ARRAYS, REQUEST, Layout
from pipeline.schema import Schema

__all__ = ["check_graph", "inputs_of"]

# The domains that ONNX defines and ONNX Runtime has built in: networks, and trees and linear models.
_DOMAINS = {"", "ai.onnx", "ai.onnx.ml"}


def check_graph(path: Path, schema: Schema, *, linear: bool, split: bool = False) -> None:
    """Check a network's graph against the schema.

    Args:
        path: of the ONNX file.
        schema: with widths set.
        linear: whether the network has a weight per id.
        split: whether it reads the split layout (context.onnx).

    Raises:
        BundleError: it cannot be parsed, uses custom operators or external data, or has other inputs or outputs.
    """
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # the parser raises whatever protobuf raises
        raise BundleError(f"{path} is not an ONNX file: {error}", path.name) from None
    for graph in _graphs(model):
        for tensor in graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                raise BundleError(
                    f"{path}: tensor {tensor.name!r} is stored outside the file; export it inside", path.name
                )
    for node in _nodes(model):
        if node.domain not in _DOMAINS:
            raise BundleError(
                f"{path}: node {node.name!r} uses the custom operator {node.domain}.{node.op_type}; "
                "only standard ONNX operators are served",
                path.name,
            )
    wanted = inputs_of(schema, linear=linear, split=split)
    weights = {t.name for t in model.graph.initializer}
    found = {value.name: value.type.tensor_type for value in model.graph.input if value.name not in weights}
    if set(found) != set(wanted):
        raise BundleError(f"{path}: inputs are {sorted(found)}; the schema needs {sorted(wanted)}", path.name)
    for name, columns in wanted.items():
        vector, kind = name == REQUEST, found[name]
        shape = [dim.dim_value for dim in kind.shape.dim]
        fits = not kind.HasField("shape") or (len(shape) == 2 - vector and shape[-1] in (0, columns))
        if kind.elem_type != (TensorProto.INT64 if vector else TensorProto.FLOAT) or not fits:
            wants = "int64 [n]" if vector else f"float32 [n, {columns}]"
            raise BundleError(f"{path}: input {name!r} is not {wants}, as the schema needs", path.name)
    outputs = [value.name for value in model.graph.output]
    if outputs != ["logit"]:
        raise BundleError(f"{path}: outputs are {outputs}; exactly one, 'logit' [n], is needed", path.name)


def inputs_of(schema: Schema, *, linear: bool, split: bool = False) -> dict[str, int]:
    """The network's inputs and their columns: `embeddings`, `linear` and `numbers`, each where the schema has such fields.

    In the split layout there are two of each, `context_` and `candidate_`, and `request`, which is a vector.
    """
    inputs = {}
    for block in (Layout.split(schema) if split else Layout.full(schema)).blocks:
        for name, columns in zip(ARRAYS, block.widths, strict=True):
            if columns and (linear or name != "linear"):
                inputs[block.prefix + name] = columns
    return inputs | ({REQUEST: 0} if split else {})


def _graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    stack = [model.graph]
    while stack:
        graph = stack.pop()
        yield graph
        stack.extend(_subgraphs(graph.node))


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    for graph in _graphs(model):
        yield from graph.node
    for function in model.functions:
        yield from function.node
        stack = _subgraphs(function.node)
        while stack:
            graph = stack.pop()
            yield from graph.node
            stack.extend(_subgraphs(graph.node))


def _subgraphs(nodes: object) -> list[onnx.GraphProto]:
    found = []
    for node in nodes:  # type: ignore[attr-defined]
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                found.append(attribute.g)
            elif attribute.type == onnx.AttributeProto.GRAPHS:
                found.extend(attribute.graphs)
    return found
