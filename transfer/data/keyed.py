"""Raw rows of a log with the values that name them: for scores that are to be joined to a team's own tables.

The prepared form of a log has hashes and numbers of requests alone. Here rows are read anew, in the log's order (requests by
the time of their first row, then rows by time), and nothing is kept; memory does not grow with the log. A plain Parquet or
CSV file is read in its own order, and needs no descriptor.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq

from pipeline.errors import DataError
from transfer.data.descriptor import label_text
from transfer.data.prepare import spill_limit
from transfer.data.source import WRONG, Dataset, Source, connect

__all__ = ["KeyedRows", "keyed_rows", "plain_rows"]

BATCH_ROWS = 65_536


class KeyedRows(NamedTuple):
    """Some rows: `frame` has the columns of their features, raw; `keys` what names them, and `label` where there is one."""

    frame: pa.Table
    keys: pa.Table


def keyed_rows(dataset: Dataset, scratch: Path) -> Iterator[KeyedRows]:
    """The rows of a described log, in its order.

    Keys are `time` (UTC), `request`, `routing_key` where the descriptor says them, the candidate's ids as the files have
    them, each under its own name, and `label` 0 or 1.

    Args:
        scratch: folder for data that sorting spills to disk; made if absent.

    Raises:
        DataError: a value cannot be used, with file, row and column; or the log cannot be read.
    """
    source = Source(dataset)
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".score-", dir=scratch) as folder:
        spill_bytes = spill_limit(source.paths + source.join_paths, shutil.disk_usage(scratch).free)
        with connect("", Path(folder), spill_bytes) as connection:
            try:
                source.check_joins(connection)
                for batch in source.batches(connection, BATCH_ROWS):
                    if batch.num_rows:
                        yield _keyed(dataset, source, batch)
            except (duckdb.Error, pa.ArrowInvalid, OSError) as error:
                raise DataError(f"{dataset.path}: cannot be read: {error}") from error


def plain_rows(path: Path) -> Iterator[KeyedRows]:
    """The rows of a Parquet or CSV file, in its order; of a CSV file all values are texts. Keys are all of its columns.

    Raises:
        DataError: it cannot be read.
    """
    try:
        if path.suffix == ".parquet":
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(BATCH_ROWS):
                    table = pa.Table.from_batches([batch])
                    yield KeyedRows(table, table)
            return
        names = csv.open_csv(path).schema.names
        texts = csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), null_values=[""], strings_can_be_null=True
        )
        with csv.open_csv(path, convert_options=texts) as reader:
            for batch in reader:
                table = pa.Table.from_batches([batch])
                yield KeyedRows(table, table)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def _keyed(dataset: Dataset, source: Source, batch: pa.RecordBatch) -> KeyedRows:
    _refuse_wrong(source, batch)
    time = batch.column("__time")
    if time.null_count:
        row = int(np.argmin(time.is_valid().to_numpy(zero_copy_only=False)))
        raise DataError(
            f"{_where(source, batch, row)}: column {dataset.time.column!r} is no time in {dataset.time.unit}",
            dataset.time.column,
        )
    columns = {spec.name: batch.column(f"f{number}") for number, spec in enumerate(dataset.fields)}
    keys = {"time": time.cast(pa.timestamp("us", "UTC"))}
    if dataset.request is not None:
        keys["request"] = batch.column("__request")
    if dataset.routing_key is not None:
        keys["routing_key"] = batch.column("__routing")
    for spec in dataset.fields:
        if spec.role == "candidate" and spec.kind == "id":
            keys.setdefault(spec.name, columns[spec.name])
    keys["label"] = _labels(dataset, batch.column("__label"))
    return KeyedRows(pa.table(columns), pa.table(keys))


def _labels(dataset: Dataset, column: pa.Array) -> pa.Array:
    """1 or 0 as float32, null where there is no label."""
    positive = {label_text(value) for value in dataset.label.positive}
    encoded = column.dictionary_encode()
    values = pa.array([float(label_text(value) in positive) for value in encoded.dictionary.to_pylist()], pa.float32())
    return values.take(encoded.indices)


def _refuse_wrong(source: Source, batch: pa.RecordBatch) -> None:
    for name, (column, _) in source.columns.items():
        wrong = batch.column(name + WRONG)
        if wrong.null_count < len(wrong):
            row = int(np.argmax(wrong.is_valid().to_numpy(zero_copy_only=False)))
            raise DataError(f"{_where(source, batch, row)}: column {column!r}: {wrong[row].as_py()}", column)


def _where(source: Source, batch: pa.RecordBatch, row: int) -> str:
    return source.place(batch.column("__file")[row].as_py(), batch.column("__row")[row].as_py())
