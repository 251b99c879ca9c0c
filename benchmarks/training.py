"""`baton bench train`: speed of a whole training step with growing tables, against a step of the same network on ready vectors.

The limit does forward, backward down to the vectors, and Adam; a whole step looks the ids up, makes rows for new ones,
gathers, does the same, and applies the rows' gradients. Ten id fields (Zipf ids), one bag, two numbers, vectors of 16,
one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.report import Progress, Report, interleaved, median
from pipeline.features import Bag, Rows
from pipeline.schema import FieldSpec, Schema
from transfer.bundles.export import DenseGraph
from transfer.bundles.publish import network_files
from transfer.click_model.loss import distillation_loss
from transfer.click_model.model import ClickModel
from transfer.click_model.network import DenseNetwork
from transfer.model_zoo import ZOO

__all__ = ["run"]

FIELDS, WIDTH = 10, 16
BATCHES = 8
LEAST_FRACTION = 0.6
"""Budget: rows/s of a whole step against the dense one."""


def run(batch: int = 4096, vocabulary: int = 20_000, rounds: int = 20, progress: Progress = lambda _: None) -> Report:
    """Rows per second of every architecture that trains a network, and milliseconds to write its graph anew.

    The budget is held on DeepFM and DCN-V2, whose networks do some work; of a factorization machine nearly nothing is
    dense, and its ratio only tells what the tables cost.
    """
    torch.set_num_threads(1)
    ids = [FieldSpec(name=f"id{i}", role="context" if i < FIELDS // 2 else "candidate") for i in range(FIELDS)]
    others = [
        FieldSpec(name="tags", role="candidate", kind="bag", separator=","),
        FieldSpec(name="age", role="context", kind="number", transform="log1p"),
        FieldSpec(name="price", role="candidate", kind="number"),
    ]
    schema = Schema(fields=(*ids, *others))
    rng = np.random.default_rng(0)
    data = [(_rows(rng, batch, vocabulary), (rng.random(batch) < 0.2).astype(np.float32)) for _ in range(BATCHES)]
    report = Report("train")
    for arch in ZOO:
        progress(f"train: {arch}")
        hyperparameters = {"hidden": [400, 400, 400]} if arch in ("deepfm", "dcnv2") else {}
        model = ClickModel.create(schema, arch, WIDTH, seed=0, hyperparameters=hyperparameters)
        whole = _timed(lambda turn, model=model: model.step(*data[turn % BATCHES]))  # type: ignore[misc]
        dense = _timed(_dense_step(model, data[0][0], data[0][1]))
        found = interleaved({"whole": whole, "dense": dense}, rounds + 1)
        rates = {name: batch / median(seconds[1:]) for name, seconds in found.items()}  # the first turn warms up
        report.add(
            f"train/{arch}/batch={batch}",
            "throughput",
            rates["whole"],
            "rows/s",
            limit=rates["dense"],
            at_least=LEAST_FRACTION if hyperparameters else None,
        )
        graphs: dict[str, DenseGraph] = {}
        network_files(model, graphs)
        report.add(f"export/{arch}", "time", 1e3 * _timed(lambda _, m=model, g=graphs: network_files(m, g))(0), "ms")  # type: ignore[misc]
    return report


def _dense_step(model: ClickModel, rows: Rows, labels: np.ndarray) -> Callable[[int], object]:
    network = DenseNetwork(model.schema, model.arch, model.width, model.hyperparameters)
    optimiser = torch.optim.Adam(network.parameters(), lr=model.learning.dense_rate, fused=True)
    vectors, linear = model.tables.gather(model.tables.lookup(rows, create=True))
    embeddings = torch.from_numpy(vectors).flatten(1).requires_grad_()
    weights = None if linear is None else torch.from_numpy(linear).requires_grad_()
    numbers, y = torch.from_numpy(rows.numbers), torch.from_numpy(labels)

    def step(_: int) -> None:
        embeddings.grad = None
        distillation_loss(network(embeddings, weights, numbers), y).mean().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step


def _timed(call: Callable[[int], object]) -> Callable[[int], float]:
    def measure(turn: int) -> float:
        start = time.perf_counter()
        call(turn)
        return time.perf_counter() - start

    return measure


def _rows(rng: np.random.Generator, n: int, vocabulary: int) -> Rows:
    ids = (rng.zipf(1.2, (n, FIELDS)) % vocabulary + 1 + np.arange(FIELDS) * vocabulary).astype(np.int64) * 2654435761
    offsets = np.concatenate([[0], np.cumsum(rng.integers(0, 4, n))]).astype(np.int32)
    numbers = rng.normal(size=(n, 2)).astype(np.float32)
    numbers[rng.random((n, 2)) < 0.1] = np.nan
    return Rows(ids, numbers, (Bag(0, offsets, rng.integers(1, 500, int(offsets[-1]))),))
