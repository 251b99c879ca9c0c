"""Index of a table: which value has which row of a team's own array.

`Vocabulary` is known when a table is imported, so row i simply gets the id of the value of line i, and nobody needs the file
afterwards. `Modulo` cannot be undone: row i gets the id of the number i, and the field's `index` in the schema turns a raw
value into i in server, trainer and client. With `Ids` callers send i themselves.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.errors import DataError
from pipeline.index import HashName, Index

__all__ = ["Ids", "Modulo", "TableIndex", "Vocabulary", "index_of"]

BATCH_ROWS = 1 << 16


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Values in a file: line i is the value of row `first + i`.

    Args:
        file: text with a value a line; `.csv` with the columns value,code (the row's number); `.json`, an object of value to
            row number; `.parquet` with a column `value`.
        first: row of the first line, for tables that begin with rows for padding or unknown values.
        oov: row of values that are not in the file, missing ones too; None: the default row, zeros.
    """

    file: str | Path
    first: int = 0
    oov: int | None = None

    @property
    def of_field(self) -> Index | None:
        """What the schema's field needs to know."""
        return None

    def rows(self, count: int) -> Iterator[tuple[list[Any], list[int]]]:
        """Values and their rows, in batches, of a table of `count` rows.

        Raises:
            DataError: the file cannot be read, or names a row that the table has not.
        """
        for values, rows in self._read(Path(self.file)):
            if rows and not 0 <= min(rows) <= max(rows) < count:
                at = next(i for i, row in enumerate(rows) if not 0 <= row < count)
                raise DataError(
                    f"{self.file}: value {values[at]!r} is of row {rows[at]:,}; the table has {count:,} rows", "index"
                )
            yield values, rows

    def size(self) -> int:
        """The number of rows that the file needs."""
        return max((max(rows) + 1 for _, rows in self._read(Path(self.file)) if rows), default=0)

    def _read(self, path: Path) -> Iterator[tuple[list[Any], list[int]]]:
        try:
            if path.suffix == ".json":
                said = json.loads(path.read_text("utf-8"))
                if not isinstance(said, dict):
                    raise DataError(f"{path}: an object of value to row number was expected", "index")
                yield list(said), [int(row) for row in said.values()]
            elif path.suffix == ".csv":
                with path.open(newline="", encoding="utf-8") as file:
                    lines = csv.DictReader(file)
                    if lines.fieldnames is None or not {"value", "code"} <= set(lines.fieldnames):
                        raise DataError(f"{path}: a header with the columns value and code was expected", "index")
                    found = [(line["value"], int(float(line["code"]))) for line in lines]
                yield [value for value, _ in found], [row for _, row in found]
            elif path.suffix == ".parquet":
                row = self.first
                for batch in pq.ParquetFile(path).iter_batches(BATCH_ROWS, columns=["value"]):
                    yield batch.column(0).to_pylist(), list(range(row, row := row + batch.num_rows))
            else:
                yield from self._lines(path)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror or error}", "index") from None
        except (ValueError, KeyError) as error:
            raise DataError(f"{path}: {error}", "index") from None

    def _lines(self, path: Path) -> Iterator[tuple[list[Any], list[int]]]:
        row, values = self.first, list[Any]()
        with path.open(encoding="utf-8", newline="\n") as file:
            for line in file:
                values.append(line.rstrip("\r\n"))
                if len(values) == BATCH_ROWS:
                    yield values, list(range(row, row := row + len(values)))
                    values = []
        yield values, list(range(row, row + len(values)))


@dataclass(frozen=True, slots=True)
class Modulo:
    """Buckets of a hash: row i is that of all values whose hash is i modulo `buckets`.

    Args:
        hash: `farm64` (TensorFlow's `to_hash_bucket_fast`), `xxh64` or `identity`.
        buckets: rows; None: the table's.
        oov: row of a missing value; None: the default row, zeros.
    """

    hash: HashName = "farm64"
    buckets: int | None = None
    oov: int | None = None

    @property
    def of_field(self) -> Index | None:
        """What the schema's field needs to know."""
        return None if self.buckets is None else Index(hash=self.hash, buckets=self.buckets)

    def rows(self, count: int) -> Iterator[tuple[list[Any], list[int]]]:
        """The numbers of the buckets, which are their rows, in batches.

        Raises:
            DataError: the table has fewer rows than there are buckets.
        """
        size = self.size() or count
        if size > count:
            raise DataError(f"index: {size:,} buckets where the table has {count:,} rows", "index")
        yield from _numbers(size)

    def size(self) -> int:
        """The number of rows that it needs; 0: as many as there are."""
        return self.buckets or 0


@dataclass(frozen=True, slots=True)
class Ids:
    """Row numbers as they are: callers send i.

    Args:
        buckets: rows; None: the table's.
        oov: row of a missing value and of a number that is no row; None: the default row, zeros.
    """

    buckets: int | None = None
    oov: int | None = None

    @property
    def of_field(self) -> Index | None:
        """What the schema's field needs to know."""
        return None

    def rows(self, count: int) -> Iterator[tuple[list[Any], list[int]]]:
        """Row numbers in batches, as values and as rows."""
        yield from _numbers(min(self.size() or count, count))

    def size(self) -> int:
        """The number of rows that it needs; 0: as many as there are."""
        return self.buckets or 0


TableIndex = Vocabulary | Modulo | Ids


def index_of(value: Any, folder: Path) -> TableIndex:
    """The index in a schema file: `ids`, `{ids: 1000}`, `{hash: farm64, buckets: 1000}` or `{vocabulary: items.txt}`.

    Args:
        folder: that paths are relative to.

    Raises:
        DataError: it is none of these.
    """
    if value == "ids":
        return Ids()
    kinds: Mapping[str, tuple[type[Any], str]] = {
        "vocabulary": (Vocabulary, "file"),
        "hash": (Modulo, "hash"),
        "ids": (Ids, "buckets"),
    }
    if isinstance(value, Mapping):
        for key, (kind, argument) in kinds.items():
            if key in value:
                rest = {name: part for name, part in value.items() if name != key}
                try:
                    found = kind(**{argument: value[key]}, **rest)
                    if isinstance(found, Modulo):
                        Index(hash=found.hash, buckets=found.buckets or 1)
                except (TypeError, ValueError):
                    break
                return replace(found, file=folder / str(found.file)) if isinstance(found, Vocabulary) else found
    raise DataError(
        f"index: {value!r} is none; write ids, {{hash: farm64, buckets: 1000}} or {{vocabulary: items.txt}}, each with an "
        "`oov` row if there is one",
        "index",
    )


def _numbers(count: int) -> Iterator[tuple[list[Any], list[int]]]:
    for start in range(0, count, BATCH_ROWS):
        batch = list(range(start, min(start + BATCH_ROWS, count)))
        yield batch, batch
