"""State of a click model as JSON values and flat arrays: the content of a checkpoint.

Going on from it is exact to the bit: weights, rows, optimisers, gradients that wait for a step, counters. There is no
random state beside the counters, since every draw depends on seed and step (or seed and id) alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from pipeline.arrays import Array, Arrays
from pipeline.bundle.bundle import Calibration
from pipeline.errors import InvalidInput
from pipeline.schema import Schema
from transfer.click_model.blocks import TableSettings
from transfer.click_model.model import ClickModel, LearningSettings
from transfer.click_model.tables import merged
from transfer.model_zoo import ZOO_ALONE, Architectures

__all__ = ["load_state", "merged_state", "model_from", "state_of"]

_IDENTITY = ("schema", "arch", "width", "hyperparameters")


def state_of(model: ClickModel, *, changes: bool = False) -> tuple[dict[str, Any], Arrays]:
    """Header (JSON values) and arrays (copies) from which `load_state` goes on exactly, to the bit.

    Args:
        changes: of the tables, only rows changed since `tables.saved`, for `merged_state`; all rows where slots have been
            renumbered since.
    """
    slots = model.tables.changed() if changes else None
    header = {
        **_identity(model),
        "seed": model.seed,
        "linear": model.network.uses_linear,
        "learning": asdict(model.learning),
        "calibration": model.calibration.model_dump(),
        "unknown_ids": model.unknown_ids,
        "steps": model.steps,
        "rows_trained": model.rows_trained,
        "pending": [model.pending_batches, model.pending_rows],
    }
    arrays: Arrays = {f"tables.{key}": value for key, value in model.tables.state(slots).items()}
    for name, value in model.network.state_dict().items():
        arrays[f"dense.{name}"] = value.cpu().numpy().copy()
    for name, parameter in model.network.named_parameters():
        for key, tensor in model.optimiser.state.get(parameter, {}).items():
            arrays[f"adam.{key}.{name}"] = tensor.cpu().numpy().copy()
        if parameter.grad is not None:
            arrays[f"grad.{name}"] = parameter.grad.cpu().numpy().copy()
    return header, arrays | {f"extra.{key}": value for key, value in model.extra.items()}


def merged_state(state: Mapping[str, Array], newer: Mapping[str, Array]) -> Arrays:
    """The arrays of a whole state, updated with those of a later `state_of`, which may hold changed rows only."""
    if "tables.slots" not in newer:
        return dict(newer)
    tables = merged(_under("tables.", state), _under("tables.", newer))
    rest = {key: value for key, value in newer.items() if not key.startswith("tables.")}
    return rest | {f"tables.{key}": value for key, value in tables.items()}


def model_from(
    header: Mapping[str, Any], arrays: Mapping[str, Array], architectures: Architectures = ZOO_ALONE
) -> ClickModel:
    """A new model with the state that `state_of` gave. `architectures`: what the header may name."""
    learning = dict(header["learning"])
    learning["tables"] = TableSettings(**learning["tables"])
    model = ClickModel(
        Schema.model_validate(header["schema"]),
        header["arch"],
        header["width"],
        seed=header["seed"],
        hyperparameters=header["hyperparameters"],
        learning=LearningSettings(**learning),
        architectures=architectures,
    )
    load_state(model, header, arrays)
    return model


def load_state(model: ClickModel, header: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Give a model the state of another one like it.

    Raises:
        InvalidInput: schema, architecture, width or hyperparameters differ.
    """
    identity = _identity(model)
    # Validated, since a state of an earlier Baton lacks what a schema has gained.
    stored = {**header, "schema": Schema.model_validate(header["schema"]).model_dump(mode="json")}
    for key in _IDENTITY:
        if identity[key] != stored[key]:
            raise InvalidInput(
                f"this state is of a model with another {key}: {header[key]} instead of {identity[key]}", key
            )
    model.tables.load_state(_under("tables.", arrays))
    dense = {name: torch.from_numpy(value.copy()) for name, value in _under("dense.", arrays).items()}
    model.network.load_state_dict(dense)
    model.optimiser.state.clear()
    for name, parameter in model.network.named_parameters():
        moments = {
            key: torch.from_numpy(np.array(arrays[f"adam.{key}.{name}"])).to(model.device)
            for key in ("step", "exp_avg", "exp_avg_sq")
            if f"adam.{key}.{name}" in arrays
        }
        if moments:
            model.optimiser.state[parameter] = moments
        grad = arrays.get(f"grad.{name}")
        parameter.grad = None if grad is None else torch.from_numpy(grad.copy()).to(model.device)
    model.seed = header["seed"]
    model.tables.seed = header["seed"]
    model.calibration = Calibration(**header["calibration"])
    model.unknown_ids = dict(header.get("unknown_ids", {}))
    model.steps, model.rows_trained = header["steps"], header["rows_trained"]
    model.pending_batches, model.pending_rows = header["pending"]
    model.extra = _under("extra.", arrays)


def _identity(model: ClickModel) -> dict[str, Any]:
    return {
        "schema": model.schema.model_dump(mode="json"),
        "arch": model.arch,
        "width": model.width,
        "hyperparameters": model.hyperparameters,
    }


def _under(prefix: str, arrays: Mapping[str, Array]) -> Arrays:
    return {key[len(prefix) :]: value for key, value in arrays.items() if key.startswith(prefix)}
