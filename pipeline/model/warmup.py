"""Warm-up requests of a bundle: the file warmup.arrow, and synthetic ones.

One row per candidate: `request` int32, then a column per field in schema order; int64 for ids, list of int64 for bags,
float32 for numbers (null is missing). Rows of one request are adjacent and share the values of context fields.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import ipc

from pipeline.arrays import I64, Array
from pipeline.errors import BundleError
from pipeline.features import Bag, Features, Rows
from pipeline.schema import Schema

__all__ = ["read_warmup", "synthetic_requests", "write_warmup"]

SIZES = (1, 8, 100)
REQUEST = "request"


def synthetic_requests(schema: Schema, sizes: tuple[int, ...] = SIZES, seed: int = 0) -> list[Features]:
    """Requests of these sizes that fit a schema: random ids, bags of none to three, numbers of which some are missing."""
    rng = np.random.default_rng(seed)
    return [Features.from_context(schema, _random_rows(schema, n, rng)) for n in sizes]


def write_warmup(path: Path, schema: Schema, requests: list[Features]) -> None:
    """Write requests that fit the schema. Never those of users, since bundles are copied to other machines."""
    rows = [features.rows(schema) for features in requests]
    columns: dict[str, Any] = {REQUEST: np.repeat(np.arange(len(rows), dtype=np.int32), [len(r) for r in rows])}
    for i, spec in enumerate(schema.ids):
        columns[spec.name] = np.concatenate([r.ids[:, i] for r in rows])
    for b, spec in enumerate(schema.bags):
        parts = [r.bags[b] for r in rows]
        chunks = [pa.ListArray.from_arrays(pa.array(p.offsets), pa.array(p.values)) for p in parts]
        columns[spec.name] = pa.chunked_array(chunks)
    for m, spec in enumerate(schema.numbers):
        columns[spec.name] = pa.array(np.concatenate([r.numbers[:, m] for r in rows]), from_pandas=True)
    names = [REQUEST, *(f.name for f in schema.fields)]
    table = pa.table({name: columns[name] for name in names})
    with ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table.combine_chunks())


def read_warmup(path: Path, schema: Schema) -> list[Features]:
    """The requests of a file.

    Raises:
        BundleError: the file is damaged or does not fit the schema.
    """
    try:
        with pa.memory_map(str(path)) as source:
            table = ipc.open_file(source).read_all()
        request = table[REQUEST].to_numpy()
        rows = Rows(
            _stacked([table[f.name].to_numpy().astype(np.int64) for f in schema.ids], len(request), np.int64),
            _stacked([table[f.name].to_numpy().astype(np.float32) for f in schema.numbers], len(request), np.float32),
            tuple(_bag(b, table[f.name].combine_chunks()) for b, f in enumerate(schema.bags)),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{path} does not hold requests that fit the schema: {error}", path.name) from None
    ends = [*np.flatnonzero(np.diff(request)).tolist(), len(request) - 1] if len(request) else []
    starts = [0, *(end + 1 for end in ends[:-1])]
    return [Features.from_context(schema, rows.slice(start, end + 1)) for start, end in zip(starts, ends, strict=False)]


def _bag(column: int, array: Any) -> Bag:
    offsets = array.offsets.to_numpy().astype(np.int32)
    values = array.values.to_numpy().astype(np.int64)
    return Bag(column, offsets - offsets[0], values[offsets[0] : offsets[-1]])


def _stacked(columns: list[Array], rows: int, dtype: Any) -> Array:
    return np.stack(columns, 1) if columns else np.empty((rows, 0), dtype)


def _random_rows(schema: Schema, n: int, rng: np.random.Generator) -> Rows:
    def ids(count: int | tuple[int, int]) -> I64:
        return rng.integers(1, 2**63 - 1, count, np.int64)

    numbers = rng.normal(size=(n, len(schema.numbers))).astype(np.float32)
    numbers[rng.random(numbers.shape) < 0.1] = np.nan
    bags = []
    for b in range(len(schema.bags)):
        bounds = np.concatenate([[0], np.cumsum(rng.integers(0, 4, n))]).astype(np.int32)
        bags.append(Bag(b, bounds, ids(int(bounds[-1]))))
    return Rows(ids((n, len(schema.ids))), numbers, tuple(bags))
