"""Import of an ONNX network as a frozen teacher that serves and distils (`baton bundle import`, `import-onnx`).

A bundle's network sees rows of tables, never raw ids. So an id reaches an imported network as the row of its *code*, the
number that it was trained on, or as the vectors that the network looked up by that number, where its tables were lifted out
of the graph. Numbers pass as they were sent, NaN for missing. Next stops: `lifting` (tables), `graph` (the network),
`writing` (the bundle), `parity` (whether it says the same).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import GraphProto, TensorProto

from pipeline.arrays import F32
from pipeline.bundle.bundle import DENSE
from pipeline.bundle.versions import is_number
from pipeline.errors import BundleError, DataError
from pipeline.hashing import canonical
from pipeline.model.probe import ProbeLimits, sample_of
from pipeline.schema import FieldSpec, Schema
from transfer.architecture_names import IMPORTED
from transfer.bundles.importing.graph import Vectors, Wanted, adapted, answer_of
from transfer.bundles.importing.lifting import Lifted, lift
from transfer.bundles.importing.onnx_file import OnnxFile
from transfer.bundles.importing.parity import Check
from transfer.bundles.importing.spec import ImportSpec
from transfer.bundles.importing.texts import texts_read
from transfer.bundles.importing.writing import Fit, Imported, NewBundle, NewTable, write

__all__ = ["import_network", "import_onnx"]

LARGEST_CODE = 1 << 24
"""Integers beyond it are not exact as float32."""
_NUMERIC = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64, TensorProto.INT32}
_SAMPLED_COUNT = 4096

DEFAULT_LIMITS = ProbeLimits()


def import_onnx(
    file: Path,
    spec: ImportSpec,
    out: Path,
    *,
    name: str,
    limits: ProbeLimits = DEFAULT_LIMITS,
    check: Check | None = None,
    fit: Fit | None = None,
) -> Imported:
    """`import_network` of a file: standard operators (ONNX and ONNX-ML), external data in its own folder."""
    return import_network(OnnxFile.read(file), spec, out, name=name, limits=limits, check=check, fit=fit)


def import_network(
    file: OnnxFile,
    spec: ImportSpec,
    out: Path,
    *,
    name: str,
    limits: ProbeLimits = DEFAULT_LIMITS,
    check: Check | None = None,
    fit: Fit | None = None,
) -> Imported:
    """Write a network as a bundle without training state, after a proof that it scores each row by itself.

    Args:
        file: the network.
        spec: how clients' fields reach it.
        out: the bundle's directory.
        name: of the bundle.
        limits: of the process in which the network is tried.
        check: rows with the model's own answers, which the bundle must give too; None: nothing is compared.
        fit: gives the calibration; None: the model's answers as they are.

    Raises:
        BundleError: the network or the place cannot be used, the network's rows influence each other, it does not end within
            the limits, or it answers otherwise than `check` says; nothing is left behind.
        DataError: the specification contradicts itself.
    """
    spec.check()
    try:
        lifted = lift(file, spec)
        model = lifted.file.inside()
        reading = _Reading(spec, model.graph, lifted)
        answer = answer_of(model.graph, spec.output, spec.kind, spec.positive)
        schema = reading.schema
        network = adapted(
            model, schema, answer, reading.wanted, reading.places, vectors=reading.vectors, fill=spec.fill
        )
    except BundleError as error:
        if str(error).startswith(str(file.path)):
            raise
        raise BundleError(f"{file.path}: {error}", error.field) from None
    new = NewBundle(
        name=name,
        version=out.name if is_number(out.name) else "1",
        architecture=IMPORTED,
        schema=schema,
        tables=reading.tables,
        networks={DENSE: network.SerializeToString()},
        hyperparameters={"columns": list(reading.names), "vectors": reading.widths},
        source=file.path,
        notes=(*([answer.note] if answer.note else []), *lifted.kept),
        logit=answer.kind == "logit",
    )
    return write(new, out, sample_of(schema, reading.drawn), limits, check, fit)


class _Reading:
    """How a network reads the fields: which by vectors, which by a number, and where those stand in the bundle's inputs.

    Attributes:
        wanted: the network's inputs.
        names: fields that it reads, in its order.
        schema: with widths.
        widths: by field, the numbers of its vectors; those of codes are not among them.
        places: column of a field's number among those of `embeddings` and then `numbers`.
    """

    def __init__(self, spec: ImportSpec, graph: GraphProto, lifted: Lifted) -> None:
        self._spec, self._lookups = spec, lifted.lookups
        self._fields = {f.name: f for f in spec.fields}
        weights = {t.name for t in graph.initializer}
        own = [v for v in graph.input if v.name not in weights]
        single = len(lifted.own) == 1
        self.wanted = [self._wanted(graph, v.name, v.type.tensor_type, spec.columns_of(v.name, single)) for v in own]
        self._check_widths(graph)
        self._texts = {f: one.texts for one in self.wanted for f in one.fields if one.texts}
        self._check_names([v.name for v in own], single)
        coded = {name for one in self.wanted for name in one.fields if self._fields[name].kind != "number"}
        lifted_names = {name for lookup in self._lookups for name in lookup.fields}
        self.names = tuple(n for n in dict.fromkeys([*spec.read, *self._fields]) if n in coded | lifted_names or any(n in w.fields for w in self.wanted))  # fmt: skip
        self._coded = coded
        self.widths = {
            name: sum(lookup.width for lookup in self._lookups if name in lookup.fields)
            for name in sorted(lifted_names)
        }
        self.schema = self._schema()
        starts, at = dict[str, int](), 0
        for field in self.schema.embedded:
            starts[field.name], at = at, at + (field.width or 0)
        self._starts = starts
        self.places = {f: starts[f] + self.widths.get(f, 0) for f in coded}
        self.places |= {f.name: at + column for column, f in enumerate(self.schema.numbers)}

    def _wanted(self, graph: GraphProto, name: str, kind: Any, fields: tuple[str, ...]) -> Wanted:
        texts: tuple[str, ...] = ()
        if kind.elem_type == TensorProto.STRING:
            texts = texts_read(graph, name)
            if not texts:
                raise BundleError(
                    f"input {name!r} is not numeric, and the network names no categories of its texts; convert the model with "
                    "float inputs and give ids their codes",
                    name,
                )
        elif kind.elem_type not in _NUMERIC:
            raise BundleError(
                f"input {name!r} is not numeric; convert the model with float inputs and give ids their codes", name
            )
        return Wanted(name, fields, kind.elem_type, len(kind.shape.dim) or 2, texts)

    def _check_names(self, inputs: Sequence[str], single: bool) -> None:
        spec, kinds = self._spec, {f.name: f.kind for f in self._spec.fields}
        by_code = spec.columns or tuple(f for one in self.wanted for f in one.fields)
        for name in by_code:
            if name in kinds and kinds[name] == "bag" and not any(name in lookup.fields for lookup in self._lookups):
                raise DataError(f"columns: {name!r} is a bag, which has no single code; leave it out", name)
            if kinds.get(name) == "id" and not (name in spec.codes or name in spec.index or name in self._texts):
                raise DataError(f"columns: {name!r} is an id; give its values numbers under codes, or an index", name)
        read = [f for one in self.wanted for f in one.fields]
        lifted = {f for lookup in self._lookups for f in lookup.fields}
        unknown = [name for name in read if name not in kinds]
        if unknown or (not single and spec.columns is not None and {*read} | lifted != {*spec.columns}):
            raise BundleError(
                f"inputs are {sorted(inputs)}, columns {sorted(spec.columns or kinds)}; name as columns what the network reads, "
                "or say under `inputs` of which fields an input is made",
                "columns",
            )
        if not read and not lifted:
            raise DataError(
                "the network would read nothing: give ids codes or an index, or name numbers as fields", "columns"
            )
        for one in self.wanted:
            if any(kinds[name] == "bag" for name in one.fields):
                raise DataError(
                    f"input {one.name!r} reads bag {one.fields[0]!r} in another way than as the mean of a table's rows, which "
                    "is not served; leave the bag out, or export the network with its mean (ReduceMean over axis 1)",
                    one.name,
                )

    def _check_widths(self, graph: GraphProto) -> None:
        """Check that inputs have as many columns as fields are named for them."""
        for value in graph.input:
            one = next((w for w in self.wanted if w.name == value.name), None)
            shape = value.type.tensor_type.shape.dim
            width = shape[1].dim_value if len(shape) == 2 else 0
            if one is not None and width not in (0, len(one.fields)):
                raise BundleError(
                    f"input {value.name!r} has {width} columns where {len(one.fields)} are named: {', '.join(one.fields)}",
                    "columns",
                )

    def _schema(self) -> Schema:
        plain = self._spec.schema_of_bundle
        tables: dict[str, int] = {}
        fields = []
        for field in plain.fields:
            if field.kind != "number":
                width = self.widths.get(field.name, 0) + (field.name in self._coded)
                tables[field.table_name] = max(tables.get(field.table_name, 1), width)
        for field in plain.fields:
            update = {} if field.kind == "number" else {"width": tables[field.table_name]}
            fields.append(field.model_copy(update=update))
        return Schema(fields=tuple(fields))

    @property
    def vectors(self) -> list[Vectors]:
        """The lifted tensors, by columns of the bundle's inputs."""
        used = dict.fromkeys(self._starts, 0)
        found = []
        for lookup in self._lookups:
            columns: list[int] = []
            for name in lookup.fields:
                start = self._starts[name] + used[name]
                columns += range(start, start + lookup.width)
                used[name] += lookup.width
            dtype = {np.dtype(np.float16): TensorProto.FLOAT16, np.dtype(np.float64): TensorProto.DOUBLE}
            found.append(
                Vectors(lookup.output, tuple(columns), lookup.tail, dtype.get(lookup.data.dtype, TensorProto.FLOAT))
            )
        return found

    # --- rows ----------------------------------------------------------------------------------------------------------

    @property
    def tables(self) -> list[NewTable]:
        """The bundle's tables, each with what gives its rows."""
        found: dict[str, NewTable] = {}
        for field in self.schema.embedded:
            table = found.setdefault(
                field.table_name,
                NewTable(field.table_name, field.width or 1, self._default(field), self._expected(field)),
            )
            table.sources.append((field, self._rows(field)))
        return list(found.values())

    def drawn(self, field: FieldSpec, count: int) -> tuple[F32, F32]:
        """Rows that a field may have, that of unknown values first, for the probe."""
        rng = np.random.default_rng(0)
        kept = [np.array(self._default(field), np.float32)[None]]
        for _, vectors in self._rows(field):
            kept.append(vectors[:_SAMPLED_COUNT])
            break
        rows = np.concatenate(kept)
        drawn = rows[rng.integers(0, len(rows), count)]
        drawn[:1] = rows[0]
        return drawn, np.zeros(count, np.float32)

    def _numbers(self, field: FieldSpec) -> Iterator[tuple[list[Any], Any]]:
        """Values of a field and the numbers that the network is sent for them, in batches."""
        spec = self._spec
        codes = spec.codes.get(field.name)
        if codes:
            assert not isinstance(codes, str)
            yield list(codes), np.array(list(codes.values()), np.float64)
        elif field.name in self._texts:
            texts = list(self._texts[field.name])
            yield texts, np.arange(len(texts), dtype=np.float64)
        elif field.name in spec.index:
            index = spec.index[field.name]
            mine = [lookup for lookup in self._lookups if field.name in lookup.fields]
            count = min((lookup.data.shape[0] for lookup in mine), default=index.size())
            if not count:
                raise DataError(
                    f"index of {field.name!r}: the number of rows is not known; write for example index: {{ids: 1000}}",
                    field.name,
                )
            for values, rows in index.rows(count):
                yield values, np.array(rows, np.float64)

    def _rows(self, field: FieldSpec) -> Iterator[tuple[list[Any], F32]]:
        """Values of a field and the rows of its table, in batches."""
        for values, numbers in self._numbers(field):
            if len(numbers) and field.name in self._coded:
                at = int(np.argmax(np.abs(numbers)))
                if abs(numbers[at]) > LARGEST_CODE:
                    raise DataError(
                        f"codes: {numbers[at]:g} of {field.name}={canonical(values[at])!r} is not exact as a 32-bit float",
                        field.name,
                    )
            if len(numbers):
                yield values, self._vectors_of(field, numbers)

    def _vectors_of(self, field: FieldSpec, numbers: Any) -> F32:
        whole = np.rint(numbers).astype(np.int64)
        parts = [lookup.vectors(field.name, whole) for lookup in self._lookups if field.name in lookup.fields]
        if field.name in self._coded or not parts:
            parts.append(numbers.astype(np.float32)[:, None])
        rows = np.concatenate(parts, 1)
        if rows.shape[1] != field.width:
            raise DataError(
                f"field {field.name!r} shares table {field.table_name!r} with a field that the network reads otherwise; give "
                "each of them a table of its own",
                field.name,
            )
        return rows

    def _default(self, field: FieldSpec) -> tuple[float, ...]:
        """The row of values that have none."""
        index = self._spec.index.get(field.name)
        oov = None if index is None else index.oov
        if oov is not None:
            return tuple(self._vectors_of(field, np.array([float(oov)]))[0].tolist())
        width = field.width or 1
        if self.widths.get(field.name):
            return tuple([0.0] * self.widths[field.name] + [self._spec.unknown] * (width - self.widths[field.name]))
        return (self._spec.unknown,) * width

    def _expected(self, field: FieldSpec) -> int:
        return max((lookup.data.shape[0] for lookup in self._lookups if field.name in lookup.fields), default=0)
