"""Check of an ONNX network before it is loaded: only standard operators, no data outside the file, bounded sizes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import TensorProto
from onnx.helper import tensor_dtype_to_np_dtype

from pipeline.bundle.files import read
from pipeline.bundle.network_parts import parts_of
from pipeline.errors import BundleError
from pipeline.inputs import ARRAYS, REQUEST, Layout
from pipeline.schema import Schema

__all__ = ["NETWORK_BYTES", "check_graph", "inputs_of", "nodes_of", "read_network", "tensors_of"]

# The domains that ONNX defines and ONNX Runtime has built in: networks, and trees and linear models.
_DOMAINS = {"", "ai.onnx", "ai.onnx.ml"}
NETWORK_BYTES = (1 << 31) - 1
"""Largest network: protobuf reads no larger message."""
_MESSAGE_BYTES, _TEXT_BYTES = 200, 40
"""Memory of a parsed message and of a text in one."""
SIZE_FACTOR, SPARE_BYTES = 8, 64 << 20
"""Most memory of what a file holds, parsed or spread out: so many times its bytes, and so many more."""


def check_graph(path: Path, schema: Schema, *, linear: bool, split: bool = False) -> None:
    """Check a network's graph against the schema.

    Args:
        path: of the ONNX file.
        schema: with widths set.
        linear: whether the network has a weight per id.
        split: whether it reads the split layout (context.onnx).

    Raises:
        BundleError: it cannot be parsed, uses custom operators or external data, has other inputs or outputs, or holds far
            more than its bytes can say.
    """
    model = read_network(path)
    _check_tensors(path, model)
    for node in nodes_of(model):
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


def read_network(path: Path) -> onnx.ModelProto:
    """The network in a file; data outside it is not looked at.

    Raises:
        BundleError: it is no regular file, larger than an ONNX file can be, or none.
    """
    raw = read(path.parent, path.name, NETWORK_BYTES)
    try:
        messages, texts = parts_of(raw)
        needed = messages * _MESSAGE_BYTES + texts * _TEXT_BYTES
        if needed <= SIZE_FACTOR * len(raw) + SPARE_BYTES:
            return onnx.load_from_string(raw)
    except Exception as error:  # the parser raises whatever protobuf raises
        raise BundleError(f"{path} is not an ONNX file: {error}", path.name) from None
    raise BundleError(
        f"{path} holds {messages + texts:,} parts in {len(raw):,} bytes, which would take {needed >> 20:,} MiB of memory",
        path.name,
    )


def _check_tensors(path: Path, model: onnx.ModelProto) -> None:
    """Check that all tensors are inside the file, and as large as their dimensions say."""
    most = SIZE_FACTOR * path.stat().st_size + SPARE_BYTES
    for tensor in tensors_of(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            raise BundleError(f"{path}: tensor {tensor.name!r} is stored outside the file; export it inside", path.name)
        wanted = math.prod(tensor.dims) * _item_bytes(tensor.data_type)
        if min(tensor.dims, default=0) < 0 or (tensor.HasField("raw_data") and len(tensor.raw_data) != wanted):
            raise BundleError(
                f"{path}: tensor {tensor.name!r} has dimensions {list(tensor.dims)}, {wanted:,} bytes, and holds "
                f"{len(tensor.raw_data):,}",
                path.name,
            )
        if wanted > most:
            raise BundleError(f"{path}: tensor {tensor.name!r} of {list(tensor.dims)} is {wanted:,} bytes", path.name)
    spread = 0
    for sparse in _sparse(model):
        spread += math.prod(sparse.dims) * _item_bytes(sparse.values.data_type)
        if min(sparse.dims, default=0) < 0 or spread > most:
            raise BundleError(
                f"{path}: sparse tensor {sparse.values.name!r} of {list(sparse.dims)} would take {spread:,} bytes of memory; "
                f"at most {most:,}, by the file's size",
                path.name,
            )


def _item_bytes(kind: int) -> int:
    """Bytes of an element as serving holds it; of a text, and of a type unknown here, one."""
    if kind in (TensorProto.STRING, TensorProto.UNDEFINED):
        return 1
    try:
        return int(tensor_dtype_to_np_dtype(kind).itemsize)
    except (KeyError, TypeError):
        return 1


def tensors_of(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """All tensors of a model: weights of every graph in it, and those in attributes."""
    for graph in _graphs(model):
        yield from graph.initializer
    for sparse in _sparse(model):
        yield from (sparse.values, sparse.indices)
    for attribute in _attributes(model):
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors


def _sparse(model: onnx.ModelProto) -> Iterator[onnx.SparseTensorProto]:
    for graph in _graphs(model):
        yield from graph.sparse_initializer
    for attribute in _attributes(model):
        if attribute.HasField("sparse_tensor"):
            yield attribute.sparse_tensor
        yield from attribute.sparse_tensors


def _attributes(model: onnx.ModelProto) -> Iterator[onnx.AttributeProto]:
    for node in nodes_of(model):
        yield from node.attribute
    for function in model.functions:
        yield from function.attribute_proto


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
    stack = [model.graph, *(graph for function in model.functions for graph in _subgraphs(function.node))]
    while stack:
        graph = stack.pop()
        yield graph
        stack.extend(_subgraphs(graph.node))


def nodes_of(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """All nodes of a model, those of graphs inside nodes and of functions too."""
    for graph in _graphs(model):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def _subgraphs(nodes: object) -> list[onnx.GraphProto]:
    found = []
    for node in nodes:  # type: ignore[attr-defined]
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                found.append(attribute.g)
            elif attribute.type == onnx.AttributeProto.GRAPHS:
                found.extend(attribute.graphs)
    return found
