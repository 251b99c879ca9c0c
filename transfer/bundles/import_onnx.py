"""Import of an ONNX network as a frozen teacher that serves and distils (`baton bundle import-onnx`).

A bundle's network sees rows of tables, never raw ids. So an id reaches an imported network as its *code*, the number that
it was trained on: each id field gets a table of width 1 whose row is the code of a value, and whose default row is the
code of values without one. Numbers pass as they were sent, NaN for missing. Next stop: `import_graph` (the network).
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.arrays import F32
from pipeline.bundle.bundle import DENSE, WARMUP, Bundle, BundleWriter, Manifest, Table, TableInfo
from pipeline.bundle.graph import check_graph
from pipeline.documents import parse_yaml
from pipeline.errors import BundleError, DataError
from pipeline.hashing import hash_value
from pipeline.model.probe import ProbeLimits, probe, sample_of
from pipeline.model.warmup import synthetic_requests, write_warmup
from pipeline.schema import MISSING_TEXTS, FieldSpec, Name, Schema
from transfer.architecture_names import IMPORTED
from transfer.bundles.import_graph import Kind, adapted

__all__ = ["ImportSpec", "Imported", "import_onnx"]

LARGEST_CODE = 1 << 24
"""Integers beyond it are not exact as float32."""

DEFAULT_LIMITS = ProbeLimits()

Codes = dict[str, float] | str


class ImportSpec(BaseModel):
    """The schema file of `import-onnx`: which fields clients send, and how the network reads them."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    fields: tuple[FieldSpec, ...] = Field(min_length=1, description="as in dataset.yaml, all that clients send")
    columns: tuple[Name, ...] | None = Field(
        None,
        description="fields that the network reads, in its order; ids with codes and numbers, in order, by default",
    )
    codes: dict[Name, Codes] = Field(
        {}, description="of each id field that is read: a mapping of value to number, or a CSV file of value,code"
    )
    unknown: Annotated[float, Field(description="code of a value without one, missing ones too")] = -1.0
    fill: dict[Name, float] = Field({}, description="what the network reads where a number is missing; NaN unless said")
    output: str | None = Field(None, description="the network's output that answers; needed where several could")
    kind: Kind | None = Field(None, description="what it holds; needed unless it is the probabilities of two classes")

    @classmethod
    def load(cls, path: Path) -> ImportSpec:
        """Read a schema file; codes in CSV files are read too, their paths relative to it.

        Raises:
            DataError: the file or a part of it is absent or wrong; the message names file and key.
        """
        try:
            spec = cls.model_validate(parse_yaml(path.read_text("utf-8")))
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: is not YAML: {error}") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise DataError(f"{path}: {where + ': ' if where else ''}{first['msg']}", where) from None
        read = {
            name: _read_codes(path.parent / codes) if isinstance(codes, str) else codes
            for name, codes in spec.codes.items()
        }
        return spec.model_copy(update={"codes": read})

    @property
    def schema_of_bundle(self) -> Schema:
        """The fields with vectors of width 1; texts for missing values are those of a log unless a field says its own.

        Raises:
            DataError: two fields have one name.
        """
        fields = tuple(
            f
            if f.kind == "number" or "missing" in f.model_fields_set
            else f.model_copy(update={"missing": MISSING_TEXTS})
            for f in self.fields
        )
        try:
            return Schema(fields=fields).with_width(1)
        except ValidationError as error:
            raise DataError(f"fields: {error.errors()[0]['msg']}", "fields") from None

    @property
    def read(self) -> tuple[str, ...]:
        """Names of the fields that the network reads, in its order.

        Raises:
            DataError: there are none, or one of them has nothing that a network could read.
        """
        kinds = {f.name: f.kind for f in self.fields}
        for key, named, kind in (("codes", self.codes, "id"), ("fill", self.fill, "number")):
            stray = next((name for name in named if kinds.get(name) != kind), None)
            if stray is not None:
                raise DataError(f"{key}: {stray!r} is not a field of kind {kind}", stray)
        columns = self.columns or tuple(n for n, kind in kinds.items() if kind == "number" or n in self.codes)
        for name in columns:
            if name not in kinds:
                raise DataError(f"columns: {name!r} is not among the fields", name)
            if kinds[name] == "bag":
                raise DataError(f"columns: {name!r} is a bag, which has no single code; leave it out", name)
            if kinds[name] == "id" and name not in self.codes:
                raise DataError(f"columns: {name!r} is an id; give its values numbers under codes", name)
        if not columns:
            raise DataError("the network would read nothing: give ids codes, or name numbers as fields", "columns")
        return columns


@dataclass(frozen=True, slots=True)
class Imported:
    """An imported bundle, and what was seen of its network: `missing` numbers without which it has no finite score, and
    how many of `rows` tried ones have none though all their numbers are there (`odd`)."""

    bundle: Bundle
    missing: tuple[str, ...] = ()
    odd: int = 0
    rows: int = 0

    @property
    def warnings(self) -> list[str]:
        """What to know before it serves."""
        found = []
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
        return found


def import_onnx(
    file: Path, spec: ImportSpec, out: Path, *, name: str, limits: ProbeLimits = DEFAULT_LIMITS
) -> Imported:
    """Write a network as a bundle without training state, after a proof that it scores each row by itself.

    Args:
        file: the ONNX file: standard operators (ONNX and ONNX-ML), no external data.
        spec: how clients' fields reach it.
        out: the bundle's directory.
        name: of the bundle.
        limits: of the process in which the network is tried.

    Raises:
        BundleError: the network or the place cannot be used, the network's rows influence each other, or it does not end
            within the limits; nothing is left behind.
        DataError: the specification contradicts itself.
    """
    schema, columns = spec.schema_of_bundle, spec.read
    try:
        model = onnx.load(str(file), load_external_data=False)
    except Exception as error:  # the parser raises whatever protobuf raises
        raise BundleError(f"{file} is not an ONNX file: {error}", file.name) from None
    try:
        network = adapted(model, schema, columns, output=spec.output, kind=spec.kind, fill=spec.fill)
    except BundleError as error:
        raise BundleError(f"{file}: {error}", error.field) from None
    tables = _tables(spec, schema)
    manifest = Manifest(
        name=name,
        version="1",
        architecture=IMPORTED,
        hyperparameters={"columns": list(columns)},
        schema=schema,
        tables={t: TableInfo(width=1, rows=len(table.ids), default=(spec.unknown,)) for t, table in tables.items()},
    )
    with BundleWriter(out) as writer:
        dense = writer.path(DENSE)
        dense.write_bytes(network.SerializeToString())
        check_graph(dense, schema, linear=False)
        verdict = probe({DENSE: dense}, schema, sample_of(schema, _codes_of(spec)), limits)
        if verdict.reason:
            raise BundleError(f"{file}: {verdict.reason}", file.name)
        write_warmup(writer.path(WARMUP), schema, synthetic_requests(schema))
        for table_name, table in tables.items():
            writer.table(table_name, table)
        return Imported(writer.finish(manifest), verdict.missing, verdict.odd, verdict.rows)


def _tables(spec: ImportSpec, schema: Schema) -> dict[str, Table]:
    """A table per name: ids of the values that have codes, sorted, and the codes."""
    rows: dict[str, dict[int, float]] = {f.table_name: {} for f in schema.embedded}
    for field in schema.embedded:
        codes = spec.codes.get(field.name, {})
        assert not isinstance(codes, str)
        for value, code in codes.items():
            if abs(code) > LARGEST_CODE:
                raise DataError(f"codes: {code} of {field.name}={value!r} is not exact as a 32-bit float", field.name)
            rows[field.table_name][hash_value(field.name, value, field.missing_texts)] = code
    tables = {}
    for table_name, found in rows.items():
        ids = np.array(sorted(found), np.int64)
        codes_of = np.array([found[int(i)] for i in ids], np.float32).reshape(-1, 1)
        tables[table_name] = Table(ids, codes_of, np.zeros(len(ids), np.int64))
    return tables


def _codes_of(spec: ImportSpec) -> Callable[[FieldSpec, int], tuple[F32, F32]]:
    """Draws codes that a field may have, that of unknown values first."""
    rng = np.random.default_rng(0)

    def vectors(field: FieldSpec, count: int) -> tuple[F32, F32]:
        codes = spec.codes.get(field.name, {})
        assert not isinstance(codes, str)
        drawn = rng.choice(np.array([spec.unknown, *codes.values()], np.float32), (count, 1))
        drawn[:1] = spec.unknown
        return drawn, np.zeros(count, np.float32)

    return vectors


def _read_codes(path: Path) -> dict[str, float]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = csv.DictReader(file)
            if lines.fieldnames is None or not {"value", "code"} <= set(lines.fieldnames):
                raise DataError(f"{path}: a header with the columns value and code was expected", "codes")
            return {line["value"]: float(line["code"]) for line in lines}
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}", "codes") from None
    except ValueError as error:
        raise DataError(f"{path}: a code is not a number: {error}", "codes") from None
