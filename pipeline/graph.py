"""What an ONNX network must look like before it may be loaded: only standard operators, no data outside the file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx

from pipeline.errors import BundleError
from pipeline.schema import Schema

__all__ = ["check_graph", "inputs_of"]

_DOMAINS = {"", "ai.onnx"}


def check_graph(path: Path, schema: Schema, *, linear: bool) -> None:
    """Hold a network's graph against the schema.

    Raises:
        BundleError: it cannot be parsed, uses custom operators or external data, or has other inputs or outputs.
    """
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # the parser raises whatever protobuf raises
        raise BundleError(f"{path} is not an ONNX file: {error}", path.name) from None
    for graph in _graphs(model):
        for tensor in graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
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
    wanted = inputs_of(schema, linear=linear)
    found = {value.name for value in model.graph.input} - {t.name for t in model.graph.initializer}
    if found != set(wanted):
        raise BundleError(f"{path}: inputs are {sorted(found)}; the schema needs {sorted(wanted)}", path.name)
    outputs = [value.name for value in model.graph.output]
    if outputs != ["logit"]:
        raise BundleError(f"{path}: outputs are {outputs}; exactly one, 'logit' [n], is needed", path.name)


def inputs_of(schema: Schema, *, linear: bool) -> dict[str, int]:
    """The network's inputs and their widths: `embeddings`, `linear` and `numbers`, each where the schema has such fields."""
    inputs = {}
    if schema.embedded:
        inputs["embeddings"] = schema.embedding_width
        if linear:
            inputs["linear"] = len(schema.embedded)
    if schema.numbers:
        inputs["numbers"] = len(schema.numbers)
    return inputs


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
