"""Parquet export of labelled rows: written in the log's order, and read back for `restore`.

One row per exposed candidate and revision: hashed ids, raw numbers and bags in schema order, the scores of each arm, the
label and the label that it replaces. Export and import work page by page, so memory does not grow with the log; only late
labels and late exposures of the file are held while it is read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.arrays import I32, Array
from pipeline.disk import replacing
from pipeline.errors import DataError
from pipeline.features import Bag, Features, Rows
from pipeline.traffic.log import Labelled, Scores, TrafficLog
from pipeline.traffic.plausible import implausible, written
from pipeline.traffic.record import ARMS, PredictionRecord, unpack
from pipeline.traffic.redaction import REDACTED, Redaction
from pipeline.traffic.restore import Restored

__all__ = ["SCHEMA", "export_rows", "read_rows"]

_PAGE_PREDICTIONS = 256
_GROUP_ROWS = 65_536
PREDICTION_ROWS, GROUP_VALUES = 1_000_000, 64_000_000
"""Most candidates of a prediction, and most values of a column in one group of rows, that are read from a file."""
PLAIN_VALUES, VALUES_PER_BYTE_FACTOR = 50_000_000, 100
"""Values that a file may hold whatever its size, and per byte of it: equal ones take no room in Parquet."""
_SHOWN_BYTES = 300
_TEXTS = ("request_id", "candidate_text")
"""What the caller wrote, kept with `traffic.keep_text`. Exports of 0.1 have no such columns, and are read as well."""
_ARM = pa.struct([("bundle", pa.string()), ("version", pa.int64()), ("score", pa.float32())])
SCHEMA = pa.schema(
    [
        pa.field("seq", pa.int64(), False),
        pa.field("prediction_id", pa.string(), False),
        pa.field("revision", pa.int32(), False),
        pa.field("time", pa.timestamp("ms", "UTC"), False),
        pa.field("endpoint", pa.string(), False),
        pa.field("arm", pa.string(), False),
        pa.field("overridden", pa.bool_(), False),
        pa.field("routing_hash", pa.uint64(), False),
        pa.field("candidates", pa.int32(), False),
        pa.field("index", pa.int32(), False),
        pa.field("candidate_id", pa.int64()),
        *(pa.field(name, pa.string()) for name in _TEXTS),
        pa.field("position", pa.int32(), False),
        pa.field("label", pa.float32(), False),
        pa.field("previous", pa.float32()),
        *(pa.field(arm, _ARM) for arm in ARMS),
        pa.field("ids", pa.list_(pa.int64()), False),
        pa.field("numbers", pa.list_(pa.float32()), False),
        pa.field("bags", pa.list_(pa.list_(pa.int64())), False),
    ],
    metadata={"baton.traffic": "1"},
)
_OLD_SCHEMA = pa.schema([field for field in SCHEMA if field.name not in _TEXTS])
_Row = dict[str, Any]


def export_rows(
    log: TrafficLog,
    path: Path,
    *,
    endpoint: str = "",
    since_ms: int | None = None,
    until_ms: int | None = None,
    redaction: Redaction | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> int:
    """Write labelled rows to `path`, which appears once it is complete, for its owner alone; the number of rows.

    Args:
        endpoint: of the rows; empty: all.
        since_ms, until_ms: times of the predictions (Unix milliseconds), the end not included.
        redaction: what is left out or hashed again. Such a file can not be imported.
        progress: called with the number of rows written so far.

    Raises:
        DataError: a row's fields are not those of the redaction.
    """
    rows = after = 0
    held: list[pa.RecordBatch] = []
    schema = SCHEMA if redaction is None else _redacted(redaction)
    with replacing(path) as staging:
        staging.touch(mode=0o600, exist_ok=False)
        with pq.ParquetWriter(staging, schema, compression="zstd") as writer:
            while page := log.labelled(after, _PAGE_PREDICTIONS):
                after = page[-1].seq
                for entry in page:
                    if (since_ms is not None and entry.time_ms < since_ms) or (
                        until_ms is not None and entry.time_ms >= until_ms
                    ):
                        continue
                    record = unpack(entry.record)
                    if endpoint and record.endpoint != endpoint:
                        continue
                    held.append(_batch(entry, record, redaction).select(schema.names))
                    rows += len(entry.indices)
                if sum(b.num_rows for b in held) >= _GROUP_ROWS:
                    writer.write_table(pa.Table.from_batches(held, schema))
                    held = []
                progress(rows)
            if held:
                writer.write_table(pa.Table.from_batches(held, schema))
    return rows


def read_rows(path: Path, now_ms: int) -> Iterator[Restored]:
    """The predictions of an exported file, each once with all its rows and their last labels.

    Args:
        now_ms: by the clock of the log that they are for.

    Raises:
        DataError: the file is not one that `export_rows` wrote, or is a redacted one; it holds an infinite number, or a row is from before 2000 or of
            the future.
    """
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: is not Parquet: {error}") from None
    with file:
        if said := (file.schema_arrow.metadata or {}).get(REDACTED):
            done = said[:_SHOWN_BYTES].decode("utf-8", "replace")
            raise DataError(
                f"{path}: is an export with fields left out or hashed again ({done}), so its rows are not those of any model; "
                "import one that was made without --drop and --rekey"
            )
        if not any(file.schema_arrow.equals(schema) for schema in (SCHEMA, _OLD_SCHEMA)):
            missing = [name for name in _OLD_SCHEMA.names if name not in file.schema_arrow.names]
            raise DataError(
                f"{path}: is not an export of a traffic log"
                + (f": it has no column {missing[0]!r}" if missing else ": its columns are of other types")
                + "; describe other logs by a dataset.yaml"
            )
        _check_sizes(path, file)
        _check_times(path, file, now_ms)
        labels, late = _later(file)
        for prediction_id, rows in groupby(_rows(file), lambda row: str(row["prediction_id"])):
            first = [row for row in islice(rows, PREDICTION_ROWS + 1) if not row["revision"]]
            if first:
                yield _whole(path, first + late.pop(prediction_id, []), labels)
        for shown_late in late.values():  # no row was shown when it closed
            yield _whole(path, shown_late, labels)


def _check_sizes(path: Path, file: pq.ParquetFile) -> None:
    """Check, before anything is unpacked, that a file holds no more values than its size can mean."""
    size, values = path.stat().st_size, 0
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        for column in range(group.num_columns):
            chunk = group.column(column)
            values += chunk.num_values
            if chunk.num_values > GROUP_VALUES:
                raise DataError(
                    f"{path}: column {chunk.path_in_schema!r} has {chunk.num_values:,} values in one group of rows; at most "
                    f"{GROUP_VALUES:,} are read"
                )
    if values > max(PLAIN_VALUES, VALUES_PER_BYTE_FACTOR * size):
        raise DataError(f"{path}: holds {values:,} values in {size:,} bytes, which no export does")


def _whole(path: Path, rows: list[_Row], labels: dict[tuple[str, int], float]) -> Restored:
    """`_restored` of rows that may be of nobody's export.

    Raises:
        DataError: they are not one prediction's.
    """
    head = rows[0]
    n = head["candidates"]
    about = f"{path}: prediction {str(head['prediction_id'])[:100]!r}"
    if n is None or not 0 < n <= PREDICTION_ROWS or len(rows) > PREDICTION_ROWS:
        raise DataError(f"{about} has {n} candidates and {len(rows):,} rows; at most {PREDICTION_ROWS:,} are read")
    if any(row["index"] is None or not 0 <= row["index"] < n for row in rows):
        raise DataError(f"{about} has {n} candidates and a row of another one")
    if n * max(len(head["ids"] or ()), len(head["numbers"] or ())) > GROUP_VALUES:
        raise DataError(f"{about} has more than {GROUP_VALUES:,} values")
    try:
        return _restored(rows, labels)
    except (TypeError, ValueError, KeyError, IndexError, OverflowError) as error:
        raise DataError(f"{about} does not hold together: {error}") from None


def _later(file: pq.ParquetFile) -> tuple[dict[tuple[str, int], float], dict[str, list[_Row]]]:
    """Revisions of a file: the last label of each row that has several, and rows exposed after their prediction closed."""
    labels: dict[tuple[str, int], float] = {}
    late: defaultdict[str, list[_Row]] = defaultdict(list)
    for row in _rows(file):
        if row["revision"]:
            if row["previous"] is None:
                late[row["prediction_id"]].append(row)
            else:
                labels[row["prediction_id"], row["index"]] = row["label"]
    return labels, late


def _check_times(path: Path, file: pq.ParquetFile, now_ms: int) -> None:
    for batch in file.iter_batches(columns=["time"]):
        if not batch.num_rows:
            continue
        ends = pc.min_max(_times(batch))
        for time_ms in (ends["min"].as_py(), ends["max"].as_py()):
            if problem := implausible(time_ms, now_ms):
                raise DataError(f"{path}: column 'time': {written(time_ms)} is {problem}; times are UTC", "time")


def _times(batch: pa.RecordBatch) -> pa.Array:
    return batch.column("time").cast(pa.int64())


def _rows(file: pq.ParquetFile) -> Iterator[_Row]:
    for batch in file.iter_batches(4096):
        yield from batch.set_column(batch.schema.get_field_index("time"), "time", _times(batch)).to_pylist()


def _restored(rows: list[_Row], labels: dict[tuple[str, int], float]) -> Restored:
    head = rows[0]
    n = head["candidates"]
    index = np.array([row["index"] for row in rows], np.int32)
    known: dict[str, Scores] = {}
    for arm in ARMS:
        values = [row[arm] for row in rows]
        first = next((value for value in values if value is not None), None)
        if first is not None:
            scores = np.full(n, np.nan, np.float32)
            scores[index] = [np.nan if value is None else value["score"] for value in values]
            known[arm] = Scores(arm, first["bundle"], first["version"], scores)
    own = known.pop(head["arm"])

    def spread(name: str, fill: float, dtype: Any) -> Array:
        whole = np.full((n, *np.shape(head[name])), fill, dtype)
        whole[index] = [row[name] for row in rows]
        return whole

    numbers = spread("numbers", np.nan, np.float32)
    if np.isinf(numbers).any():
        raise DataError(
            f"column 'numbers' of prediction {head['prediction_id']!r} holds an infinite number; NaN is a missing one",
            "numbers",
        )
    record = PredictionRecord(
        prediction_id=head["prediction_id"],
        time_ms=head["time"],
        endpoint=head["endpoint"],
        arm=head["arm"],
        bundle=own.bundle,
        version=own.version,
        features=Features.from_rows(Rows(spread("ids", 0, np.int64), numbers, _bags(rows, index, n))),
        scores=own.scores,
        routing_hash=head["routing_hash"],
        overridden=True,
        candidate_ids=None if head["candidate_id"] is None else spread("candidate_id", 0, np.int64),
        request_id=head.get("request_id") or "",
        candidate_texts=() if head.get("candidate_text") is None else _spread_texts(rows, n),
    )
    last = np.array([labels.get((row["prediction_id"], row["index"]), row["label"]) for row in rows], np.float32)
    positions = np.array([row["position"] for row in rows], np.int32)
    return Restored(record, index, last, positions, tuple(known.values()))


def _spread_texts(rows: list[_Row], n: int) -> list[str]:
    """Candidate ids as texts, empty where a row is not in the file."""
    texts = [""] * n
    for row in rows:
        texts[row["index"]] = row["candidate_text"]
    return texts


def _bags(rows: list[_Row], index: I32, n: int) -> tuple[Bag, ...]:
    bags = []
    for column in range(len(rows[0]["bags"])):
        parts: list[list[int]] = [[] for _ in range(n)]
        for at, row in zip(index.tolist(), rows, strict=True):
            parts[at] = row["bags"][column]
        offsets = np.concatenate([[0], np.cumsum([len(p) for p in parts])]).astype(np.int32)
        bags.append(Bag(column, offsets, np.array([v for p in parts for v in p], np.int64)))
    return tuple(bags)


def _redacted(redaction: Redaction) -> pa.Schema:
    fields = [field for field in SCHEMA if field.name not in redaction.drop]
    return pa.schema(fields, metadata={**SCHEMA.metadata, **redaction.metadata()})


def _batch(entry: Labelled, record: PredictionRecord, redaction: Redaction | None) -> pa.RecordBatch:
    m = len(entry.indices)
    known = {other.arm: other for other in entry.other}
    known[record.arm] = Scores(record.arm, record.bundle, record.version, record.scores)
    rows = record.features.rows(None, entry.indices)
    candidate_ids = None if record.candidate_ids is None else record.candidate_ids[entry.indices]
    request_id: str | None = record.request_id or None
    kept = record.candidate_texts
    texts: list[str | None] = [kept[at] for at in entry.indices.tolist()] if kept else [None] * m
    routing = np.array([record.routing_hash], np.uint64)
    if redaction is not None:
        rows = redaction.rows(rows, record.bundle, record.version)
        routing = redaction.column("routing_hash", routing)
        if candidate_ids is not None:
            candidate_ids = redaction.column("candidate_id", candidate_ids)
        request_id = redaction.text("request_id", request_id)
        texts = [redaction.text("candidate_text", text) for text in texts]

    def same(value: Any, kind: pa.DataType) -> pa.Array:
        return pa.repeat(pa.scalar(value, kind), m)

    def arm(name: str) -> pa.Array:
        scores = known.get(name)
        if scores is None:
            return pa.nulls(m, _ARM)
        columns = [same(scores.bundle, pa.string()), same(scores.version, pa.int64())]
        return pa.StructArray.from_arrays([*columns, pa.array(scores.scores[entry.indices])], fields=list(_ARM))

    return pa.RecordBatch.from_arrays(
        [
            same(entry.seq, pa.int64()),
            same(entry.prediction_id, pa.string()),
            same(entry.revision, pa.int32()),
            same(entry.time_ms, pa.timestamp("ms", "UTC")),
            same(record.endpoint, pa.string()),
            same(record.arm, pa.string()),
            same(record.overridden, pa.bool_()),
            same(int(routing[0]), pa.uint64()),
            same(record.features.n, pa.int32()),
            pa.array(entry.indices),
            pa.nulls(m, pa.int64()) if candidate_ids is None else pa.array(candidate_ids),
            same(request_id, pa.string()),
            pa.array(texts, pa.string()),
            pa.array(entry.positions),
            pa.array(entry.labels),
            pa.array(entry.previous, from_pandas=True),  # NaN is null
            *(arm(name) for name in ARMS),
            _lists(rows.ids, pa.int64()),
            _lists(rows.numbers, pa.float32()),
            pa.array(
                [[b.values[b.offsets[i] : b.offsets[i + 1]] for b in rows.bags] for i in range(m)],
                pa.list_(pa.list_(pa.int64())),
            ),
        ],
        schema=SCHEMA,
    )


def _lists(matrix: Array, kind: pa.DataType) -> pa.Array:
    rows, width = matrix.shape
    return pa.ListArray.from_arrays(np.arange(rows + 1, dtype=np.int32) * width, pa.array(matrix.reshape(-1), kind))
