"""Writing of an imported bundle: network, tables row by row, warm-up requests; tried and compared before it is in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.arrays import F32
from pipeline.bundle.bundle import CONTEXT, MANIFEST, WARMUP, Bundle, BundleWriter, Calibration, Manifest, TableInfo
from pipeline.bundle.graph import check_graph
from pipeline.bundle.row_format import RowFormat
from pipeline.disk import sync
from pipeline.errors import BundleError
from pipeline.hashing import hash_column
from pipeline.model.probe import ProbeLimits, probe
from pipeline.model.proof import Sample
from pipeline.model.warmup import synthetic_requests, write_warmup
from pipeline.schema import FieldSpec, Schema
from transfer.bundles.importing.parity import Check, Parity
from transfer.bundles.importing.tables.file import TableFile

__all__ = ["Fit", "Imported", "NewBundle", "NewTable", "write", "write_tables"]


@dataclass(slots=True)
class NewTable:
    """A table to write: by field, values and rows float32 `[k, width]` in batches, read once.

    Args:
        default: the row of values that have none.
        expected: about how many rows will come.
    """

    name: str
    width: int
    default: tuple[float, ...]
    expected: int = 0
    sources: list[tuple[FieldSpec, Iterable[tuple[Any, F32]]]] = field(default_factory=list)
    stored: RowFormat = "float32"


@dataclass(frozen=True, slots=True)
class NewBundle:
    """What becomes a bundle.

    Args:
        networks: ONNX files by name in the bundle, `dense.onnx` first.
        source: the model's file, for messages.
        notes: what to know before it serves.
        logit: whether the model's own answer is a logit, else a probability.
    """

    name: str
    architecture: str
    schema: Schema
    tables: list[NewTable]
    networks: Mapping[str, bytes]
    hyperparameters: Mapping[str, Any]
    source: Path
    notes: tuple[str, ...] = ()
    logit: bool = True
    calibration: Calibration = field(default_factory=Calibration)
    version: str = "1"


@dataclass(frozen=True, slots=True)
class Imported:
    """An imported bundle, and what was seen of its network: `missing` numbers without which it has no finite score, how
    many of `rows` tried ones have none though all their numbers are there (`odd`), and how its answers compare (`parity`;
    None: nothing was compared)."""

    bundle: Bundle
    missing: tuple[str, ...] = ()
    odd: int = 0
    rows: int = 0
    parity: Parity | None = None
    notes: tuple[str, ...] = ()

    @property
    def warnings(self) -> list[str]:
        """What to know before it serves."""
        found = list(self.notes)
        if self.missing:
            names = ", ".join(self.missing)
            found.append(
                f"the network has no finite score where {names} is missing: such a request gets an error. Say under `fill` "
                "in the schema file what the network should read instead, or have clients always send it"
            )
        if self.odd:
            found.append(
                f"the network has no finite score for {self.odd} of {self.rows} tried rows, none of whose numbers is "
                "missing: such a request gets an error"
            )
        if self.parity is None:
            found.append(
                "nothing was compared with the model's own answers: that the bundle says the same as the model, for real "
                "values, unknown ones and missing ones, was not checked. Give rows with its answers with --check"
            )
        return found


Fit = Callable[[Bundle], Calibration]
"""Fits a calibration on labels, `transfer.quality.calibrating.fit_bundle` of a log."""


def write(
    new: NewBundle,
    out: Path,
    sample: Sample,
    limits: ProbeLimits,
    check: Check | None = None,
    fit: Fit | None = None,
    state: Callable[[BundleWriter, Manifest], None] | None = None,
) -> Imported:
    """Write a bundle, after a proof that its network scores each row by itself.

    Args:
        new: what becomes of it.
        out: the bundle's directory.
        sample: rows to prove it with.
        limits: of the process in which it is tried.
        check: rows that it must answer as the model does.
        fit: gives the calibration, once the bundle answers as the model does.
        state: writes the state that training goes on from, when the tables are there.

    Raises:
        BundleError: the place is taken, the network does not pass, or its answers differ; nothing is left behind.
        DataError: a table's rows are wrong.
    """
    parities: list[Parity] = []

    def compare(staging: Path, manifest: Manifest) -> None:
        if check is not None:
            parities.append(check.compare(Bundle(staging, manifest), logit=new.logit, source=new.source))
        if fit is not None:
            fitted = manifest.model_copy(update={"calibration": fit(Bundle(staging, manifest))})
            (staging / MANIFEST).write_text(fitted.model_dump_json(by_alias=True, indent=1))
            sync(staging / MANIFEST)

    with BundleWriter(out) as writer:
        files = {file: writer.path(file) for file in new.networks}
        for file, path in files.items():
            path.write_bytes(new.networks[file])
            check_graph(path, new.schema, linear=False, split=file == CONTEXT)
        verdict = probe(files, new.schema, sample, limits)
        if verdict.reason:
            raise BundleError(f"{new.source}: {verdict.reason}", new.source.name)
        write_warmup(writer.path(WARMUP), new.schema, synthetic_requests(new.schema))
        infos = {table.name: write_tables(writer, table) for table in new.tables}
        manifest = Manifest(
            name=new.name,
            version=new.version,
            architecture=new.architecture,
            hyperparameters=dict(new.hyperparameters),
            schema=new.schema,
            tables=infos,
            calibration=new.calibration,
        )
        if state is not None:
            state(writer, manifest)
        bundle = writer.finish(manifest, compare)
    parity = parities[0] if parities else None
    return Imported(bundle, verdict.missing, verdict.odd, verdict.rows, parity, new.notes)


def write_tables(writer: BundleWriter, table: NewTable) -> TableInfo:
    """Write one table in bounded memory; its entry in the manifest.

    Raises:
        DataError: a value comes twice, or a vector has another width or is not finite.
    """
    path = writer.path(f"tables/{table.name}.safetensors")
    with TableFile(path, table.name, table.width, expected=table.expected, stored=table.stored) as file:
        for spec, batches in table.sources:
            for values, rows in batches:
                # Without the field's index: the values are row numbers already.
                ids = hash_column(spec.name, values, spec.missing_texts)
                file.add(ids, np.ascontiguousarray(rows, np.float32))
        rows_count = file.finish()
    return TableInfo(width=table.width, dtype=table.stored, rows=rows_count, default=table.default)
