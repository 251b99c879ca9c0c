"""Parity: whether a bundle answers as the model did that it was made of, on rows with the model's own answers.

That a network loads and runs says nothing of what it answers: columns may be swapped, codes off by one, numbers rounded. Rows
go the way of a request: raw values are hashed, looked up in the bundle's tables, scored by its network. All of them are
scored in order, backwards and some alone, since a score must not depend on who else asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from pipeline.arrays import F32, F64, I64
from pipeline.bundle.bundle import Bundle
from pipeline.errors import BatonError, BundleError, DataError
from pipeline.features import Bag, Rows
from pipeline.hashing import hash_bag_column, hash_column
from pipeline.model.proof import CLOSE_LOGIT
from pipeline.model.scorer import Scorer
from pipeline.schema import Schema

__all__ = ["Check", "Parity", "Scores", "rows_of"]

BATCH_ROWS = 8192
ALONE_COUNT = 32
ANSWERS = ("score", "expected", "probability", "logit")
TOLERANCE_LOGIT = 1e-3
"""Largest difference of log-odds, relative beyond 1; of a probability it is about that part of it."""
SMALLEST_PROBABILITY = 1e-7
_EXACT_COUNT = 1 << 24


class Scores(Protocol):
    """What gives logits float32 `[n]` of rows, before calibration."""

    def logits(self, rows: Rows) -> F32: ...


@dataclass(frozen=True, slots=True)
class Parity:
    """Result of a comparison: rows compared, the largest difference of two probabilities and of two log-odds."""

    rows: int
    worst_probability: float
    worst_logit: float


@dataclass(frozen=True, slots=True)
class Check:
    """Rows with the answers of the model itself.

    Args:
        rows: a Parquet or CSV file, or a table, with a column per field and one of `score`, `expected` (what the model's output
            holds), `probability` and `logit`.
        tolerance: largest difference of log-odds, relative beyond 1.
    """

    rows: Path | pa.Table
    tolerance: float = TOLERANCE_LOGIT

    def compare(self, bundle: Bundle, *, logit: bool, source: Path | str, by: Scores | None = None) -> Parity:
        """Compare every row.

        Args:
            by: what gives the bundle's logits; its own network unless said.
            logit: whether the model's own output holds logits.
            source: the model, for messages.

        Raises:
            BundleError: a row's answers differ by more than the tolerance, or depend on other rows; it names the worst row.
            DataError: the rows cannot be read, or have no answers.
        """
        schema, place = bundle.manifest.model_schema, self.rows if isinstance(self.rows, Path) else "rows"
        done, worst_p, worst_l, worst = 0, 0.0, 0.0, ""
        with ExitStack() as opened:
            # Whoever writes the bundle probes it afterwards.
            scoring = opened.enter_context(Scorer(bundle, probed=True)) if by is None else by
            for table in self._batches(schema, place):
                answer = next(name for name in ANSWERS if name in table.column_names)
                try:
                    rows = rows_of(table, schema)
                except BatonError as error:
                    raise DataError(f"{place}: {error}", getattr(error, "field", "")) from None
                found = scoring.logits(rows).astype(np.float64)
                self._alone(scoring, rows, found, done, source)
                expected = _expected(
                    table, answer, place, done, logit=answer == "logit" or (logit and answer != "probability")
                )
                apart, p = _apart(found, expected)
                at = int(np.argmax(apart))
                worst_p = max(worst_p, float(p.max()))
                if apart[at] > worst_l or not worst:
                    worst_l = float(apart[at])
                    worst = (
                        f"row {done + at:,} of {place}: the bundle answers {_probability(found[at]):.6g} where {answer} says "
                        f"{_probability(expected[at]):.6g} (logits {found[at]:.6g} and {expected[at]:.6g})"
                        f"{_inexact(table, rows, at, schema)}"
                    )
                done += len(rows)
        if not done:
            raise DataError(f"{place}: there are no rows to compare", "check")
        if worst_l > self.tolerance:
            raise BundleError(
                f"{source}: its bundle does not answer as the model does. Probabilities differ by up to {worst_p:.3g} over "
                f"{done:,} rows, log-odds by {worst_l:.3g}, tolerance {self.tolerance:g}. The worst is {worst}",
                "check",
            )
        return Parity(done, worst_p, worst_l)

    def _batches(self, schema: Schema, place: Path | str) -> Iterator[pa.Table]:
        if isinstance(self.rows, pa.Table):
            tables: Iterator[pa.Table] = (pa.Table.from_batches([b]) for b in self.rows.to_batches(BATCH_ROWS))
            names = self.rows.column_names
        elif not self.rows.is_file():
            raise DataError(f"{place}: there is no such file", "check")
        elif self.rows.suffix == ".parquet":
            file = pq.ParquetFile(self.rows)
            names = file.schema_arrow.names
            tables = (pa.Table.from_batches([b]) for b in file.iter_batches(BATCH_ROWS))
        else:
            texts = {f.name: pa.string() for f in schema.fields if f.kind != "number"}
            options = pa_csv.ConvertOptions(column_types=texts, strings_can_be_null=False)
            try:
                table = pa_csv.read_csv(self.rows, convert_options=options)
            except (pa.ArrowInvalid, OSError) as error:
                raise DataError(f"{place}: cannot be read as CSV: {error}", "check") from None
            names, tables = table.column_names, (pa.Table.from_batches([b]) for b in table.to_batches(BATCH_ROWS))
        if not any(name in names for name in ANSWERS):
            raise DataError(
                f"{place}: there is no column {' or '.join(ANSWERS[:2])} with the model's own answers", "check"
            )
        lacking = [f.name for f in schema.fields if f.name not in names]
        if lacking:
            raise DataError(f"{place}: there is no column {lacking[0]!r}; a column per field is needed", lacking[0])
        return tables

    def _alone(self, scoring: Scores, rows: Rows, found: F64, done: int, source: Path | str) -> None:
        """Check that rows score the same backwards, and some of them alone."""
        order = np.arange(len(rows))[::-1].copy()
        again = np.full(len(rows), np.nan)
        again[order] = scoring.logits(rows.take(order))
        alone = np.array([scoring.logits(rows.slice(at, at + 1))[0] for at in range(min(ALONE_COUNT, len(rows)))])
        for other in (again, alone):
            mine = found[: len(other)]
            close = (np.abs(other - mine) <= CLOSE_LOGIT * np.maximum(1.0, np.abs(mine))) | (other == mine) | (np.isnan(other) & np.isnan(mine))  # fmt: skip
            if not close.all():
                at = int(np.argmin(close))
                raise BundleError(
                    f"{source}: row {done + at:,} has logit {other[at]:.6g} alone or in another order, and {mine[at]:.6g} in a "
                    "batch: rows influence each other",
                    "check",
                )


def rows_of(table: pa.Table, schema: Schema) -> Rows:
    """Rows of a table with a column per field: raw values are hashed, numbers are float32, NaN where there is none.

    Raises:
        InvalidInput: a value has no canonical text, or is no number.
    """
    ids, numbers = list[I64](), list[F64]()
    bags: list[Bag] = []
    for field in schema.fields:
        column = table[field.name].combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
        if field.kind == "number":
            try:
                plain = pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False)
            except pa.ArrowException as error:
                raise DataError(f"column {field.name!r} does not hold numbers: {error}", field.name) from None
            numbers.append(np.asarray(plain, np.float64))
        elif field.kind == "id":
            ids.append(hash_column(field.name, column, field.missing_texts, field.index))
        elif pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            flat = hash_column(field.name, column.flatten(), field.missing_texts, field.index)
            sizes = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
            bags.append(Bag(len(bags), np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32), flat))
        else:
            found = hash_bag_column(field.name, column, field.separator or "", field.missing_texts, field.index)
            bags.append(Bag(len(bags), *found))
    n = table.num_rows
    return Rows(
        np.stack(ids, 1) if ids else np.empty((n, 0), np.int64),
        np.stack(numbers, 1).astype(np.float32) if numbers else np.empty((n, 0), np.float32),
        tuple(bags),
    )


def _expected(table: pa.Table, answer: str, place: Path | str, done: int, *, logit: bool) -> F64:
    """The model's own log-odds of each row."""
    try:
        said = np.asarray(pc.cast(table[answer], pa.float64()).to_numpy(), np.float64)
    except pa.ArrowException as error:
        raise DataError(f"{place}: column {answer!r} does not hold numbers: {error}", answer) from None
    bad = ~np.isfinite(said) if logit else ~((said >= 0) & (said <= 1))
    if bad.any():
        at = int(np.argmax(bad))
        kind = "a finite logit" if logit else "a probability; if the column holds logits, name it logit"
        raise DataError(f"{place}: row {done + at:,}: {answer} is {said[at]:g}, which is not {kind}", answer)
    if logit:
        return said
    clipped = np.clip(said, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    return np.log(clipped) - np.log1p(-clipped)


def _apart(found: F64, expected: F64) -> tuple[F64, F64]:
    """Differences of log-odds, relative beyond 1, and of probabilities; infinite where one is not finite."""
    most = float(np.log(1 - SMALLEST_PROBABILITY) - np.log(SMALLEST_PROBABILITY))
    a, b = np.clip(found, -most, most), np.clip(expected, -most, most)
    apart = np.abs(a - b) / np.maximum(1.0, np.abs(b))
    p = np.abs(_probability(a) - _probability(b))
    bad = ~np.isfinite(found)
    return np.where(bad, np.inf, apart), np.where(bad, 1.0, p)


def _probability(logit: F64 | float) -> F64:
    found: F64 = 1 / (1 + np.exp(-np.clip(logit, -500, 500)))
    return found


def _inexact(table: pa.Table, rows: Rows, at: int, schema: Schema) -> str:
    """What float32 has made of the numbers of a row, where that is another number."""
    for column, field in enumerate(schema.numbers):
        value = table[field.name][at].as_py()
        if value is not None and abs(value) > _EXACT_COUNT and float(rows.numbers[at, column]) != float(value):
            return (
                f". Its {field.name} is {value!r}, and {float(rows.numbers[at, column])!r} as the 32-bit float that networks "
                "read: send it smaller, for example as a difference"
            )
    return ""
