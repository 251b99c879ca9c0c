"""Lookup in a mapped segment against `torch.index_select(out=)` on the same rows with dense indices, one thread.

    python benchmarks/embedding.py [--rows 1000000] [--width 16] [--fields 39] [--overlay 0.02]

Cases: n candidates of all fields, each with its own values (the limit does the same copies), and with 60 % of the fields
as context. Interleaved, median of many; prints one JSON object per case.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from pipeline.bundle import Bundle, BundleWriter, Manifest, Table, TableInfo
from pipeline.embedding.store import EmbeddingStore
from pipeline.features import Features, IdPart
from pipeline.inputs import DenseInputs, Layout
from pipeline.schema import FieldSpec, Schema
from pipeline.versions import Repository


def network(width: int) -> onnx.ModelProto:
    """The least that a bundle may hold: the sum of all vectors."""
    graph = helper.make_graph(
        [helper.make_node("ReduceSum", ["embeddings", "axes"], ["logit"], keepdims=0)],
        "sum",
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info("logit", TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(np.array([1], np.int64), "axes")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def write(repository: Repository, schema: Schema, table: Table, base: str | None) -> Bundle:
    version = repository.reserve("bench")
    width = table.rows.shape[1]
    info = TableInfo(width=width, rows=len(table.ids), default=(0.0,) * width)
    with BundleWriter(repository.path("bench", version)) as writer:
        onnx.save(network(schema.embedding_width), str(writer.path("dense.onnx")))
        writer.table("t", table)
        return writer.finish(
            Manifest(
                name="bench",
                version=version,
                architecture="none",
                schema=schema,
                tables={"t": info},
                base=base,
                deltas=(version,) if base else (),
            )
        )


def medians(cases: dict[str, Callable[[int], object]], rounds: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(rounds):
        for name, call in cases.items():
            start = time.perf_counter()
            call(turn)
            times[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--fields", type=int, default=39)
    parser.add_argument("--overlay", type=float, default=0.02, help="share of the rows that a delta holds as well")
    parser.add_argument("--rounds", type=int, default=400)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    ids: npt.NDArray[np.int64] = np.unique(rng.integers(-(2**63), 2**63 - 1, options.rows, np.int64))
    rows = rng.normal(size=(len(ids), options.width)).astype(np.float32)
    table = Table(ids, rows, np.ones(len(ids), np.int64))
    fields = tuple(FieldSpec(name=f"f{i}", role="candidate", kind="id", table="t") for i in range(options.fields))
    schema = Schema(fields=fields).with_width(options.width)
    changed = np.sort(rng.choice(len(ids), int(len(ids) * options.overlay), replace=False))
    delta = Table(ids[changed], rows[changed], table.counts[changed])
    with tempfile.TemporaryDirectory() as folder:
        repository = Repository(Path(folder) / "bundles")
        base = write(repository, schema, table, None)
        start = time.perf_counter()
        plain = EmbeddingStore.open([base], Path(folder) / "segments")
        built = time.perf_counter() - start
        start = time.perf_counter()
        EmbeddingStore.open([base], Path(folder) / "segments")
        opened = time.perf_counter() - start
        stacked = EmbeddingStore.open([base, write(repository, schema, delta, "1")], Path(folder) / "segments")
        raw = rows.nbytes + ids.nbytes
        print(json.dumps({"rows": len(ids), "build_s": built, "open_s": opened, "bytes_vs_raw": plain.bytes / raw}))
        for n in (100, 1600):
            count = n * options.fields
            # Popular ids lie anywhere in the table, as hashed ids do.
            ranks = rng.zipf(1.05, (64, count)) % len(ids)
            picks = rng.permutation(len(ids))[ranks]
            columns = np.arange(options.fields, dtype=np.int32)
            features = [Features(n, (IdPart(columns, ids[p].reshape(n, -1)),)) for p in picks]
            context = int(0.6 * options.fields)
            shared = [
                Features(
                    n,
                    (
                        IdPart(columns[:context], np.ascontiguousarray(ids[p].reshape(n, -1)[:1, :context])),
                        IdPart(columns[context:], np.ascontiguousarray(ids[p].reshape(n, -1)[:, context:])),
                    ),
                )
                for p in picks
            ]
            dense = DenseInputs.zeros(Layout.full(schema), n, linear=False)
            source, index = torch.from_numpy(rows), [torch.from_numpy(p) for p in picks]
            out = torch.empty(count, options.width)
            cases: dict[str, Callable[[int], object]] = {
                "limit": lambda t, s=source, i=index, o=out: torch.index_select(s, 0, i[t % 64], out=o),  # type: ignore[misc]
                "segment": lambda t, f=features, d=dense: plain.lookup(f[t % 64], d),  # type: ignore[misc]
                "overlay+segment": lambda t, f=features, d=dense: stacked.lookup(f[t % 64], d),  # type: ignore[misc]
                "segment, context once": lambda t, f=shared, d=dense: plain.lookup(f[t % 64], d),  # type: ignore[misc]
            }
            medians(cases, 64)
            found = medians(cases, options.rounds)
            for name, seconds in found.items():
                print(
                    json.dumps(
                        {
                            "case": f"{name}/rows={len(ids)}/width={options.width}/ids={count}",
                            "microseconds": round(seconds * 1e6, 1),
                            "x_limit": round(seconds / found["limit"], 2),
                        }
                    )
                )
            plain.lookup(features[0], dense)
            np.testing.assert_array_equal(dense.blocks[0].embeddings.reshape(count, -1), rows[picks[0]])


if __name__ == "__main__":
    main()
