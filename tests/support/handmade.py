"""Small real bundles for tests: tables, and a network whose logit numpy can compute as well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.arrays import F32, F64, I64
from pipeline.bundle.bundle import Bundle, BundleWriter, Calibration, Manifest, Table, TableInfo
from pipeline.bundle.row_format import RowFormat
from pipeline.bundle.versions import Repository
from pipeline.features import Bag, Rows
from pipeline.schema import FieldSpec, Schema

SCHEMA = Schema(
    fields=(
        FieldSpec(name="user", role="context", kind="id"),
        FieldSpec(name="age", role="context", kind="number"),
        FieldSpec(name="tags", role="context", kind="bag", separator=","),
        FieldSpec(name="item", role="candidate", kind="id"),
        FieldSpec(name="price", role="candidate", kind="number"),
        FieldSpec(name="genres", role="candidate", kind="bag", separator="|"),
    )
)
WIDTH = 4
EXTREME = np.array([-(2**63), -1, 1, 2**63 - 1], np.int64)


def write_network(path: Path, schema: Schema, *, linear: bool, seed: int = 0) -> dict[str, F32]:
    """logit = embeddings @ w + sum(linear) + (numbers, NaN as 0) @ v. Returns the weights."""
    rng = np.random.default_rng(seed)
    weights = {
        "w": rng.normal(size=(schema.embedding_width, 1)).astype(np.float32),
        "v": rng.normal(size=(len(schema.numbers), 1)).astype(np.float32),
    }
    nodes: list[Any] = []
    terms: list[str] = []
    inputs = []

    def declare(name: str, columns: int) -> None:
        inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", columns]))

    axes = numpy_helper.from_array(np.array([1], np.int64), "axes")
    zero = numpy_helper.from_array(np.zeros((), np.float32), "zero")
    if schema.embedded:
        declare("embeddings", schema.embedding_width)
        nodes.append(helper.make_node("MatMul", ["embeddings", "w"], ["by_rows"]))
        terms.append("by_rows")
        if linear:
            declare("linear", len(schema.embedded))
            nodes.append(helper.make_node("ReduceSum", ["linear", "axes"], ["by_weights"], keepdims=1))
            terms.append("by_weights")
    if schema.numbers:
        declare("numbers", len(schema.numbers))
        nodes.append(helper.make_node("IsNaN", ["numbers"], ["missing"]))
        nodes.append(helper.make_node("Where", ["missing", "zero", "numbers"], ["filled"]))
        nodes.append(helper.make_node("MatMul", ["filled", "v"], ["by_numbers"]))
        terms.append("by_numbers")
    nodes.append(helper.make_node("Sum", terms, ["column"]))
    nodes.append(helper.make_node("Squeeze", ["column", "axes"], ["logit"]))
    graph = helper.make_graph(
        nodes,
        "network",
        inputs,
        [helper.make_tensor_value_info("logit", TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(value, key) for key, value in weights.items()] + [axes, zero],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(path))
    return weights


def random_table(rng: np.random.Generator, count: int, width: int, *, linear: bool, extreme: bool = True) -> Table:
    ids = rng.integers(-(2**63), 2**63 - 1, count, np.int64)
    ids = np.unique(np.concatenate([ids, EXTREME]) if extreme else ids)
    ids = ids[ids != 0]
    weights = rng.normal(size=len(ids)).astype(np.float32) if linear else None
    return Table(ids, rng.normal(size=(len(ids), width)).astype(np.float32), np.ones(len(ids), np.int64), weights)


def write_bundle(
    repository: Repository,
    tables: dict[str, Table],
    *,
    name: str = "ranker",
    schema: Schema = SCHEMA,
    width: int = WIDTH,
    linear: bool = True,
    base: str | None = None,
    deltas: tuple[str, ...] = (),
    calibration: Calibration | None = None,
    defaults: dict[str, float] | None = None,
    stored: dict[str, RowFormat] | RowFormat = "float32",
    **more: Any,
) -> Bundle:
    """Publish a bundle with a new version number; `deltas` without itself. Default rows are constant."""
    version = repository.reserve(name)
    if any(f.width is None for f in schema.embedded):
        schema = schema.with_width(width)
    fill = defaults or {}
    formats = stored if isinstance(stored, dict) else dict.fromkeys(tables, stored)
    infos = {
        f.table_name: TableInfo(
            width=f.width or 0,
            dtype=formats[f.table_name],
            rows=len(tables[f.table_name].ids),
            default=(fill.get(f.table_name, 0.25),) * (f.width or 0),
            linear_default=-0.5 if linear else None,
        )
        for f in schema.embedded
    }
    with BundleWriter(repository.path(name, version)) as writer:
        write_network(writer.path("dense.onnx"), schema, linear=linear)
        for table_name, table in tables.items():
            writer.table(table_name, table, formats[table_name])
        return writer.finish(
            Manifest(
                name=name,
                version=version,
                architecture="lr",
                schema=schema,
                tables=infos,
                calibration=calibration or Calibration(alpha=0.9, beta=-0.3),
                base=base,
                deltas=(*deltas, version) if base else (),
                **more,
            ),
            repository.publish,
        )


def random_tables(seed: int, count: int = 200, *, width: int = WIDTH, linear: bool = True) -> dict[str, Table]:
    rng = np.random.default_rng(seed)
    return {f.name: random_table(rng, count, width, linear=linear) for f in SCHEMA.embedded}


def random_rows(rng: np.random.Generator, n: int, tables: dict[str, Table], schema: Schema = SCHEMA) -> Rows:
    """Random rows: ids known, unknown or padding, bags that may be empty, numbers that may be missing."""

    def draw(table: Table, count: int) -> I64:
        known = rng.choice(table.ids, count) if len(table.ids) else np.ones(count, np.int64)
        unknown = rng.integers(-(2**63), 2**63 - 1, count, np.int64)
        return np.where(rng.random(count) < 0.7, known, unknown)

    ids = np.stack([draw(tables[f.table_name], n) for f in schema.ids], 1)
    numbers = rng.normal(size=(n, len(schema.numbers))).astype(np.float32)
    numbers[rng.random(numbers.shape) < 0.2] = np.nan
    bags = []
    for b, field in enumerate(schema.bags):
        sizes = rng.integers(0, 4, n)
        bounds = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
        bags.append(Bag(b, bounds, draw(tables[field.table_name], int(bounds[-1]))))
    return Rows(ids, numbers, tuple(bags))


class Reference:
    """Expected scores of a version, from plain dicts and numpy: newest delta first, then base, then the default row."""

    def __init__(self, chain: list[Bundle]) -> None:
        manifest = chain[-1].manifest
        self.schema, self.linear, self.calibration = manifest.model_schema, manifest.linear, manifest.calibration
        self.rows: dict[str, dict[int, F32]] = {}
        self.weights: dict[str, dict[int, float]] = {}
        self.default: dict[str, tuple[F32, float]] = {}
        for name, info in manifest.tables.items():
            self.rows[name], self.weights[name] = {}, {}
            self.default[name] = (np.array(info.default, np.float32), info.linear_default or 0.0)
            for bundle in chain:
                table = bundle.table(name)
                self.rows[name].update(zip(table.ids.tolist(), table.rows, strict=True))
                if table.linear is not None:
                    self.weights[name].update(zip(table.ids.tolist(), table.linear.tolist(), strict=True))

    def embed(self, rows: Rows) -> tuple[F64, F64]:
        n = len(rows)
        vectors, weights = [], []
        ids = {f.name: rows.ids[:, i] for i, f in enumerate(self.schema.ids)}
        bags = {f.name: rows.bags[i] for i, f in enumerate(self.schema.bags)}
        for field in self.schema.embedded:
            table = field.table_name
            block, weight = np.zeros((n, field.width or 0)), np.zeros(n)
            for i in range(n):
                if field.kind == "id":
                    elements = [int(ids[field.name][i])]
                else:
                    bag = bags[field.name]
                    elements = bag.values[bag.offsets[i] : bag.offsets[i + 1]].tolist()
                for e in elements:
                    block[i] += self.rows[table].get(e, self.default[table][0]) / len(elements)
                    weight[i] += self.weights[table].get(e, self.default[table][1]) / len(elements)
            vectors.append(block)
            weights.append(weight)
        return np.concatenate(vectors, 1), np.stack(weights, 1)

    def score(self, rows: Rows) -> F64:
        rng = np.random.default_rng(0)
        w = rng.normal(size=(self.schema.embedding_width, 1)).astype(np.float32)
        v = rng.normal(size=(len(self.schema.numbers), 1)).astype(np.float32)
        vectors, weights = self.embed(rows)
        logit = vectors @ w[:, 0] + np.nan_to_num(rows.numbers.astype(np.float64)) @ v[:, 0]
        if self.linear:
            logit = logit + weights.sum(1)
        return 1 / (1 + np.exp(-(self.calibration.alpha * logit + self.calibration.beta)))
