"""Preparation of a log: rows are checked, hashed, numbered and written once as a Parquet file.

Rows stream through in batches; memory does not grow with the log. DuckDB sorts and joins (`source.py`), `reader.py` reads
the file. Columns of the file:

    time_ms i64, label f32, request i64, position i32, routing_key text, probability f32 and weight f32 where the
    descriptor says them, i0.. i64 (ids), n0.. f32 (numbers), b0.. list of i64 (bags), each in schema order within its kind
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.arrays import F32, F64, I32, I64, Array, Mask
from pipeline.clock import Clock, SystemClock
from pipeline.errors import DataError
from pipeline.hashing import hash_bag_column, hash_column
from pipeline.schema import MISSING_TEXTS
from pipeline.traffic.plausible import implausible, unit_of, written
from transfer.data.descriptor import DataField, label_text
from transfer.data.source import WRONG, Dataset, Source, connect

__all__ = ["BATCH_ROWS", "COUNTS", "LEVELS", "prepared_file", "spill_limit"]

BATCH_ROWS = 65_536
COUNTS = b"baton.counts"
LEVELS = ("probability", "weight")
"""Columns of the prepared file that are there where the descriptor says so."""
FORMAT_VERSION = 3
SPILL_FACTOR, SPARE_SPILL_BYTES, KEPT_FREE_BYTES = 100, 1 << 30, 1 << 30
"""Disk that sorting may take: so many bytes per byte of the files, and so many more, while so many stay free. Sorted rows
are not compressed: 39 columns of texts take 20 to 50 times what they have as Parquet."""
KEPT_LABEL_VALUES, SHOWN_LABEL_VALUES = 64, 10
OTHER = "(others)"
"""Under it the rows of all further values of the label are counted."""


def prepared_file(dataset: Dataset, cache: Path, *, memory: str = "", clock: Clock | None = None) -> Path:
    """The prepared file of a data set, made now if the cache lacks it.

    Its name holds a digest of the descriptor and of path, size and time of change of every file, so a changed log is
    prepared again.

    Args:
        dataset: what to read.
        cache: directory for the file and for data that sorting spills to disk; made if absent.
        memory: limit of DuckDB before it spills; see `connect`.
        clock: whose time no row may pass.

    Raises:
        DataError: a row that cannot be used, naming file, row and column; a label that is constant; a join whose key
            is not unique or that finds no row at all; a context field that varies within a request.
    """
    source = Source(dataset)
    target = cache / f"{dataset.name}-{_digest(dataset, source)}.parquet"
    if target.exists():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.stem}-", dir=cache) as scratch:
        written = Path(scratch) / target.name
        spill_bytes = spill_limit(source.paths + source.join_paths, shutil.disk_usage(cache).free)
        with connect(memory, Path(scratch) / "spill", spill_bytes) as connection:
            try:
                source.check_joins(connection)
                state = _Progress(dataset, source, (clock or SystemClock()).wall_ms())
                _write(state, source.batches(connection, BATCH_ROWS), written)
            except duckdb.OutOfMemoryException as error:
                raise DataError(
                    f"{dataset.path}: {_named(source.paths)} cannot be sorted in {spill_bytes:,} bytes of disk at {cache}: "
                    "unpacked they hold far more than their size says, or the disk is too full; split them, use fewer "
                    "columns, or write them anew"
                ) from error
            except (duckdb.Error, pa.ArrowInvalid, OSError) as error:
                raise DataError(f"{dataset.path}: cannot be prepared: {error}") from error
        os.replace(written, target)
    return target


def spill_limit(paths: Sequence[Path], free_bytes: int) -> int:
    """Bytes of disk that sorting some files may take: so many times what they have, and the disk is not filled."""
    held = sum(path.stat().st_size for path in paths)
    return min(SPILL_FACTOR * held + SPARE_SPILL_BYTES, max(0, free_bytes - KEPT_FREE_BYTES))


def _named(paths: Sequence[Path]) -> str:
    more = f" and {len(paths) - 1} files more" if len(paths) > 1 else ""
    return f"{paths[0]}{more} ({sum(path.stat().st_size for path in paths):,} bytes)"


def _digest(dataset: Dataset, source: Source) -> str:
    files = [(str(p.resolve()), s.st_size, s.st_mtime_ns) for p in source.paths + source.join_paths for s in [p.stat()]]
    said = dataset.model_dump(mode="json")
    # Files that were prepared before these keys existed stay good.
    said = {key: value for key, value in said.items() if value is not None or key not in ("sampling", "sample_weight")}
    content = json.dumps([FORMAT_VERSION, said, files], sort_keys=True)
    return sha256(content.encode()).hexdigest()[:16]


def _write(state: _Progress, batches: pa.RecordBatchReader, target: Path) -> None:
    schema = _arrow_schema(state.dataset)
    hashed = [name for name in schema.names if name[0] in "ib" or name == "routing_key"]
    columns = [f"{n}.list.element" if n[0] == "b" else n for n in hashed]
    with pq.ParquetWriter(target, schema, compression="zstd", compression_level=1, use_dictionary=columns) as writer:
        for batch in batches:
            if batch.num_rows:
                writer.write_table(pa.Table.from_arrays(state.convert(batch), schema=schema), row_group_size=BATCH_ROWS)
        state.finish()
        counts = {
            "rows": state.rows,
            "requests": state.requests,
            "positives": state.positives,
            "negatives": dict(state.negatives),
        }
        if state.dataset.sampling is not None:
            counts |= {
                "stand_for": state.stand_for,
                "positives_stand_for": state.positives_stand_for,
                "label_offset": state.label_offset,
            }
        writer.add_key_value_metadata({COUNTS: json.dumps(counts).encode()})


def _arrow_schema(dataset: Dataset) -> pa.Schema:
    schema = dataset.feature_schema
    columns = [
        ("time_ms", pa.int64()),
        ("label", pa.float32()),
        ("request", pa.int64()),
        ("position", pa.int32()),
        ("routing_key", pa.string()),
    ]
    columns += [(name, pa.float32()) for name in LEVELS if _says(dataset, name)]
    columns += [(f"i{i}", pa.int64()) for i in range(len(schema.ids))]
    columns += [(f"n{i}", pa.float32()) for i in range(len(schema.numbers))]
    columns += [(f"b{i}", pa.list_(pa.field("element", pa.int64()))) for i in range(len(schema.bags))]
    return pa.schema(columns)


def _says(dataset: Dataset, level: str) -> bool:
    return (dataset.sampling if level == "probability" else dataset.sample_weight) is not None


@dataclass(slots=True)
class _Progress:
    """State of the conversion: what a batch needs of the rows before it."""

    dataset: Dataset
    source: Source
    now_ms: int
    rows: int = 0
    requests: int = 0
    positives: int = 0
    stand_for: float = 0.0
    positives_stand_for: float = 0.0
    thinned: int = 0  # rows that `sampling.where` names, and those of them that are positive
    thinned_positives: int = 0
    weight: float = 0.0
    hits: list[int] = field(default_factory=list)
    negatives: Counter[str] = field(
        default_factory=Counter
    )  # rows by value of the label, at most KEPT_LABEL_VALUES values
    # of the last row of the batch before: its request, place within it, and context by field
    last_key: pa.Array | None = None
    last_position: int = -1
    last_context: dict[str, Any] = field(default_factory=dict)

    def convert(self, batch: pa.RecordBatch) -> list[pa.Array]:
        """The columns of the prepared file for one batch of `Source.batches`."""
        self._refuse_wrong(batch)
        milliseconds = self._times(batch)
        self._whole(batch, "__label", self.dataset.label.column, "is missing; every row needs a label")
        labels, thinned = self._labels(batch)
        levels = [] if self.dataset.sampling is None else [self._probabilities(batch, thinned, labels)]
        if levels:
            stand_for = 1.0 / levels[0].astype(np.float64)
            self.stand_for += float(stand_for.sum())
            self.positives_stand_for += float(stand_for @ labels)
        if self.dataset.sample_weight is not None:
            levels.append(self._weights(batch))
            self.weight += float(levels[-1].sum(dtype=np.float64))
        same, position = self._requests(batch)
        request = self.requests + np.cumsum(~same) - 1
        ids, numbers, bags = [], [], []
        for number, spec in enumerate(self.dataset.fields):
            column = batch.column(f"f{number}")
            if spec.kind == "number":
                floats = self._numbers(batch, column, spec)
                self._constant(batch, spec, floats.view(np.int32), same)
                numbers.append(pa.array(floats))
            elif spec.kind == "bag":
                if spec.role == "context":
                    self._constant(batch, spec, hash_column(spec.name, column, spec.missing_texts, spec.index), same)
                offsets, values = hash_bag_column(
                    spec.name, column, spec.separator or "", spec.missing_texts, spec.index
                )
                element = pa.list_(pa.field("element", pa.int64()))
                bags.append(pa.ListArray.from_arrays(pa.array(offsets), pa.array(values), type=element))
            else:
                hashed = hash_column(spec.name, column, spec.missing_texts, spec.index)
                self._constant(batch, spec, hashed, same)
                ids.append(pa.array(hashed))
        for number in range(len(self.dataset.joins)):
            if number == len(self.hits):
                self.hits.append(0)
            self.hits[number] += pc.sum(batch.column(f"__hit{number}")).as_py() or 0
        self.rows += batch.num_rows
        self.requests += int(np.count_nonzero(~same))
        self.positives += int(labels.sum())
        self.last_position = int(position[-1])
        routing = pa.nulls(batch.num_rows, pa.string())
        if self.dataset.routing_key is not None:
            routing = batch.column("__routing").cast(pa.string())
        routing = routing.fill_null("")
        plain = [pa.array(milliseconds), pa.array(labels), pa.array(request), pa.array(position), routing]
        return [*plain, *map(pa.array, levels), *ids, *numbers, *bags]

    def finish(self) -> None:
        """Check what only the whole log can show."""
        files = ", ".join(str(path) for path in self.source.paths)
        label = self.dataset.label.column
        if not self.rows:
            raise DataError(f"{files}: no rows", label)
        if self.positives in (0, self.rows):
            values = (
                f"; values seen: {', '.join(sorted(self.negatives)[:SHOWN_LABEL_VALUES])}" if self.negatives else ""
            )
            raise DataError(
                f"{files}: column {label!r}: every row is {'positive' if self.positives else 'negative'} (positive: "
                f"{list(self.dataset.label.positive)}{values}); a model needs both",
                label,
            )
        sampling, weight = self.dataset.sampling, self.dataset.sample_weight
        if sampling is not None and sampling.where and not self.thinned:
            raise DataError(
                f"{files}: column {label!r}: no row has a value that sampling.where names ({sampling.where[label]}); values "
                f"seen: {', '.join([*map(str, self.dataset.label.positive), *sorted(self.negatives)][:SHOWN_LABEL_VALUES])}",
                label,
            )
        if weight is not None and not self.weight:
            raise DataError(f"{files}: column {weight.column!r}: every row's weight is 0", weight.column)
        for join, path, hits in zip(self.dataset.joins, self.source.join_paths, self.hits, strict=True):
            if not hits:
                raise DataError(
                    f"{path}: column {join.on!r}: no row of the log finds its key here; are both of one type?", join.on
                )

    def _times(self, batch: pa.RecordBatch) -> I64:
        """Unix milliseconds of each row, none of them missing or implausible."""
        times = batch.column("__time")
        if times.null_count:
            raise self._wrong_time(batch, int(np.argmin(times.is_valid().to_numpy(zero_copy_only=False))), None)
        milliseconds: I64 = np.floor_divide(times.to_numpy(), 1000)
        for row in (int(milliseconds.argmin()), int(milliseconds.argmax())):
            if implausible(int(milliseconds[row]), self.now_ms):
                raise self._wrong_time(batch, row, int(milliseconds[row]))
        return milliseconds

    def _wrong_time(self, batch: pa.RecordBatch, row: int, time_ms: int | None) -> DataError:
        """Error that names the value, and the unit in which it would be a time; `time_ms`: as it was read, None: it was not."""
        column, unit = self.dataset.time.column, self.dataset.time.unit
        text, in_unit = self.source.time_text(batch.column("__file")[row].as_py(), batch.column("__row")[row].as_py())
        where = f"{self._where(batch, row)}: column {column!r}"
        fitting = _fitting_unit(text, self.now_ms) if in_unit else ""
        if time_ms is None and not fitting:
            return DataError(f"{where} does not parse as a time: {text}", column)
        said = f" in {unit}" if in_unit else ""
        read = f"is no time{said}"
        if time_ms is not None:
            read = f"is {written(time_ms)}{said}, {implausible(time_ms, self.now_ms)}"
        remedy = f"unit: {fitting} would fit" if fitting else "correct it; times are UTC, local time is ahead or behind"
        return DataError(f"{where}: {text} {read}; {remedy}", column)

    @property
    def label_offset(self) -> float | None:
        """As of `Log`."""
        sampling = self.dataset.sampling
        if sampling is None or sampling.keep is None:
            return 0.0 if sampling is None else None
        of_positives, of_negatives = self.thinned_positives, self.thinned - self.thinned_positives
        if not sampling.where:
            return 0.0
        if not of_positives and of_negatives == self.rows - self.positives:
            return -math.log(sampling.keep)
        return math.log(sampling.keep) if of_positives == self.positives and not of_negatives else None

    def _probabilities(self, batch: pa.RecordBatch, thinned: Mask, labels: F32) -> F32:
        """The share of rows such as these that the log kept."""
        sampling = self.dataset.sampling
        assert sampling is not None
        if sampling.keep is not None:
            self.thinned += int(thinned.sum())
            self.thinned_positives += int(labels[thinned].sum())
            return np.where(thinned | (not sampling.where), sampling.keep, 1.0).astype(np.float32)
        named = sampling.probability or sampling.inverse
        assert named is not None
        values = self._said(batch, "__probability", named.column)
        with np.errstate(divide="ignore", over="ignore", under="ignore"):
            inverse = 1.0 / values if sampling.inverse is None else values
            found: F32 = (values if sampling.inverse is None else 1.0 / values).astype(np.float32)
            wrong = ~((inverse >= 1.0) & np.isfinite(inverse) & np.isfinite(np.float32(1) / found))
        if wrong.any():
            row = int(np.argmax(wrong))
            wanted = "above 0 and at most 1" if sampling.inverse is None else "a finite number of at least 1"
            what = "a probability" if sampling.inverse is None else "1 / probability"
            raise DataError(
                f"{self._where(batch, row)}: column {named.column!r} is {values[row]:g}; {what} is {wanted}",
                named.column,
            )
        return found

    def _weights(self, batch: pa.RecordBatch) -> F32:
        named = self.dataset.sample_weight
        assert named is not None
        values = self._said(batch, "__weight", named.column)
        with np.errstate(over="ignore"):
            found: F32 = values.astype(np.float32)
        wrong = ~(np.isfinite(found) & (found >= 0))
        if wrong.any():
            row = int(np.argmax(wrong))
            raise DataError(
                f"{self._where(batch, row)}: column {named.column!r} is {values[row]:g}; a weight is 0 or more, and finite",
                named.column,
            )
        return found

    def _said(self, batch: pa.RecordBatch, name: str, column: str) -> F64:
        values: F64 = self._whole(batch, name, column, "is missing; every row needs a number there").to_numpy()
        return values

    def _labels(self, batch: pa.RecordBatch) -> tuple[F32, Mask]:
        """Labels of the rows, and which rows `sampling.where` names."""
        sampling = self.dataset.sampling
        thinned = sampling.thinned_texts if sampling is not None else frozenset()
        label = self.dataset.label
        positive = {label_text(value) for value in label.positive}
        negative = None if label.negative is None else {label_text(value) for value in label.negative}
        encoded = batch.column("__label").dictionary_encode()
        codes = encoded.indices.to_numpy()
        texts = [label_text(value) for value in encoded.dictionary.to_pylist()]
        for code, (text, count) in enumerate(
            zip(texts, np.bincount(codes, minlength=len(texts)).tolist(), strict=True)
        ):
            if text in positive:
                continue
            if negative is None and text not in MISSING_TEXTS:
                self.negatives[
                    text if len(self.negatives) < KEPT_LABEL_VALUES or text in self.negatives else OTHER
                ] += count
            elif negative is None or text not in negative:
                where = self._where(batch, int(np.argmax(codes == code)))
                problem = f"is missing (its text is {text!r}); leave out rows without a label, or declare the value"
                if text not in MISSING_TEXTS:
                    problem = f"is {text!r}, which is neither in label.positive nor in label.negative"
                raise DataError(
                    f"{where}: column {label.column!r} {problem}",
                    label.column,
                )
            else:
                self.negatives[text] += count
        values = np.array([text in positive for text in texts], np.float32)
        labels: F32 = values[codes]
        picked = np.array([text in thinned for text in texts], np.bool_)
        return labels, picked[codes]

    def _requests(self, batch: pa.RecordBatch) -> tuple[Mask, I32]:
        """Whether a row belongs to the request of the row before it, and its place within its request."""
        n = batch.num_rows
        same = np.zeros(n, np.bool_)
        if self.dataset.request is not None:
            key = self._whole(batch, "__request", self.dataset.request, "is missing; every row needs its request")
            same[1:] = pc.equal(key[1:], key[:-1]).to_numpy(zero_copy_only=False)
            if self.last_key is not None:
                same[0] = self.last_key[0].as_py() == key[0].as_py()
            self.last_key = key.slice(n - 1)
        index = np.arange(n)
        starts = np.maximum.accumulate(np.where(same, -1, index))
        position = np.where(starts < 0, self.last_position + 1 + index, index - starts).astype(np.int32)
        return same, position

    def _constant(self, batch: pa.RecordBatch, spec: DataField, values: Array, same: Mask) -> None:
        """Check that a context field has one value per request."""
        if spec.role != "context":
            return
        changed = np.empty(len(values), np.bool_)
        changed[0] = spec.name in self.last_context and values[0] != self.last_context[spec.name]
        np.not_equal(values[1:], values[:-1], out=changed[1:])
        changed &= same
        self.last_context[spec.name] = values[-1]
        if changed.any():
            row = int(np.argmax(changed))
            key = batch.column("__request")[row].as_py()
            raise DataError(
                f"{self._where(batch, row)}: column {spec.name!r} varies within request {key!r}, but a context field has "
                "one value per request; make its role candidate",
                spec.name,
            )

    def _refuse_wrong(self, batch: pa.RecordBatch) -> None:
        """Check that every value can be used exactly."""
        for name, (column, joined) in self.source.columns.items():
            wrong = batch.column(name + WRONG)
            if wrong.null_count < len(wrong):
                row = int(np.argmax(wrong.is_valid().to_numpy(zero_copy_only=False)))
                where = self._where(batch, row) + ("" if joined is None else f", joined to {joined}")
                raise DataError(f"{where}: column {column!r}: {wrong[row].as_py()}", column)

    def _numbers(self, batch: pa.RecordBatch, column: pa.Array, spec: DataField) -> F32:
        wide = column.to_numpy(zero_copy_only=False)
        with np.errstate(over="ignore"):
            floats: F32 = wide.astype(np.float32)
        infinite = np.isinf(floats)
        if infinite.any():
            row = int(np.argmax(infinite))
            raise DataError(
                f"{self._where(batch, row)}: column {spec.name!r}: {wide[row]!s} is infinite as a 32-bit float; "
                "leave a value empty where it is missing",
                spec.name,
            )
        floats[np.isnan(floats)] = np.nan  # one NaN, whose bits can be compared
        return floats

    def _whole(self, batch: pa.RecordBatch, name: str, column: str, problem: str) -> pa.Array:
        """A column without missing values."""
        values = batch.column(name)
        if values.null_count:
            row = int(np.argmin(values.is_valid().to_numpy(zero_copy_only=False)))
            raise DataError(f"{self._where(batch, row)}: column {column!r} {problem}", column)
        return values

    def _where(self, batch: pa.RecordBatch, row: int) -> str:
        return self.source.place(batch.column("__file")[row].as_py(), batch.column("__row")[row].as_py())


def _fitting_unit(text: str, now_ms: int) -> str:
    try:
        return unit_of(float(text), now_ms)
    except (ValueError, OverflowError):
        return ""
