"""Export of labelled rows to Parquet, in the log's order.

One row per exposed candidate and revision: how its answer came about, the scores of each arm, the label and the label that it
replaces, and the fields, ids as hashes. It works page by page, so memory does not grow with the log. What the columns are
called is in `pipeline.traffic.export.layout`; the way back in `pipeline.traffic.export.reading`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.arrays import Array
from pipeline.disk import replacing
from pipeline.features import Bag, Rows
from pipeline.schema import Schema
from pipeline.traffic.export.layout import PACKED, SCHEMA, Named
from pipeline.traffic.log import Labelled, Scores, TrafficLog
from pipeline.traffic.record import ARMS, PredictionRecord, unpack
from pipeline.traffic.redaction import Redaction

__all__ = ["export_rows"]

_PAGE_PREDICTIONS = 256
_GROUP_ROWS = 65_536
_ARM = SCHEMA.field(ARMS[0]).type


def export_rows(
    log: TrafficLog,
    path: Path | IO[bytes],
    *,
    endpoint: str = "",
    since_ms: int | None = None,
    until_ms: int | None = None,
    fields: Mapping[str, Schema] | None = None,
    schema_of: Callable[[str, int], Schema | None] = lambda bundle, version: None,
    redaction: Redaction | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> int:
    """Write labelled rows to `path`, which appears once it is complete, for its owner alone; the number of rows.

    Args:
        path: or a stream, which is written as the log is read.
        endpoint: of the rows; empty: all.
        since_ms, until_ms: times of the predictions (Unix milliseconds), the end not included.
        fields: of endpoints, which get a column each; those of others are in `ids`, `numbers` and `bags`.
        schema_of: fields of a version by bundle and number, None where it is not known any more; rows of a version with other
            fields than its endpoint has now have no named columns.
        redaction: what is left out or hashed again. Such a file can not be imported.
        progress: called with the number of rows written so far.

    Raises:
        DataError: a row's fields are not those of the redaction.
    """
    rows = after = 0
    held: list[pa.RecordBatch] = []
    drop = frozenset() if redaction is None else redaction.drop
    writing = _Writing(dict(fields or {}), Named.of(fields or {}, drop), schema_of, redaction)
    schema = pa.schema(
        [column for column in (*SCHEMA, *writing.named.columns()) if column.name not in drop],
        metadata={
            **SCHEMA.metadata,
            **writing.named.metadata(),
            **({} if redaction is None else redaction.metadata()),
        },
    )
    with _opened(path) as target, pq.ParquetWriter(target, schema, compression="zstd") as writer:
        while page := log.labelled(after, _PAGE_PREDICTIONS):
            after = page[-1].seq
            for entry in page:
                if (
                    not len(entry.indices)
                    or (since_ms is not None and entry.time_ms < since_ms)
                    or (until_ms is not None and entry.time_ms >= until_ms)
                ):
                    continue
                record = unpack(entry.record)
                if endpoint and record.endpoint != endpoint:
                    continue
                columns = writing.columns(entry, record)
                held.append(pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema))
                rows += len(entry.indices)
            if sum(b.num_rows for b in held) >= _GROUP_ROWS:
                writer.write_table(pa.Table.from_batches(held, schema))
                held = []
            progress(rows)
        if held:
            writer.write_table(pa.Table.from_batches(held, schema))
    return rows


@contextmanager
def _opened(path: Path | IO[bytes]) -> Iterator[Path | IO[bytes]]:
    """Where the rows are written to."""
    if not isinstance(path, Path):
        yield path
        return
    with replacing(path) as staging:
        staging.touch(mode=0o600, exist_ok=False)
        yield staging


class _Writing:
    """What the rows of one export share."""

    def __init__(
        self,
        schemas: Mapping[str, Schema],
        named: Named,
        schema_of: Callable[[str, int], Schema | None],
        redaction: Redaction | None,
    ) -> None:
        self.named = named
        self._schemas, self._redaction = schemas, redaction
        self._schema_of = schema_of
        self._alike = cache(self._alike_now)

    def columns(self, entry: Labelled, record: PredictionRecord) -> dict[str, pa.Array]:
        """The columns of the rows of one entry of the log, by name."""
        m = len(entry.indices)
        rows = record.features.rows(None, entry.indices)
        candidate_ids = None if record.candidate_ids is None else record.candidate_ids[entry.indices]
        request_id: str | None = record.request_id or None
        kept = record.candidate_texts
        texts: list[str | None] = [kept[at] for at in entry.indices.tolist()] if kept else [None] * m
        routing, request_key = (np.array([key], np.uint64) for key in (record.routing_hash, record.request_key))
        if (redaction := self._redaction) is not None:
            rows = redaction.rows(rows, record.bundle, record.version)
            routing = redaction.column("routing_hash", routing)
            request_key = redaction.column("request_key", request_key)
            if candidate_ids is not None:
                candidate_ids = redaction.column("candidate_id", candidate_ids)
            request_id = redaction.text("request_id", request_id)
            texts = [redaction.text("candidate_text", text) for text in texts]
        whole: dict[str, Any] = {
            "seq": entry.seq,
            "prediction_id": entry.prediction_id,
            "revision": entry.revision,
            "time": entry.time_ms,
            "endpoint": record.endpoint,
            "arm": record.arm,
            "network": record.network or None,
            "stable_version": record.stable_version,
            "candidate_version": record.candidate_version,
            "inclusion_probability": record.inclusion_probability,
            "keep_fraction": record.keep_fraction,
            "load": record.load,
            "overridden": record.overridden,
            "routing_hash": int(routing[0]),
            "candidates": record.features.n,
            "request_key": int(request_key[0]) or None,
            "request_id": request_id,
        }
        return {
            **{name: pa.repeat(pa.scalar(value, SCHEMA.field(name).type), m) for name, value in whole.items()},
            "index": pa.array(entry.indices),
            "candidate_id": pa.nulls(m, pa.int64()) if candidate_ids is None else pa.array(candidate_ids),
            "candidate_text": pa.array(texts, pa.string()),
            "position": pa.array(entry.positions),
            "label": pa.array(entry.labels),
            "previous": pa.array(entry.previous, from_pandas=True),  # NaN is null
            **_arms(entry, record),
            **self._fields(rows, record, m),
        }

    def _fields(self, rows: Rows, record: PredictionRecord, m: int) -> dict[str, pa.Array]:
        """The named columns and the packed ones, one of which hold the rows' fields."""
        found: dict[str, pa.Array] = {column.name: pa.nulls(m, column.type) for column in self.named.columns()}
        columns = self.named.endpoints.get(record.endpoint)
        sizes = (rows.ids.shape[1], rows.numbers.shape[1], len(rows.bags))
        if (
            columns is None
            or sizes != tuple(len(columns[kind]) for kind in PACKED)
            or (record.fields and record.fields != self._schemas[record.endpoint].columns)
            or not (record.fields or self._alike(record.endpoint, record.bundle, record.version))
        ):
            return {
                **found,
                "ids": _lists(rows.ids, pa.int64()),
                "numbers": _lists(rows.numbers, pa.float32()),
                "bags": pa.array(
                    [[b.values[b.offsets[i] : b.offsets[i + 1]] for b in rows.bags] for i in range(m)],
                    pa.list_(pa.list_(pa.int64())),
                ),
            }
        found |= {name: pa.array(rows.ids[:, at]) for at, name in enumerate(columns["ids"])}
        found |= {name: pa.array(rows.numbers[:, at]) for at, name in enumerate(columns["numbers"])}
        found |= {name: _bag(bag) for name, bag in zip(columns["bags"], rows.bags, strict=True)}
        return {**found, **{kind: pa.nulls(m, SCHEMA.field(kind).type) for kind in PACKED}}

    def _alike_now(self, endpoint: str, bundle: str, version: int) -> bool:
        """Whether a version has the fields that its endpoint has now, as far as is known."""
        own = self._schema_of(bundle, version)
        return own is None or own.columns == self._schemas[endpoint].columns


def _arms(entry: Labelled, record: PredictionRecord) -> dict[str, pa.Array]:
    """By arm: bundle, version and score of each row."""
    m = len(entry.indices)
    known = {other.arm: other for other in entry.other}
    known[record.arm] = Scores(record.arm, record.bundle, record.version, record.scores)
    found = {}
    for name in ARMS:
        scores = known.get(name)
        if scores is None:
            found[name] = pa.nulls(m, _ARM)
            continue
        columns = [
            pa.repeat(pa.scalar(scores.bundle, pa.string()), m),
            pa.repeat(pa.scalar(scores.version, pa.int64()), m),
            pa.array(scores.scores[entry.indices]),
        ]
        found[name] = pa.StructArray.from_arrays(columns, fields=list(_ARM))
    return found


def _bag(bag: Bag) -> pa.Array:
    element = pa.list_(pa.field("element", pa.int64()))
    return pa.ListArray.from_arrays(pa.array(bag.offsets), pa.array(bag.values), type=element)


def _lists(matrix: Array, kind: pa.DataType) -> pa.Array:
    rows, width = matrix.shape
    return pa.ListArray.from_arrays(np.arange(rows + 1, dtype=np.int32) * width, pa.array(matrix.reshape(-1), kind))
