"""Tables of an ONNX model, lifted out of its graph: what `Gather` looks up by an integer input becomes a bundle's table.

A table in the graph cannot be updated, tiered or projected, and takes its memory in every process. A `Gather` is lifted where
its row numbers come from the network's inputs by operations on each number alone (casts, offsets of fields that share one
array, clips), each from one field that has an index or codes. Which row a value reads is found by running that part of the
graph, so that offsets and reserved rows come out right. A mean over the elements of a bag is lifted with it.
Next stop: `transfer.bundles.importing.graph`, which puts the bundle's vectors in place of the looked-up ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from pipeline.arrays import F32, I64, Array
from pipeline.bundle.graph import nodes_of
from pipeline.errors import DataError
from transfer.bundles.importing.onnx_file import OnnxFile
from transfer.bundles.importing.spec import ImportSpec

__all__ = ["Lifted", "Lookup", "lift"]

_BY_NUMBER = {
    "Add", "Cast", "Clip", "Concat", "Constant", "Div", "Equal", "Flatten", "Gather", "Greater", "GreaterOrEqual", "Identity",
    "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Reshape", "Shape", "Slice", "Split", "Squeeze", "Sub",
    "Unsqueeze", "Where",
}  # fmt: skip
"""Operations that neither loop nor make arrays larger than what they read."""
_TRIED_COUNT = 4
BATCH_ROWS = 1 << 15


@dataclass(frozen=True, slots=True)
class Lookup:
    """Looked-up vectors of some fields.

    Args:
        output: the tensor in the graph that holds them, now without a node that makes it.
        fields: in the order in which they stand in it.
        tail: its shape without the rows.
        width: of each vector.
        data: the array `[V, width]` that was looked up, of the file, not loaded where it lies outside.
        rows_of: by field, from numbers int64 `[k]` as the network is sent them to rows of `data`, int64 `[k]`.
    """

    output: str
    fields: tuple[str, ...]
    tail: tuple[int, ...]
    width: int
    data: Array
    rows_of: dict[str, Callable[[I64], I64]]

    def vectors(self, field: str, numbers: I64) -> F32:
        """Vectors float32 `[k, width]` of what the network is sent.

        Raises:
            DataError: a number reads a row that the array has not.
        """
        rows = self.rows_of[field](numbers)
        count = self.data.shape[0]
        outside = (rows < -count) | (rows >= count)
        if outside.any():
            at = int(np.argmax(outside))
            raise DataError(
                f"index of {field!r}: number {int(numbers[at]):,} reads row {int(rows[at]):,} of a table of {count:,} rows",
                field,
            )
        found: F32 = np.asarray(self.data[rows]).astype(np.float32).reshape(len(rows), self.width)
        return found


@dataclass(frozen=True, slots=True)
class Lifted:
    """A model without the tables that were lifted, the names of the inputs that it had, and what is left to know of tables
    that were not lifted."""

    file: OnnxFile
    lookups: tuple[Lookup, ...]
    own: tuple[str, ...]
    kept: tuple[str, ...] = ()


def lift(file: OnnxFile, spec: ImportSpec) -> Lifted:
    """Lift the tables that fields with an index or codes look up.

    Args:
        file: unchanged; nothing that lies outside it is loaded.
    """
    weights = {tensor.name for tensor in file.model.graph.initializer}
    own = tuple(value.name for value in file.model.graph.input if value.name not in weights)
    named = {*spec.index, *(name for name, codes in spec.codes.items() if codes)}
    if not named:
        return Lifted(file, (), own)
    model = ModelProto.FromString(file.model.SerializeToString())
    graph = _Graph(model, OnnxFile(model, file.path), spec, named)
    lookups, kept = list[Lookup](), list[str]()
    for node in [n for n in model.graph.node if n.op_type == "Gather"]:
        found = graph.lookup(node)
        if isinstance(found, str):
            kept.append(found)
        elif found is not None:
            lookups.append(found)
    _without_dead(model)
    return Lifted(OnnxFile(model, file.path), tuple(lookups), own, tuple(kept))


class _Graph:
    """A model's graph while its tables are taken out."""

    def __init__(self, model: ModelProto, file: OnnxFile, spec: ImportSpec, named: set[str]) -> None:
        self._model, self._graph, self._file, self._spec, self._named = model, model.graph, file, spec, named
        self._weights = {tensor.name: tensor for tensor in self._graph.initializer}
        self._makers = {name: node for node in self._graph.node for name in node.output}
        self._inputs = {v.name: v for v in self._graph.input if v.name not in self._weights}
        self._bags = {f.name for f in spec.fields if f.kind == "bag"}

    def lookup(self, node: NodeProto) -> Lookup | str | None:
        """The lookup of a `Gather`, whose node is then gone; a text why a table stays; None where it is none."""
        data = self._weights.get(node.input[0])
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        if data is None or len(data.dims) != 2 or axis or data.data_type not in (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16):  # fmt: skip
            return None
        found = self._nodes_behind(node.input[1])
        if found is None:
            return None
        nodes, inputs = found
        if not inputs:
            return None
        fields = [(name, column, field) for name in inputs for column, field in enumerate(self._fields_of(name))]
        if not self._named & {field for _, _, field in fields}:
            return None
        width = int(data.dims[1])
        bag = next((f for _, _, f in fields if f in self._bags), None)
        if bag is not None:
            return self._bag(node, data, nodes, inputs, bag) if len(fields) == 1 else (
                f"table {data.name!r} is read by bag {bag!r} and other fields together, and stays in the network"
            )  # fmt: skip
        run = self._runner(nodes, inputs, node.input[1])
        read = self._read_by(run, inputs, fields)
        if read is None:
            return f"table {data.name!r} is not looked up by one number of a field at a time, and stays in the network"
        slots, shape = read
        if unnamed := {fields[at][2] for at in slots} - self._named:
            return f"table {data.name!r} is looked up by {min(unnamed)!r}, which has no index, and stays in the network"
        rows_of = {fields[at][2]: self._rows_of(run, inputs, fields[at], slot) for slot, at in enumerate(slots)}
        if len(rows_of) < len(slots):
            return f"table {data.name!r} is looked up by one field twice, and stays in the network"
        self._graph.node.remove(node)
        names = tuple(fields[at][2] for at in slots)
        return Lookup(node.output[0], names, (*shape, width), width, self._file.array(data), rows_of)

    def _fields_of(self, name: str) -> tuple[str, ...]:
        return self._spec.columns_of(name, len(self._inputs) == 1)

    def _nodes_behind(self, name: str) -> tuple[list[NodeProto], list[str]] | None:
        """Nodes between the network's inputs and a tensor, and these inputs; None where one of them is no operation by number."""
        pending, found, inputs = [name], list[str](), list[str]()
        while pending:
            at = pending.pop()
            if at in self._inputs:
                inputs += [at] if at not in inputs else []
            elif at and at not in self._weights:
                maker = self._makers.get(at)
                if maker is None or maker.op_type not in _BY_NUMBER or maker.domain not in ("", "ai.onnx"):
                    return None
                if maker.op_type == "Gather" and maker.input[1] not in self._weights and not self._is_constant(maker.input[1]):  # fmt: skip
                    return None
                found.append(at)
                pending.extend(maker.input)
        wanted = set(found)
        return [n for n in self._graph.node if wanted & set(n.output)], inputs

    def _is_constant(self, name: str) -> bool:
        maker = self._makers.get(name)
        return maker is not None and maker.op_type == "Constant"

    def _runner(self, nodes: list[NodeProto], inputs: list[str], output: str) -> Callable[[dict[str, Array]], I64]:
        if not nodes:
            return lambda feeds: feeds[output].astype(np.int64)
        used = {name for node in nodes for name in node.input} & set(self._weights)
        weights = [numpy_helper.from_array(np.array(self._file.array(self._weights[n])), n) for n in used]
        made = helper.make_graph(
            nodes,
            "rows",
            [self._inputs[name] for name in inputs],
            [
                helper.make_value_info(
                    output, onnx.TypeProto(tensor_type=onnx.TypeProto.Tensor(elem_type=TensorProto.INT64))
                )
            ],
            weights,
        )
        model = helper.make_model(
            made, opset_imports=self._model.opset_import, ir_version=max(8, self._model.ir_version)
        )
        # The type of the row numbers is found by the runtime; either integer type may index.
        for kind in (TensorProto.INT64, TensorProto.INT32):
            model.graph.output[0].type.tensor_type.elem_type = kind
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.log_severity_level = 1, 4
            try:
                session = onnxruntime.InferenceSession(
                    model.SerializeToString(), options, providers=["CPUExecutionProvider"]
                )
            except Exception:  # ONNX Runtime raises its own types
                continue
            return lambda feeds, session=session: session.run(None, feeds)[0].astype(np.int64)  # type: ignore[misc]
        raise DataError(f"the row numbers {output!r} of a table cannot be computed", output)

    def _feeds(self, inputs: list[str], rows: int) -> dict[str, Array]:
        """Zeros for inputs, as `[rows]` or `[rows, columns]`."""
        found: dict[str, Array] = {}
        for name in inputs:
            kind = self._inputs[name].type.tensor_type
            shape = (rows,) if len(kind.shape.dim) == 1 else (rows, len(self._fields_of(name)))
            found[name] = np.zeros(shape, helper.tensor_dtype_to_np_dtype(kind.elem_type))
        return found

    def _read_by(
        self, run: Callable[[dict[str, Array]], I64], inputs: list[str], fields: list[tuple[str, int, str]]
    ) -> tuple[list[int], tuple[int, ...]] | None:
        """For each vector of a row, the place in `fields` of the one that it is looked up by, and the shape of a row's numbers."""
        try:
            base = run(self._feeds(inputs, 2))
        except Exception:  # ONNX Runtime raises its own types
            return None
        if not base.ndim or len(base) != 2:
            return None
        shape, slots = base.shape[1:], int(np.prod(base.shape[1:], dtype=np.int64))
        owner = [-1] * slots
        for at, (name, column, _) in enumerate(fields):
            feeds = self._feeds(inputs, 2 * _TRIED_COUNT)
            numbers = np.repeat(np.arange(_TRIED_COUNT), 2)
            if feeds[name].ndim == 1:
                feeds[name][:] = numbers
            else:
                feeds[name][:, column] = numbers
            try:
                moved = run(feeds).reshape(2 * _TRIED_COUNT, slots)
            except Exception:  # ONNX Runtime raises its own types
                return None
            for slot in np.flatnonzero((moved != moved[:1]).any(0)).tolist():
                if owner[slot] >= 0:
                    return None
                owner[slot] = at
        return (owner, tuple(shape)) if slots and min(owner) >= 0 else None

    def _rows_of(
        self, run: Callable[[dict[str, Array]], I64], inputs: list[str], field: tuple[str, int, str], slot: int
    ) -> Callable[[I64], I64]:
        name, column, _ = field

        def rows(numbers: I64) -> I64:
            found = np.empty(len(numbers), np.int64)
            for start in range(0, len(numbers), BATCH_ROWS):
                part = numbers[start : start + BATCH_ROWS]
                feeds = self._feeds(inputs, len(part))
                if feeds[name].ndim == 1:
                    feeds[name][:] = part
                else:
                    feeds[name][:, column] = part
                found[start : start + len(part)] = run(feeds).reshape(len(part), -1)[:, slot]
            return found

        return rows

    def _bag(
        self, node: NodeProto, data: TensorProto, nodes: list[NodeProto], inputs: list[str], bag: str
    ) -> Lookup | str:
        """The lookup of a bag whose vectors are meant at once."""
        readers = [n for n in self._graph.node if node.output[0] in n.input]
        means = readers[0] if len(readers) == 1 and readers[0].op_type == "ReduceMean" else None
        if means is None or self._axes(means) not in ([1], [-2]):
            return (
                f"table {data.name!r} of bag {bag!r} is not averaged over the bag's elements (ReduceMean over axis 1) right "
                "after it is looked up, and stays in the network"
            )
        run = self._runner(nodes, inputs, node.input[1])
        kind = helper.tensor_dtype_to_np_dtype(self._inputs[inputs[0]].type.tensor_type.elem_type)

        def rows(numbers: I64) -> I64:
            return run({inputs[0]: numbers.astype(kind)[:, None]}).reshape(len(numbers), -1)[:, 0]

        keep = next((a.i for a in means.attribute if a.name == "keepdims"), 1)
        self._graph.node.remove(node)
        self._graph.node.remove(means)
        width = int(data.dims[1])
        tail = (1, width) if keep else (width,)
        return Lookup(means.output[0], (bag,), tail, width, self._file.array(data), {bag: rows})

    def _axes(self, node: NodeProto) -> list[int]:
        said = next((list(a.ints) for a in node.attribute if a.name == "axes"), None)
        if said is not None:
            return said
        name = node.input[1] if len(node.input) > 1 else ""
        if name in self._weights:
            found: list[int] = numpy_helper.to_array(self._weights[name]).reshape(-1).tolist()
            return found
        maker = self._makers.get(name)
        if maker is not None and maker.op_type == "Constant":
            return [
                int(n) for a in maker.attribute if a.name == "value" for n in numpy_helper.to_array(a.t).reshape(-1)
            ]
        return []


def _without_dead(model: ModelProto) -> None:
    """Remove nodes, weights and inputs that nothing reads any more."""
    graph = model.graph
    used = Counter(name for node in nodes_of(model) for name in node.input)
    used.update(value.name for value in graph.output)
    for node in nodes_of(model):  # graphs inside nodes may answer with what is outside
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                used.update(value.name for value in inner.output)
    for node in reversed(list(graph.node)):
        if not any(used[name] for name in node.output):
            used.subtract(node.input)
            graph.node.remove(node)
    for weight in [w for w in graph.initializer if not used[w.name]]:
        graph.initializer.remove(weight)
    for value in [v for v in graph.input if not used[v.name]]:
        graph.input.remove(value)
