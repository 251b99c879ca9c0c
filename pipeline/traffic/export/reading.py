"""Reading of an exported file, for `pipeline.traffic.restore`: each prediction once, with its last labels.

It works row group by row group, so memory does not grow with the file; only late labels and late exposures are held while it
is read. What wrote the file is `pipeline.traffic.export.writing`; a file may be of nobody's export all the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.arrays import I32, Array
from pipeline.errors import DataError
from pipeline.features import Bag, Features, Rows
from pipeline.traffic.export.layout import PACKED, Named, fault
from pipeline.traffic.log import Scores
from pipeline.traffic.plausible import implausible, written
from pipeline.traffic.record import ARMS, PredictionRecord
from pipeline.traffic.redaction import REDACTED
from pipeline.traffic.restore import Restored

__all__ = ["read_fields", "read_rows"]

PREDICTION_ROWS, GROUP_VALUES = 1_000_000, 64_000_000
"""Most candidates of a prediction, and most values of a column in one group of rows, that are read from a file."""
PLAIN_VALUES, VALUES_PER_BYTE_FACTOR = 50_000_000, 100
"""Values that a file may hold whatever its size, and per byte of it: equal ones take no room in Parquet."""
_SHOWN_BYTES = 300
_Row = dict[str, Any]


def read_rows(path: Path, now_ms: int) -> Iterator[Restored]:
    """The predictions of an exported file, each once with all its rows and their last labels.

    Args:
        now_ms: by the clock of the log that they are for.

    Raises:
        DataError: the file is not one that `export_rows` wrote, or is a redacted one; it holds an infinite number, or a row is from before 2000 or of
            the future.
    """
    with _opened(path) as file:
        columns, named = _named(path, file)
        if wrong := fault(columns, named):
            raise DataError(
                f"{path}: is not an export of a traffic log: {wrong}; describe other logs by a dataset.yaml"
            )
        _check_sizes(path, file)
        _check_times(path, file, now_ms)
        labels, late = _later(file, named)
        for prediction_id, rows in groupby(_rows(file, named), lambda row: str(row["prediction_id"])):
            first = [row for row in islice(rows, PREDICTION_ROWS + 1) if not row["revision"]]
            if first:
                yield _whole(path, first + late.pop(prediction_id, []), labels)
        for shown_late in late.values():  # no row was shown when it closed
            yield _whole(path, shown_late, labels)


def read_fields(path: Path) -> Named:
    """Which columns of an exported file hold which fields. Raises: DataError, as `read_rows`."""
    with _opened(path) as file:
        return _named(path, file)[1]


def _opened(path: Path) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: is not Parquet: {error}") from None
    if said := (file.schema_arrow.metadata or {}).get(REDACTED):
        file.close()
        done = said[:_SHOWN_BYTES].decode("utf-8", "replace")
        raise DataError(
            f"{path}: is an export with fields left out or hashed again ({done}), so its rows are not those of any model; "
            "import one that was made without --drop and --rekey"
        )
    return file


def _named(path: Path, file: pq.ParquetFile) -> tuple[dict[str, pa.DataType], Named]:
    """The columns of a file, and those of its fields."""
    columns = {column.name: column.type for column in file.schema_arrow}
    try:
        return columns, Named.read(file.schema_arrow.metadata or {}, columns)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: what it says of its fields is not true of its columns: {error}") from None


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


def _later(file: pq.ParquetFile, named: Named) -> tuple[dict[tuple[str, int], float], dict[str, list[_Row]]]:
    """Revisions of a file: the last label of each row that has several, and rows exposed after their prediction closed."""
    labels: dict[tuple[str, int], float] = {}
    late: defaultdict[str, list[_Row]] = defaultdict(list)
    for row in _rows(file, named):
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


def _rows(file: pq.ParquetFile, named: Named) -> Iterator[_Row]:
    """The rows of a file, their fields by kind in `ids`, `numbers` and `bags`, whatever columns have them."""
    for batch in file.iter_batches(4096):
        for row in batch.set_column(batch.schema.get_field_index("time"), "time", _times(batch)).to_pylist():
            columns = named.endpoints.get(row["endpoint"])
            if row["ids"] is None and columns is not None:
                row |= {kind: [row[column] for column in columns[kind]] for kind in PACKED}
            yield row


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
        network=head.get("network") or "",
        stable_version=head.get("stable_version") or 0,
        candidate_version=head.get("candidate_version") or 0,
        inclusion_probability=_or_one(head, "inclusion_probability"),
        keep_fraction=_or_one(head, "keep_fraction"),
        load=head.get("load") or 0.0,
        candidate_ids=None if head["candidate_id"] is None else spread("candidate_id", 0, np.int64),
        request_id=head.get("request_id") or "",
        request_key=head.get("request_key") or 0,
        candidate_texts=() if head.get("candidate_text") is None else _spread_texts(rows, n),
    )
    last = np.array([labels.get((row["prediction_id"], row["index"]), row["label"]) for row in rows], np.float32)
    positions = np.array([row["position"] for row in rows], np.int32)
    return Restored(record, index, last, positions, tuple(known.values()))


def _or_one(head: _Row, name: str) -> float:
    """A share, above 0 and at most 1; 1 where a file from before the column does not say it."""
    value = head.get(name)
    if value is None:
        return 1.0
    if not 0.0 < value <= 1.0:
        raise ValueError(f"{name} is {value}, which is no share above 0 and at most 1")
    return float(value)


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
