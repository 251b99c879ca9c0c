"""From a model in training to a bundle on disk, and back.

A `Snapshot` is taken on the training thread (copies of what changed); writing it may happen anywhere. A base holds all
rows, a delta those touched since the last publication. A bundle carries what training goes on from only when asked to:
rows in float32 as well, where its tables hold rounded ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
import torch

from pipeline.bundle.bundle import (
    DENSE,
    WARMUP,
    Bundle,
    BundleWriter,
    Calibration,
    GateReport,
    Manifest,
    Table,
    TableInfo,
)
from pipeline.bundle.row_format import RowFormat
from pipeline.bundle.versions import Repository
from pipeline.errors import BundleError
from pipeline.model.warmup import synthetic_requests, write_warmup
from pipeline.schema import Schema
from transfer.bundles.export import graph_weights, trace

if TYPE_CHECKING:
    from transfer.click_model.model import ClickModel

__all__ = ["Snapshot", "load_model", "snapshot_of", "write_snapshot"]

STATE = "training/state.safetensors"
HEADER = "header"
# Held by the tables of the bundle itself where these are float32, so not written twice.
_IN_TABLES = ("tables.rows.values", "tables.weights.values", "tables.counts")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a bundle is written from; independent of the model that it was taken from."""

    architecture: str
    hyperparameters: dict[str, Any]
    schema: Schema
    calibration: Calibration
    networks: dict[str, bytes]
    tables: dict[str, Table]
    defaults: dict[str, tuple[tuple[float, ...], float | None]]
    full: bool
    stored: RowFormat = "float32"
    header: dict[str, Any] | None = None
    arrays: dict[str, npt.NDArray[Any]] = field(default_factory=dict)

    def infos(self) -> dict[str, TableInfo]:
        """The manifest's entries of the tables."""
        return {
            name: TableInfo(
                width=len(default),
                dtype=self.stored,
                rows=len(self.tables[name].ids),
                default=default,
                linear_default=linear_default,
            )
            for name, (default, linear_default) in self.defaults.items()
        }


def snapshot_of(model: ClickModel, *, full: bool, training: bool) -> Snapshot:
    """See `ClickModel.snapshot`."""
    model.network.cpu()
    model.graphs = model.graphs or trace(model.network, model.schema)
    networks = {name: graph.write() for name, graph in model.graphs.items()}
    model.network.to(model.device)
    slots = None if full else model.tables.touched()
    header, arrays = model.state_dict() if training else (None, {})
    return Snapshot(
        architecture=model.arch,
        hyperparameters={"width": model.width, **model.hyperparameters},
        schema=model.schema,
        calibration=model.calibration,
        networks=networks,
        tables={name: model.tables.export(name, slots) for name in model.tables.names},
        defaults={
            name: (
                tuple(model.tables.default[t].tolist()),
                float(model.tables.default_linear[t]) if model.network.uses_linear else None,
            )
            for t, name in enumerate(model.tables.names)
        },
        full=full,
        stored=model.stored,
        header=header,
        arrays=training_arrays(arrays, model.stored),
    )


def write_snapshot(
    target: Path | Repository,
    name: str,
    snapshot: Snapshot,
    *,
    version: str | None = None,
    parent: str | None = None,
    base: str | None = None,
    deltas: Sequence[str] = (),
    metrics: Mapping[str, float | None] | None = None,
    gate: GateReport | None = None,
    created_ms: int = 0,
) -> Bundle:
    """Write a snapshot as a bundle.

    Args:
        target: a repository, or the directory that becomes the bundle (then its version is 1 unless said).
        name: of the bundle.
        snapshot: what to write.
        version: reserved before; None takes the next number of the repository.
        parent: version it was trained on from.
        base, deltas: of a delta: the base generation and the deltas before this one, oldest first.
        metrics: at birth.
        gate: its report; a version that did not pass is written as a manifest alone.
        created_ms: Unix time in milliseconds.

    Raises:
        BundleError: the place is taken, or a delta was not told its base.
        InvalidInput: a row cannot be stored in the snapshot's format.
    """
    if snapshot.full != (base is None):
        raise BundleError("a delta needs the version of its base, and a snapshot of all rows is itself a base", "base")
    if isinstance(target, Repository):
        version = version or target.reserve(name)
        path, publish = target.path(name, version), target.publish
    else:
        version, path, publish = version or "1", target, None
    manifest = Manifest(
        name=name,
        version=version,
        architecture=snapshot.architecture,
        hyperparameters=snapshot.hyperparameters,
        schema=snapshot.schema,
        tables=snapshot.infos(),
        calibration=snapshot.calibration,
        metrics=dict(metrics or {}),
        parent=parent,
        base=base,
        deltas=(*(d for d in deltas if d != version), version) if base is not None else (),
        gate=gate,
        created_ms=created_ms,
    )
    with BundleWriter(path) as writer:
        if manifest.servable:
            for file_name, network in snapshot.networks.items():
                writer.path(file_name).write_bytes(network)
            write_warmup(writer.path(WARMUP), snapshot.schema, synthetic_requests(snapshot.schema))
            for table_name, table in snapshot.tables.items():
                writer.table(table_name, table, snapshot.stored)
            if snapshot.header is not None:
                header = np.frombuffer(json.dumps(snapshot.header).encode(), np.uint8)
                writer.tensors(STATE, {**snapshot.arrays, HEADER: header})
        return writer.finish(manifest, publish)


def load_model(kind: type[ClickModel], chain: Sequence[Bundle]) -> ClickModel:
    """A model from a base and its deltas, oldest first (`Repository.chain`).

    Optimiser state comes from the newest bundle that has it; without any, the model is frozen.

    Raises:
        BundleError: the network does not fit the architecture that the manifest names.
    """
    last = chain[-1].manifest
    stateful = next((b for b in reversed(chain) if STATE in b.manifest.files), None)
    newer = chain
    hyperparameters = dict(last.hyperparameters)
    width = int(hyperparameters.pop("width", next(iter(last.tables.values())).width))
    if stateful is not None:
        arrays = stateful.tensors(STATE)
        header = json.loads(arrays.pop(HEADER).tobytes())
        if _IN_TABLES[0] in arrays:
            newer = chain[chain.index(stateful) + 1 :]  # its own rows and those before it are there, unrounded
        else:
            ids = len(arrays["tables.ids"])
            arrays["tables.rows.values"] = np.zeros((ids, width), np.float32)
            arrays["tables.counts"] = np.zeros(ids, np.int64)
            arrays["tables.weights.values"] = np.zeros((ids if header["linear"] else 0, 1), np.float32)
        model = kind.from_state(header, arrays)
    else:
        model = kind.create(last.model_schema, last.architecture, width, seed=0, hyperparameters=hyperparameters)
        model.frozen = True
    for index, name in enumerate(model.tables.names):
        info = last.tables[name]
        if info.width != model.tables.default.shape[1]:
            raise BundleError(
                f"{chain[-1].path}: table {name!r} has width {info.width} where architecture {last.architecture!r} has "
                f"{model.tables.default.shape[1]}; it was not written by this trainer",
                name,
            )
        model.tables.default[index] = info.default
        model.tables.default_linear[index] = info.linear_default or 0.0
    for bundle in newer:
        for name in model.tables.names:
            model.tables.load_rows(name, bundle.table(name))
    _load_dense(model, chain[-1])
    model.calibration = last.calibration
    model.stored = next(iter(last.tables.values())).dtype
    return model


def _load_dense(model: ClickModel, bundle: Bundle) -> None:
    found = graph_weights(onnx.load(str(bundle.file(DENSE)), load_external_data=False))
    weights = dict(model.network.named_parameters()) | dict(model.network.named_buffers())
    for name, tensor in weights.items():
        array = found.get(name)
        if array is None:
            if not any(n.startswith(name.split(".")[0]) for n in found):
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


def training_arrays(arrays: Mapping[str, npt.NDArray[Any]], stored: RowFormat) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a model's state that tables of this format do not hold already."""
    return {key: value for key, value in arrays.items() if stored != "float32" or key not in _IN_TABLES}
