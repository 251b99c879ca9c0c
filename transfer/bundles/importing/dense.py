"""Dense network of a model that comes with its own tables: a class that learns on, or a frozen graph."""

from __future__ import annotations

import inspect
import io
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import onnx
import torch
from torch import nn

from pipeline.bundle.bundle import DENSE
from pipeline.errors import BatonError, BundleError, InvalidInput
from pipeline.schema import Schema
from transfer.architecture_names import IMPORTED
from transfer.bundles.export import quiet
from transfer.bundles.importing.graph import Vectors, adapted, answer_of
from transfer.bundles.importing.onnx_file import OnnxFile
from transfer.bundles.publish import network_files
from transfer.click_model.model import ClickModel
from transfer.model_zoo import Architectures
from transfer.model_zoo.architecture import Architecture
from transfer.model_zoo.registry import ZOO

__all__ = ["Dense", "dense_of"]

OPSET_VERSION = 17
_TRACED_ROWS = 4


@dataclass(frozen=True, slots=True)
class Dense:
    """A network as a bundle has it.

    Args:
        files: ONNX files by name in the bundle.
        model: what learns on, without rows yet; None: it is frozen.
    """

    architecture: str
    schema: Schema
    files: dict[str, bytes]
    hyperparameters: dict[str, Any]
    model: ClickModel | None = None
    notes: tuple[str, ...] = field(default=())


def dense_of(
    network: Any,
    schema: Schema,
    *,
    learns: bool | None,
    hyperparameters: Mapping[str, Any],
    numbers: Mapping[str, tuple[float, float]],
    kind: Literal["logit", "probability"],
) -> Dense:
    """The network of a bundle; arguments as of `transfer.external.save`, `schema` with widths.

    Raises:
        InvalidInput, BundleError: it does not meet the contract.
    """
    if isinstance(network, Architecture):
        if kind != "logit":
            raise InvalidInput("an Architecture answers with logits; say heads={...: 'logit'}", "heads")
        return _architecture(network, schema, learns, hyperparameters, numbers)
    if learns:
        raise InvalidInput(
            f"{type(network).__name__} cannot learn here: only a subclass of transfer.model_zoo.Architecture can",
            "learns",
        )
    file = OnnxFile.read(Path(network)) if isinstance(network, str | Path) else _exported(network, schema)
    return _graph(file, schema, kind)


def _architecture(
    network: Architecture,
    schema: Schema,
    learns: bool | None,
    hyperparameters: Mapping[str, Any],
    numbers: Mapping[str, tuple[float, float]],
) -> Dense:
    kind, widths = type(network), {f.width for f in schema.embedded}
    if kind.uses_linear:
        raise InvalidInput(
            f"{kind.__name__} reads a weight per id beside the vectors, which tables from elsewhere do not bring; make the weight a "
            "column of the vectors",
            "network",
        )
    if widths != {network.width}:
        raise InvalidInput(
            f"{kind.__name__} has width {network.width}, its tables {sorted(w or 0 for w in widths)}; an Architecture has one width. A "
            "module that is none may have tables of different widths",
            "tables",
        )
    name, why = _importable(kind)
    if learns and why:
        raise InvalidInput(f"{kind.__name__} cannot learn on: {why}", "learns")
    known = Architectures([name]) if not why and name not in ZOO else Architectures()
    known = known if not why else _Given(kind)
    model = ClickModel.create(schema, name, network.width, seed=0, hyperparameters=hyperparameters, architectures=known)
    try:
        model.network.body.load_state_dict(network.state_dict())
    except RuntimeError as error:
        raise InvalidInput(
            f"{kind.__name__}({len(schema.embedded)}, {network.width}, {2 * len(schema.numbers)}) with hyperparameters "
            f"{dict(hyperparameters)} is not the network that was given: {str(error)[:500]}",
            "hyperparameters",
        ) from None
    _standardise(model, schema, numbers)
    files = network_files(model)
    if why or learns is False:
        note = f"{kind.__name__} is frozen: {why}" if why else ""
        return Dense(IMPORTED, model.schema, files, _vectors_of(schema), notes=(note,) if note else ())
    made = {"width": model.width, **model.hyperparameters}
    return Dense(model.arch, model.schema, files, made, model)


class _Given(Architectures):
    """Architectures, and one class that cannot be imported by a name."""

    def __init__(self, kind: type[Architecture]) -> None:
        super().__init__()
        self._known[kind.__name__] = kind


def _importable(kind: type[Architecture]) -> tuple[str, str]:
    """The name by which a class is found again, and why there is none."""
    for zoo_name, known in ZOO.items():
        if known is kind:
            return zoo_name, ""
    if kind.__module__ == "__main__" or "<locals>" in kind.__qualname__:
        return kind.__name__, (
            "its class stands in a program or a function, so that no other process can import it; move it into a module "
            "that is installed or on PYTHONPATH"
        )
    if getattr(sys.modules.get(kind.__module__), kind.__qualname__, None) is not kind:
        return kind.__name__, f"{kind.__module__}:{kind.__qualname__} is not found by its name"
    return f"{kind.__module__}:{kind.__qualname__}", ""


def _standardise(model: ClickModel, schema: Schema, numbers: Mapping[str, tuple[float, float]]) -> None:
    names = [f.name for f in schema.numbers]
    for name, (mean, deviation) in numbers.items():
        if name not in names or model.network.transform is None:
            raise InvalidInput(f"numbers: {name!r} is no field of kind number", "numbers")
        if not deviation > 0:
            raise InvalidInput(f"numbers: the deviation of {name!r} is {deviation:g}; it is above 0", "numbers")
        with torch.no_grad():
            model.network.transform.mean[names.index(name)] = mean
            model.network.transform.scale[names.index(name)] = 1.0 / deviation


def _exported(network: nn.Module, schema: Schema) -> OnnxFile:
    """A module as ONNX: its arguments are `embeddings`, `numbers` or fields."""
    if not isinstance(network, nn.Module):
        raise InvalidInput(
            f"network is a {type(network).__name__}; a torch module or an ONNX file is needed", "network"
        )
    taken = [n for n, p in inspect.signature(network.forward).parameters.items() if p.default is p.empty]
    sizes = _sizes(schema)
    unknown = next((name for name in taken if name not in sizes), None)
    if unknown is not None or not taken:
        raise InvalidInput(
            f"forward of {type(network).__name__} has argument {unknown!r}; its arguments are embeddings [n, {sizes.get('embeddings', 0)}], "
            f"numbers [n, {len(schema.numbers)}] or fields",
            "network",
        )
    buffer, training = io.BytesIO(), network.training
    try:
        with quiet():
            torch.onnx.export(
                network.eval(), tuple(torch.zeros(_TRACED_ROWS, sizes[name]) for name in taken), cast(Any, buffer),
                dynamo=False, opset_version=OPSET_VERSION, input_names=taken, output_names=["answer"],
                dynamic_axes={name: {0: "n"} for name in (*taken, "answer")},
            )  # fmt: skip
    except Exception as error:  # whatever the exporter or the network raises
        raise InvalidInput(f"{type(network).__name__} cannot be exported: {str(error)[:500]}", "network") from None
    finally:
        network.train(training)
    return OnnxFile(onnx.load_from_string(buffer.getvalue()), Path(type(network).__qualname__))


def _sizes(schema: Schema) -> dict[str, int]:
    """Columns of what a network may read, by name."""
    sizes = {f.name: f.width or 1 for f in schema.fields}
    blocks = {"embeddings": schema.embedding_width, "numbers": len(schema.numbers)}
    return sizes | {name: columns for name, columns in blocks.items() if columns}


def _graph(file: OnnxFile, schema: Schema, kind: Literal["logit", "probability"]) -> Dense:
    """A frozen graph whose inputs are `embeddings`, `numbers` or fields, as exporters of several kinds name them."""
    try:
        model = file.inside()
        weights = {t.name for t in model.graph.initializer}
        own = [v for v in model.graph.input if v.name not in weights]
        vectors = [_input(value, schema) for value in own]
        answer = answer_of(model.graph, None, kind, None)
        made = adapted(model, schema, answer, [], {}, vectors=vectors)
    except BatonError as error:
        if str(error).startswith(str(file.path)):
            raise
        raise BundleError(f"{file.path}: {error}", getattr(error, "field", "")) from None
    return Dense(IMPORTED, schema, {DENSE: made.SerializeToString()}, _vectors_of(schema))


def _input(value: onnx.ValueInfoProto, schema: Schema) -> Vectors:
    """The columns of the bundle's inputs that an input of a graph is made of."""
    name, at = value.name.split(":")[0], 0
    places: dict[str, tuple[int, ...]] = {}
    for spec in (*schema.embedded, *schema.numbers):
        places[spec.name] = tuple(range(at, at := at + (spec.width or 1)))
    split = schema.embedding_width
    places |= {"embeddings": tuple(range(split)), "numbers": tuple(range(split, at))}
    if not places.get(name):
        raise BundleError(
            f"input {value.name!r} is neither embeddings, numbers nor a field; inputs of the dense part are named so",
            value.name,
        )
    kind = value.type.tensor_type
    said = tuple(dim.dim_value for dim in kind.shape.dim)[1:]
    size = 1
    for dim in said:
        size *= dim
    columns = places[name]
    if said and size and size != len(columns):
        raise BundleError(f"input {value.name!r} has {size} columns where the fields have {len(columns)}", value.name)
    return Vectors(value.name, columns, said if said and size else (len(columns),), kind.elem_type)


def _vectors_of(schema: Schema) -> dict[str, Any]:
    return {
        "columns": [f.name for f in schema.fields],
        "vectors": {f.name: f.width for f in schema.embedded},
    }
