"""What the engine costs and when running inline pays: a real model (39 fields x 16, MLP 3 x 400) in one process.

    python benchmarks/engine.py [--rounds 2000] [--rows 1 8 32 100 500]

For each request size and 1 and 8 requests in flight: the model called directly, through the engine inline on the loop,
and through one and two workers. Microseconds per request; the first lines are the engine around an empty stage.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.bundle import BundleWriter, Manifest, Table, TableInfo
from pipeline.engine import Engine
from pipeline.event import Event
from pipeline.features import Features, IdPart
from pipeline.model import Model
from pipeline.plan import Plan
from pipeline.schema import FieldSpec, Schema
from pipeline.stages.decode import Decode
from pipeline.stages.embed import Embed
from pipeline.stages.infer import Infer
from pipeline.versions import Repository

FIELDS, WIDTH, LAYERS = 39, 16, (400, 400, 400, 1)


class Nothing:
    name = "nothing"
    consumes = ("request",)
    produces = ("scores",)

    def run(self, event: Event) -> None:
        pass


def write_model(folder: Path, rng: np.random.Generator) -> Model:
    fields = tuple(FieldSpec(name=f"f{i}", role="candidate", kind="id", table="t") for i in range(FIELDS))
    repository = Repository(folder / "bundles")
    ids = np.unique(rng.integers(1, 2**62, 100_000, np.int64))
    table = Table(ids, rng.normal(size=(len(ids), WIDTH)).astype(np.float32), np.ones(len(ids), np.int64))
    nodes, weights, last, inside = [], [], "embeddings", FIELDS * WIDTH
    for layer, outside in enumerate(LAYERS):
        weights.append(numpy_helper.from_array(rng.normal(0, 0.05, (inside, outside)).astype(np.float32), f"w{layer}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{layer}"], [f"m{layer}"]))
        nodes.append(helper.make_node("Relu", [f"m{layer}"], [f"h{layer}"]))
        last, inside = f"h{layer}", outside
    weights.append(numpy_helper.from_array(np.array([1], np.int64), "axes"))
    nodes.append(helper.make_node("Squeeze", [f"m{len(LAYERS) - 1}", "axes"], ["logit"]))
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["n", FIELDS * WIDTH])],
        [helper.make_tensor_value_info("logit", TensorProto.FLOAT, ["n"])],
        weights,
    )
    with BundleWriter(repository.path("bench", repository.reserve("bench"))) as writer:
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9),
            str(writer.path("dense.onnx")),
        )
        writer.table("t", table)
        info = TableInfo(width=WIDTH, rows=len(ids), default=(0.0,) * WIDTH)
        schema = Schema(fields=fields).with_width(WIDTH)
        writer.finish(Manifest(name="bench", version="1", architecture="dnn", schema=schema, tables={"t": info}))
    return Model.load(repository, "bench", segments=folder / "segments", device="cpu")


async def closed_loop(engine: Engine, rounds: int, inflight: int, rows: int, event: dict[str, object]) -> float:
    async def client(count: int) -> None:
        for _ in range(count):
            await engine.run(Event(rows=rows, **event))  # type: ignore[arg-type]

    start = time.perf_counter()
    await asyncio.gather(*(client(rounds // inflight) for _ in range(inflight)))
    return (time.perf_counter() - start) / (rounds // inflight * inflight)


def measure(plan: Plan, workers: int, inline: bool, rounds: int, inflight: int, **event: object) -> float:
    engine = Engine(plan, workers=workers, inline_rows=1 if inline else 0)
    asyncio.run(closed_loop(engine, rounds // 10 + inflight, inflight, 1, event))
    seconds = asyncio.run(closed_loop(engine, rounds, inflight, 1, event))
    engine.close()
    return seconds * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 8, 32, 100, 500])
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    for inline in (True, False):
        us = measure(Plan([Nothing()]), 1, inline, 20_000, 1)
        print(json.dumps({"case": f"empty/{'inline' if inline else 'worker'}", "us": round(us, 1)}))
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder), rng)
        plan = Plan([Decode(), Embed(), Infer()])
        columns = np.arange(FIELDS, dtype=np.int32)
        for n in options.rows:
            features = Features(n, (IdPart(columns, rng.integers(1, 2**62, (n, FIELDS), np.int64)),))
            rounds = max(200, options.rounds // max(1, n // 25))
            model.warm([features] * 20)
            start = time.perf_counter()
            for _ in range(rounds):
                model.score(features)
            print(json.dumps({"case": f"rows={n}/direct", "us": round((time.perf_counter() - start) / rounds * 1e6)}))
            for inflight in (1, 8):
                found = {
                    name: round(measure(plan, workers, inline, rounds, inflight, model=model, features=features))
                    for name, workers, inline in (("inline", 1, True), ("worker", 1, False), ("workers=2", 2, False))
                }
                print(json.dumps({"case": f"rows={n}/inflight={inflight}", **found}))


if __name__ == "__main__":
    main()
