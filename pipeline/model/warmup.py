"""Warm-up requests of a bundle: the file warmup.arrow, and synthetic ones.

One row per candidate: `request` int32, then a column per field in schema order; int64 for ids, list of int64 for bags,
float32 for numbers (null is missing). Rows of one request are adjacent and share the values of context fields.

The file comes with a bundle, so nothing of it is believed before it is bounded: its size, its columns, that nothing in it is
compressed, and the numbers of rows, values and requests.
"""

from __future__ import annotations

import struct
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import ipc

from pipeline.arrays import I64, Array
from pipeline.bundle.files import read
from pipeline.errors import BundleError
from pipeline.features import Bag, Features, Rows
from pipeline.schema import Schema

__all__ = ["read_warmup", "synthetic_requests", "write_warmup"]

SIZES = (1, 8, 100)
REQUEST = "request"
FILE_BYTES = 32 << 20
MOST_ROWS, MOST_VALUES, MOST_REQUESTS, MOST_BATCHES = 100_000, 4_000_000, 1_000, 1_000
"""Of a file; values are those of all columns. Baton writes three requests of 109 rows in all, in one batch."""
_MAGIC = b"ARROW1\0\0"
_V5_FLAG = 4


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
        BundleError: the file is damaged, too large, or does not fit the schema.
    """
    raw = read(path.parent, path.name, FILE_BYTES)
    try:
        table = pa.Table.from_batches(_batches(raw, _columns(schema)), _columns(schema)).combine_chunks()
        request = table[REQUEST].to_numpy()
        rows = Rows(
            _stacked([table[f.name].to_numpy() for f in schema.ids], len(request), np.int64),
            _stacked([table[f.name].to_numpy() for f in schema.numbers], len(request), np.float32),
            tuple(_bag(b, table[f.name].combine_chunks()) for b, f in enumerate(schema.bags)),
        )
        ends = [*np.flatnonzero(np.diff(request)).tolist(), len(request) - 1] if len(request) else []
        if len(ends) > MOST_REQUESTS:
            raise ValueError(f"{len(ends):,} requests; at most {MOST_REQUESTS:,} are read")
        starts = [0, *(end + 1 for end in ends)][: len(ends)]
        return [
            Features.from_context(schema, rows.slice(start, end + 1)) for start, end in zip(starts, ends, strict=True)
        ]
    except (
        OSError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        struct.error,
        pa.ArrowException,
    ) as error:
        raise BundleError(f"{path} does not hold requests that fit the schema: {error}", path.name) from None


def _columns(schema: Schema) -> pa.Schema:
    kinds = {"id": pa.int64(), "bag": pa.list_(pa.int64()), "number": pa.float32()}
    return pa.schema([(REQUEST, pa.int32()), *((f.name, kinds[f.kind]) for f in schema.fields)])


def _batches(raw: bytes, columns: pa.Schema) -> list[pa.RecordBatch]:
    """The record batches of an Arrow file, read one after the other as they lie in it, as views of its bytes.

    The file's own table of contents is not used: it could name one batch many times.

    Raises:
        ValueError: it has other columns, anything compressed, or more than it may hold.
    """
    if not raw.startswith(_MAGIC):
        raise ValueError("it is no Arrow file")
    source = pa.BufferReader(pa.py_buffer(raw).slice(len(_MAGIC)))
    found = ipc.read_schema(source)
    kinds = {field.name: field.type for field in columns}
    for name in found.names:
        if name not in kinds:
            raise ValueError(f"column {name[:200]!r} is not in the schema")
    there = Counter(found.names)
    types = {field.name: field.type for field in found}
    for name, kind in kinds.items():
        if there[name] != 1 or types[name] != kind:
            raise ValueError(f"column {name!r} must be there once, as {kind}")
    batches: list[pa.RecordBatch] = []
    rows = values = 0
    while (message := _message(source)) is not None:
        if len(batches) == MOST_BATCHES:
            raise ValueError(f"more than {MOST_BATCHES:,} record batches")
        rows += _plain_rows(message)
        if rows > MOST_ROWS or rows * len(found) > MOST_VALUES:
            raise ValueError(
                f"{rows:,} rows of {len(found)} columns; at most {MOST_ROWS:,} and {MOST_VALUES:,} values are read"
            )
        batch = ipc.read_record_batch(message, found)
        batch.validate(full=True)
        for column in batch.columns:
            values += len(column.values) if pa.types.is_list(column.type) else len(column)
            if column.null_count and not pa.types.is_floating(column.type):
                raise ValueError("a value is missing where only numbers may miss one")
        if values > MOST_VALUES:
            raise ValueError(f"{values:,} values; at most {MOST_VALUES:,} are read")
        batches.append(batch.select(columns.names))
    return [pa.RecordBatch.from_arrays(batch.columns, schema=columns) for batch in batches]


def _message(source: pa.BufferReader) -> Any:
    try:
        return ipc.read_message(source)
    except EOFError:  # the mark at the end
        return None


def _plain_rows(message: Any) -> int:
    """Rows of a record batch, from its metadata alone.

    Raises:
        ValueError: it is no record batch, or its buffers are compressed.
    """
    if message.type != "record batch":
        raise ValueError(f"it holds a {message.type}; only record batches are read")
    raw = message.metadata.to_pybytes()
    (root,) = struct.unpack_from("<I", raw)
    version, header, custom = (_slot(raw, root, number) for number in (0, 2, 4))
    if not version or struct.unpack_from("<h", raw, version)[0] != _V5_FLAG or custom or not header:
        raise ValueError("it is not of Arrow's format V5")
    batch = header + struct.unpack_from("<I", raw, header)[0]
    if _slot(raw, batch, 3):
        raise ValueError("its columns are compressed, so that their sizes are not known; write them as they are")
    length = _slot(raw, batch, 0)
    return int(struct.unpack_from("<q", raw, length)[0]) if length else 0


def _slot(raw: bytes, table: int, number: int) -> int:
    """Where a field of a flatbuffer's table stands; 0 where the table has none. (pyarrow has verified the buffer.)"""
    entries = table - struct.unpack_from("<i", raw, table)[0]
    place = 4 + 2 * number
    if place >= struct.unpack_from("<H", raw, entries)[0]:
        return 0
    (offset,) = struct.unpack_from("<H", raw, entries + place)
    return table + offset if offset else 0


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
