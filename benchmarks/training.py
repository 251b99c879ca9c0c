"""Training speed: rows per second of one step per batch, every architecture of the zoo, one thread.

    python -m benchmarks.training [--batch 4096] [--vocabulary 20000]

Ten id fields (Zipf ids), one bag, two numbers, vectors of 16; prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
import torch

from pipeline.features import Bag, Rows
from pipeline.schema import FieldSpec, Schema
from transfer.model import ClickModel
from transfer.model_zoo import ZOO

__all__ = ["measure"]

FIELDS = 10


def measure(batch: int = 4096, vocabulary: int = 20_000, batches: int = 20) -> list[dict[str, Any]]:
    """Rows per second of training, and milliseconds to write the network anew, per architecture."""
    ids = [FieldSpec(name=f"id{i}", role="context" if i < 5 else "candidate") for i in range(FIELDS)]
    others = [
        FieldSpec(name="tags", role="candidate", kind="bag", separator=","),
        FieldSpec(name="age", role="context", kind="number", transform="log1p"),
        FieldSpec(name="price", role="candidate", kind="number"),
    ]
    schema = Schema(fields=(*ids, *others))
    rng = np.random.default_rng(0)
    data = [(_rows(rng, batch, vocabulary), (rng.random(batch) < 0.2).astype(np.float32)) for _ in range(batches)]
    found = []
    for arch in ZOO:
        model = ClickModel.create(schema, arch, 16, seed=0)
        model.step(*data[0])
        began = time.perf_counter()
        for rows, labels in data:
            model.step(rows, labels)
        seconds = time.perf_counter() - began
        found.append({"case": f"train/{arch}/batch={batch}", "metric": "rows_per_second", "value": batch * batches / seconds, "unit": "rows/s"})  # fmt: skip
        model.snapshot(full=False)
        model.tables.take_touched()
        began = time.perf_counter()
        model.snapshot(full=False)
        found.append({"case": f"export/{arch}", "metric": "milliseconds", "value": 1e3 * (time.perf_counter() - began), "unit": "ms"})  # fmt: skip
    return found


def _rows(rng: np.random.Generator, n: int, vocabulary: int) -> Rows:
    ids = (rng.zipf(1.2, (n, FIELDS)) % vocabulary + 1 + np.arange(FIELDS) * vocabulary).astype(np.int64) * 2654435761
    offsets = np.concatenate([[0], np.cumsum(rng.integers(0, 4, n))]).astype(np.int32)
    numbers = rng.normal(size=(n, 2)).astype(np.float32)
    numbers[rng.random((n, 2)) < 0.1] = np.nan
    return Rows(ids, numbers, (Bag(0, offsets, rng.integers(1, 500, int(offsets[-1]))),))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, default=20_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps({"bench": "train", "rows": measure(arguments.batch, arguments.vocabulary)}, indent=1))
