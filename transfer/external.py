"""Door for models trained elsewhere: `save` makes a bundle of a trained network and its tables. docs/import.md is the tutorial.

    from transfer import external

    external.save(
        "home/bundles/ranker/1", network, "schema.yaml",
        tables={"item": external.Table(vectors, index=external.Vocabulary("items.txt"))}, check="rows.parquet",
    )

A subclass of `Architecture` that can be imported goes on learning here; every other network is frozen: it serves, teaches
and lends its tables. Next stops: `transfer.bundles.importing.dense` (the network), `transfer.bundles.importing.tables.table`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from pipeline.arrays import F32
from pipeline.bundle.bundle import BundleWriter, Calibration, Manifest
from pipeline.bundle.versions import is_number
from pipeline.errors import DataError, InvalidInput
from pipeline.model.probe import ProbeLimits, sample_of
from pipeline.schema import FieldSpec
from transfer.bundles.importing.dense import Dense, dense_of
from transfer.bundles.importing.parity import TOLERANCE_LOGIT, Check, Parity
from transfer.bundles.importing.tables.fields import fields_of
from transfer.bundles.importing.tables.index import Ids, Modulo, Vocabulary
from transfer.bundles.importing.tables.table import Table
from transfer.bundles.importing.writing import Fit, Imported, NewBundle, NewTable, write
from transfer.bundles.publish import write_state
from transfer.click_model.model import ClickModel

__all__ = ["Ids", "Modulo", "Parity", "Table", "Vocabulary", "save"]

_SAMPLED_COUNT = 4096


def save(
    path: str | Path,
    network: nn.Module | str | Path,
    schema: Any,
    *,
    tables: Mapping[str, Table],
    heads: Mapping[str, Literal["logit", "probability"]] | None = None,
    check: Any = None,
    tolerance: float = TOLERANCE_LOGIT,
    name: str = "",
    learns: bool | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
    numbers: Mapping[str, tuple[float, float]] | None = None,
    optimiser: torch.optim.Optimizer | None = None,
    calibration: Calibration | None = None,
    fit: Fit | None = None,
    limits: ProbeLimits | None = None,
) -> Imported:
    """Write a network that was trained elsewhere, with its embedding tables, as a bundle.

    Args:
        path: the bundle's directory, `home/bundles/NAME/VERSION`; must not exist yet.
        network: one of
            an `Architecture` (`forward(embeddings [n, F, d], linear, numbers [n, 2M])`: pooled vectors, and values with flags of
            missing ones), which learns on where its class can be imported as `package.module:Class`;
            any other module, frozen: its `forward` names `embeddings` `[n, sum of widths]`, `numbers` `[n, M]` with NaN for
            missing, or fields; an ONNX file of the dense part with inputs of these names.
        schema: a schema file, a mapping with `fields`, a list of fields, or a `Schema`.
        tables: the rows of each table; a field's table has its name unless the field says another.
        heads: what the network answers, by the label's name; one of `logit` (default) and `probability`.
        check: rows with the model's own answers in a column `score` or `expected`: a file, table or data frame. All are compared.
        tolerance: largest difference of log-odds, relative beyond 1.
        name: of the bundle; default: of the directory above.
        learns: False freezes a network that could learn; its tables may then be larger than memory. True refuses one that
            cannot.
        hyperparameters: arguments with which the class makes the network, beside fields, width and numbers.
        numbers: mean and deviation of number fields, by which an `Architecture` wants them standardised; unless said, they
            arrive as they are sent, after the field's transform, with 0 for missing.
        optimiser: Adam that trained the network, whose state training goes on with.
        calibration: of the network's answers; default: none.
        fit: gives the calibration instead, see `transfer.quality.calibrating.fit_bundle`.
        limits: of the process in which the network is tried.

    Returns:
        The bundle, what was seen of it (`warnings`), and how its answers compare (`parity`).

    Raises:
        BundleError: the place is taken, the network's rows influence each other, or it answers otherwise than `check` says.
        DataError: tables, fields and network do not fit each other.
        InvalidInput: the network does not meet the contract.
    """
    path = Path(path)
    kind = _head(heads)
    fields = fields_of(schema, tables)
    rows = {table: _NewRows(table, given) for table, given in tables.items()}
    widths = {table: given.width for table, given in tables.items()}
    dense = dense_of(
        network, fields.with_widths(widths), learns=learns, hyperparameters=hyperparameters or {}, numbers=numbers or {}, kind=kind,
    )  # fmt: skip
    if dense.model is not None and optimiser is not None:
        _take_over(dense.model, network, optimiser)
    new = NewBundle(
        name=name or path.absolute().parent.name,
        version=path.name if is_number(path.name) else "1",
        architecture=dense.architecture,
        schema=dense.schema,
        tables=[rows[table].table(dense.schema.embedded) for table in rows],
        networks=dense.files,
        hyperparameters=dense.hyperparameters,
        source=Path(network) if isinstance(network, str | Path) else Path(type(network).__qualname__),
        notes=dense.notes,
        logit=kind == "logit",
        calibration=calibration or Calibration(),
    )

    def state(writer: BundleWriter, manifest: Manifest) -> None:
        _learn_on(dense, writer, manifest)

    def drawn(field: FieldSpec, count: int) -> tuple[F32, F32]:
        return rows[field.table_name].drawn(count), np.zeros(count, np.float32)

    compared = None if check is None else Check(_rows(check), tolerance)
    return write(
        new, path, sample_of(dense.schema, drawn), limits or ProbeLimits(), compared, fit,
        state if dense.model is not None else None,
    )  # fmt: skip


class _NewRows:
    """A given table on its way into the bundle."""

    def __init__(self, name: str, given: Table) -> None:
        self._name, self._given = name, given

    def table(self, fields: Sequence[FieldSpec]) -> NewTable:
        given = self._given
        mine = [f for f in fields if f.table_name == self._name]
        return NewTable(
            self._name, given.width, given.default_row(), given.count * len(mine),
            sources=[(field, given.batches()) for field in mine], stored=given.stored,
        )  # fmt: skip

    def drawn(self, count: int) -> F32:
        """Some rows, the default one first."""
        default = np.array(self._given.default_row(), np.float32)[None]
        first = next((vectors[:_SAMPLED_COUNT] for _, vectors in self._given.batches()), default[:0])
        rows = np.concatenate([default, first])
        found: F32 = rows[np.random.default_rng(0).integers(0, len(rows), count)]
        found[:1] = default
        return found


def _head(heads: Mapping[str, Literal["logit", "probability"]] | None) -> Literal["logit", "probability"]:
    kinds = list((heads or {"click": "logit"}).values())
    if len(kinds) != 1:
        raise InvalidInput(f"heads names {len(kinds)} answers; a bundle serves one, the click's", "heads")
    if kinds[0] not in ("logit", "probability"):
        raise InvalidInput(f"heads: {kinds[0]!r} is neither logit nor probability", "heads")
    return kinds[0]


def _rows(check: Any) -> Path | pa.Table:
    if isinstance(check, str | Path | pa.Table):
        return Path(check) if isinstance(check, str) else check
    return pa.Table.from_pandas(check, preserve_index=False)


def _take_over(model: ClickModel, network: Any, optimiser: torch.optim.Optimizer) -> None:
    """Adam's moments of the network's own parameters, for those of the model's copy of it."""
    own = dict(model.network.body.named_parameters())
    for name, parameter in network.named_parameters():
        state = optimiser.state.get(parameter)
        if state and {"step", "exp_avg", "exp_avg_sq"} <= set(state):
            kept = {
                key: torch.as_tensor(state[key], dtype=torch.float32).detach().clone()
                for key in ("step", "exp_avg", "exp_avg_sq")
            }
            model.optimiser.state[own[name]] = kept
    if not model.optimiser.state:
        raise DataError("the optimiser has no state of Adam for the network's parameters; leave it out", "optimiser")


def _learn_on(dense: Dense, writer: BundleWriter, manifest: Manifest) -> None:
    """Write the state that training goes on from: the network, and the tables as they were just written."""
    model = dense.model
    assert model is not None
    for index, table in enumerate(model.tables.names):
        model.tables.default[index] = manifest.tables[table].default
        model.tables.load_rows(table, writer.written(table, manifest))
    model.calibration = manifest.calibration
    write_state(writer, model)
