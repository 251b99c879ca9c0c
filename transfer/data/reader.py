"""A log in files, read in time order with memory bounded by the chunk.

The first open of a data set prepares it (`prepare.py`); after that rows come from one Parquet file in the cache, row
group by row group.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.features import Bag, Rows
from transfer.data.log import Log, LogChunk
from transfer.data.prepare import COUNTS, LEVELS, SHOWN_LABEL_VALUES, prepared_file
from transfer.data.source import Dataset

__all__ = ["LogReader"]


class LogReader(Log):
    """The rows of a data set, as `transfer.data.log.Log` describes them. Can be read any number of times.

    Args:
        dataset: a loaded descriptor.
        cache: directory of prepared files; made if absent.
        memory: limit of the preparation before it spills to disk, in DuckDB's format; see `transfer.data.source.connect`.

    Raises:
        DataError: the rows cannot be used; see `prepared_file`.
    """

    def __init__(self, dataset: Dataset, cache: Path, *, memory: str = "") -> None:
        self.name = dataset.name
        self.schema = dataset.feature_schema
        self._file = prepared_file(dataset, cache, memory=memory)
        metadata = pq.read_metadata(self._file)
        counts = json.loads(metadata.metadata[COUNTS])
        self.rows = counts["rows"]
        self.request_count = counts["requests"]
        self.positives = counts["positives"]
        self.label_offset = counts.get("label_offset", 0.0)
        self.notes = (*_undeclared_labels(dataset, counts), *_sampled(counts))
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._group_starts = np.concatenate([[0], np.cumsum(sizes)])

    def _request_start(self, row: int) -> int:
        if row >= self.rows:
            return self.rows
        group = int(np.searchsorted(self._group_starts, row, side="right")) - 1
        with pq.ParquetFile(self._file) as file:
            position = file.read_row_group(group, columns=["position"]).column(0)
        return row - int(position[row - int(self._group_starts[group])].as_py())

    def _parts(self, first: int, last: int) -> Iterator[LogChunk]:
        if first >= last:
            return
        begin_group = int(np.searchsorted(self._group_starts, first, side="right")) - 1
        with pq.ParquetFile(self._file, read_dictionary=["routing_key"], memory_map=True) as file:
            for group in range(begin_group, file.num_row_groups):
                begin = int(self._group_starts[group])
                if begin >= last:
                    return
                chunk = self._chunk(file.read_row_group(group))
                yield chunk.slice(max(first - begin, 0), min(last - begin, len(chunk)))

    def _chunk(self, table: pa.Table) -> LogChunk:
        n = table.num_rows
        schema = self.schema
        ids = np.empty((n, len(schema.ids)), np.int64)
        for i in range(len(schema.ids)):
            ids[:, i] = table.column(f"i{i}").to_numpy()
        numbers = np.empty((n, len(schema.numbers)), np.float32)
        for i in range(len(schema.numbers)):
            numbers[:, i] = table.column(f"n{i}").to_numpy()
        bags = []
        for i in range(len(schema.bags)):
            lists = table.column(f"b{i}").combine_chunks()
            offsets = lists.offsets.to_numpy()
            bags.append(Bag(i, offsets - offsets[0], lists.flatten().to_numpy()))
        keys = table.column("routing_key").combine_chunks()
        texts = np.array(keys.dictionary.to_pylist(), np.object_)
        given = {name: table.column(name).to_numpy() for name in LEVELS if name in table.column_names}
        return LogChunk(
            Rows(ids, numbers, tuple(bags)),
            table.column("label").to_numpy(),
            table.column("time_ms").to_numpy(),
            table.column("request").to_numpy(),
            texts[keys.indices.to_numpy()],
            table.column("position").to_numpy(),
            **given,
        )


def _sampled(counts: dict[str, Any]) -> tuple[str, ...]:
    """What the rows of a sampled log stand for."""
    if "stand_for" not in counts:
        return ()
    rows, whole, positives = counts["rows"], counts["stand_for"], counts["positives_stand_for"]
    return (
        f"sampling: {rows:,} rows stand for {whole:,.0f} of the traffic, of which {positives / whole:.2%} are positive "
        f"({counts['positives'] / rows:.2%} in the log); every figure is of the traffic",
    )


def _undeclared_labels(dataset: Dataset, counts: dict[str, Any]) -> tuple[str, ...]:
    """Which values of the label count as negative that nobody said to be so."""
    negatives: dict[str, int] = counts["negatives"]
    if dataset.label.negative is not None or not set(negatives) - {"0"}:
        return ()
    shown = sorted(negatives.items(), key=lambda item: -item[1])[:SHOWN_LABEL_VALUES]
    values = ", ".join(f"{text!r} ({rows:,} rows)" for text, rows in shown)
    more = f" and {len(negatives) - len(shown)} values more" if len(negatives) > len(shown) else ""
    return (
        f"label {dataset.label.column!r}: negative are the values {values}{more}, since nothing else is declared; write "
        "label.negative to have other values refused",
    )
