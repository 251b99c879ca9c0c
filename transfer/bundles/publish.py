"""Publishing: a model in training becomes a bundle on disk (`save`), a bundle becomes a model again (`load`).

A base holds all rows, a delta those touched since the last publication. A base may carry the state that training goes
on from. That state holds the rows in float32 as well where the bundle's tables hold rounded ones. Next stops:
`transfer.bundles.export` (the network), `transfer.click_model.state` (the state), `pipeline.bundle.bundle` (the files).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.bundle.bundle import DENSE, WARMUP, Bundle, BundleWriter, GateReport, Manifest, Table, TableInfo
from pipeline.bundle.graph import read_network
from pipeline.bundle.teachers import TRAINING_STATE
from pipeline.bundle.versions import Repository
from pipeline.documents import parse_json
from pipeline.errors import BatonError, BundleError, InvalidInput
from pipeline.model.warmup import synthetic_requests, write_warmup
from transfer.architecture_names import is_known
from transfer.bundles.export import DenseGraph, graph_weights, trace
from transfer.click_model.model import ClickModel
from transfer.click_model.network import DenseNetwork
from transfer.click_model.state import model_from, state_of
from transfer.model_zoo import ZOO_ALONE, Architectures
from transfer.model_zoo.registry import MOST_WIDTH

__all__ = ["Provenance", "load", "network_files", "save", "write_state"]

STATE = TRAINING_STATE
HEADER = "header"
# Held by the tables of the bundle itself where these are float32, so not written twice.
_IN_TABLES = ("tables.rows.values", "tables.weights.values", "tables.counts")
SIZE_FACTOR, SPARE_BYTES = 4, 16 << 20
"""Most memory of a network that is built of a manifest: so many times its file's bytes, and so many more."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """What a manifest records of a version beside the model.

    Args:
        parent: version that it was trained on from.
        metrics: at birth; None: the model's own.
        publisher: who publishes it; shift_from: version that `metrics`' score_shift is measured against.
        gate: report of the quality gate; a version that did not pass is written as a manifest alone.
        created_ms: Unix time in milliseconds.
    """

    parent: str | None = None
    metrics: Mapping[str, float | None] | None = None
    gate: GateReport | None = None
    created_ms: int = 0
    publisher: str = ""
    shift_from: str | None = None


def save(
    model: ClickModel,
    target: Repository | Path,
    name: str,
    *,
    version: str | None = None,
    chain: Sequence[str] = (),
    provenance: Provenance | None = None,
    training: bool = True,
    graphs: dict[str, DenseGraph] | None = None,
) -> Bundle:
    """Write a version of a model. Its rows count as published then, unless the gate refused it.

    Args:
        model: to publish.
        target: a repository, or the directory that becomes the bundle (its version is 1 unless given).
        name: of the bundle.
        version: reserved before; None takes the next number of the repository.
        chain: versions that a delta builds on, base first; empty for a base.
        provenance: for the manifest.
        training: whether a base carries the state that training goes on from; a delta never does.
        graphs: as of `network_files`.

    Raises:
        BundleError: the place is taken.
        InvalidInput: a row cannot be stored in the model's row format.
        NotReady: the disk is full or fails.
    """
    about = provenance or Provenance()
    publish = None
    if isinstance(target, Repository):
        version = version or target.reserve(name)
        path, publish = target.path(name, version), target.publish
    else:
        version, path = version or "1", target
    touched = model.tables.touched()
    tables = {table: model.tables.export(table, touched if chain else None) for table in model.tables.names}
    manifest = Manifest(
        name=name,
        version=version,
        architecture=model.arch,
        hyperparameters={"width": model.width, **model.hyperparameters},
        schema=model.schema,
        tables=_infos(model, tables),
        calibration=model.calibration,
        metrics=dict(model.metrics if about.metrics is None else about.metrics),
        unknown_ids=model.unknown_ids,
        parent=about.parent,
        base=chain[0] if chain else None,
        deltas=(*chain[1:], version) if chain else (),
        gate=about.gate,
        publisher=about.publisher,
        shift_from=about.shift_from,
        created_ms=about.created_ms,
    )
    if manifest.servable:
        model.tables.take_touched()
    try:
        with BundleWriter(path) as writer:
            if manifest.servable:
                for file, content in network_files(model, graphs).items():
                    writer.path(file).write_bytes(content)
                write_warmup(writer.path(WARMUP), model.schema, synthetic_requests(model.schema))
                for table, rows in tables.items():
                    writer.table(table, rows, model.stored)
                if training and not chain:
                    write_state(writer, model)
            return writer.finish(manifest, publish)
    except BaseException:
        model.tables.put_back(touched)
        raise


def network_files(model: ClickModel, graphs: dict[str, DenseGraph] | None = None) -> dict[str, bytes]:
    """The ONNX files of a model's network, by name in the bundle.

    Args:
        graphs: empty at first, filled here, and given again for the next version of the same model: then only its weights
            are written and nothing is traced anew.
    """
    graphs = {} if graphs is None else graphs
    model.network.cpu()
    if not graphs:
        graphs |= trace(model.network, model.schema)
    files = {name: graph.write() for name, graph in graphs.items()}
    model.network.to(model.device)
    return files


def load(source: Path | Bundle | Sequence[Bundle], architectures: Architectures = ZOO_ALONE) -> ClickModel:
    """A model from a published version.

    Optimiser state comes from the newest bundle that has it; without any, the model is frozen.

    Args:
        source: a base or its directory; or a base and its deltas, oldest first (`Repository.chain`).
        architectures: what the bundle and its training state may name.

    Raises:
        InvalidInput: a delta without its base, or its architecture is not among `architectures`.
        BundleError: it was not written by this trainer, or is damaged.
    """
    chain = [Bundle.open(source)] if isinstance(source, Path) else [source] if isinstance(source, Bundle) else source
    newest = chain[-1]
    if chain[0].manifest.base is not None:
        raise InvalidInput(f"{newest.path} is a delta; pass the repository that holds its base", "source")
    for bundle in chain:
        architectures.find(bundle.manifest.architecture)
    model, newer = _with_state(chain, architectures)
    manifest = newest.manifest
    for index, name in enumerate(model.tables.names):
        info = manifest.tables[name]
        if info.width != model.tables.default.shape[1]:
            raise BundleError(
                f"{newest.path}: table {name!r} has width {info.width} where architecture {manifest.architecture!r} has "
                f"{model.tables.default.shape[1]}; it was not written by this trainer",
                name,
            )
        model.tables.default[index] = info.default
        model.tables.default_linear[index] = info.linear_default or 0.0
    for bundle in newer:
        for name in model.tables.names:
            model.tables.load_rows(name, bundle.table(name))
    _load_dense(model, newest)
    model.calibration = manifest.calibration
    model.unknown_ids = dict(manifest.unknown_ids)
    model.stored = next(iter(manifest.tables.values())).dtype
    return model


def _infos(model: ClickModel, tables: Mapping[str, Table]) -> dict[str, TableInfo]:
    """The manifest's entries of the tables."""
    return {
        name: TableInfo(
            width=model.width,
            dtype=model.stored,
            rows=len(tables[name].ids),
            default=tuple(model.tables.default[index].tolist()),
            linear_default=float(model.tables.default_linear[index]) if model.network.uses_linear else None,
        )
        for index, name in enumerate(model.tables.names)
    }


def write_state(writer: BundleWriter, model: ClickModel) -> None:
    """Write the state that training goes on from. Tables of float32 hold their rows already."""
    header, arrays = state_of(model)
    kept = {key: value for key, value in arrays.items() if model.stored != "float32" or key not in _IN_TABLES}
    writer.tensors(STATE, {**kept, HEADER: np.frombuffer(json.dumps(header).encode(), np.uint8)})


def _with_state(chain: Sequence[Bundle], architectures: Architectures) -> tuple[ClickModel, Sequence[Bundle]]:
    """The model with the newest training state of a chain, and the bundles whose rows are not in it yet."""
    newest = chain[-1]
    last = newest.manifest
    hyperparameters = dict(last.hyperparameters)
    width = hyperparameters.pop("width", next(iter(last.tables.values())).width)
    if type(width) is not int or not 1 <= width <= MOST_WIDTH:
        raise BundleError(f"{newest.path}: hyperparameters.width is not in 1..{MOST_WIDTH}", "hyperparameters")
    _check_size(newest, width, hyperparameters)
    stateful = next((b for b in reversed(chain) if STATE in b.manifest.files), None)
    try:
        if stateful is None:
            model = ClickModel.create(
                last.model_schema, last.architecture, width, seed=0, hyperparameters=hyperparameters,
                architectures=architectures,
            )  # fmt: skip
            model.frozen = True
            return model, chain
        return _from_state(chain, stateful, width, architectures)
    except BatonError:
        raise
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        IndexError,
        RuntimeError,
    ) as error:  # of torch: RuntimeError
        place = (stateful or newest).path
        raise BundleError(
            f"{place}: no model can be made of it: {type(error).__name__}: {str(error)[:500]}; it was not written by this "
            "trainer",
            STATE if stateful else "hyperparameters",
        ) from error


def _from_state(
    chain: Sequence[Bundle], stateful: Bundle, width: int, architectures: Architectures
) -> tuple[ClickModel, Sequence[Bundle]]:
    """As `_with_state`, from the training state of `stateful`."""
    last = chain[-1].manifest
    arrays = stateful.tensors(STATE)
    header = parse_json(arrays.pop(HEADER).tobytes())
    if (header["arch"], header["width"]) != (last.architecture, width):
        raise BundleError(
            f"{stateful.path}: the training state is of {str(header['arch'])[:200]!r}, width {header['width']!r}, where the "
            f"manifest says {last.architecture[:200]!r}, width {width}",
            STATE,
        )
    _check_size(chain[-1], width, header["hyperparameters"])
    if _IN_TABLES[0] in arrays:  # rows in float32, its own and those of the bundles before it
        return model_from(header, arrays, architectures), chain[chain.index(stateful) + 1 :]
    ids, rows = len(arrays["tables.ids"]), sum(table.rows for table in stateful.manifest.tables.values())
    if ids > rows:
        raise BundleError(f"{stateful.path}: the training state has {ids} ids, its tables {rows} rows", STATE)
    arrays["tables.rows.values"] = np.zeros((ids, width), np.float32)
    arrays["tables.counts"] = np.zeros(ids, np.int64)
    arrays["tables.weights.values"] = np.zeros((ids if header["linear"] else 0, 1), np.float32)
    return model_from(header, arrays, architectures), chain


def _check_size(bundle: Bundle, width: int, hyperparameters: Mapping[str, Any]) -> None:
    """Check, before any memory is taken, that a network of the zoo is not far larger than the bundle's own."""
    manifest = bundle.manifest
    if not is_known(manifest.architecture):
        return  # a class of the user's own, whose constructor may do anything
    held = manifest.files[DENSE].bytes
    try:
        with torch.device("meta"):
            network = DenseNetwork(manifest.model_schema, manifest.architecture, width, dict(hyperparameters))
    except InvalidInput:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise BundleError(f"{bundle.path}: hyperparameters: {str(error)[:500]}", "hyperparameters") from None
    size = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
    if size > SIZE_FACTOR * held + SPARE_BYTES:
        raise BundleError(
            f"{bundle.path}: hyperparameters ask for a network of {size:,} bytes where {DENSE} has {held:,}",
            "hyperparameters",
        )


def _load_dense(model: ClickModel, bundle: Bundle) -> None:
    held = graph_weights(read_network(bundle.file(DENSE)))
    weights = dict(model.network.named_parameters()) | dict(model.network.named_buffers())
    for name, tensor in weights.items():
        array = held.get(name)
        if array is None:
            if not any(n.startswith(name.split(".")[0]) for n in held):
                raise BundleError(
                    f"{bundle.path}: the network holds no weight {name!r} of architecture "
                    f"{bundle.manifest.architecture!r}; it was not written by this trainer",
                    DENSE,
                )
            continue
        if list(array.shape) != list(tensor.shape):
            raise BundleError(f"{bundle.path}: weight {name!r} is {array.shape} instead of {list(tensor.shape)}", DENSE)
        with torch.no_grad():
            tensor.copy_(torch.from_numpy(array.copy()))
