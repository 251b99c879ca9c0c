"""Files of a log as tables: which columns they have, of which types, and how DuckDB scans them.

Files with the same columns and types are scanned together, one open at a time, so that the number of open files does not
grow with the number of files. Nothing that a reader could guess is left to it: folder names are no columns, files are not
united by name, and text of a CSV file stays text.
"""

from __future__ import annotations

import csv
import glob
import gzip
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import DataError
from transfer.data.columns import DECIMAL_256, HALF, literal, quoted

__all__ = ["Form", "forms_of"]

_PARQUET = "hive_partitioning = false, union_by_name = false, filename = false, binary_as_string = false"
_CSV = (
    "hive_partitioning = false, union_by_name = false, filename = false, auto_detect = false, header = true, skip = 0, "
    "delim = ',', quote = '\"', escape = '\"', comment = '', nullstr = '', encoding = 'utf-8', null_padding = false, "
    "ignore_errors = false, strict_mode = true"
)
_TAKEN = ("file_index", "file_row_number")  # what a scan calls the place of a row
_LARGEST_DECIMAL_WIDTH = 38
HEADER_BYTES = 1 << 20
"""Longest line of names of a CSV file, unpacked."""
PLAIN_ROWS, ROWS_PER_BYTE_FACTOR = 10_000_000, 100
"""Rows that a Parquet file may hold whatever its size, and per byte of it. A log has at least a time of its own per row."""


@dataclass(frozen=True, slots=True)
class Form:
    """Files with the same columns and types.

    Args:
        paths: of the files. numbers: their places in the log.
        kinds: DuckDB's type of each column by its name, or `HALF`, `DECIMAL_256`.
        columns: SQL of each column by its name.
        reader: function of DuckDB that scans them. options: what it is told.
        row: SQL of a row's number.
        counts_on: such numbers go on from one file to the next.
    """

    paths: tuple[Path, ...]
    numbers: tuple[int, ...]
    kinds: dict[str, str]
    columns: dict[str, str]
    reader: str
    options: str
    row: str
    counts_on: bool

    @property
    def file(self) -> str:
        """SQL of the place in the log of a row's file."""
        places = ", ".join(map(str, self.numbers))
        return f"CAST([{places}][CAST(file_index AS BIGINT) + 1] AS INTEGER)"

    def scan(self, files: int | None = None) -> str:
        """SQL of all rows, or of those of the first `files` files."""
        return _scan(self.reader, self.paths[:files], self.options)


def forms_of(connection: duckdb.DuckDBPyConnection, paths: Sequence[Path]) -> list[Form]:
    """The forms of some files, from their headers.

    Raises:
        DataError: a file cannot be read, has a column twice or one whose name a scan needs.
    """
    alike: dict[object, list[int]] = {}
    for number, path in enumerate(paths):
        header = _parquet_header(path) if _is_parquet(path) else (path.suffix, *_csv_header(path))
        alike.setdefault(header, []).append(number)
    make = {True: _parquet, False: _csv}
    return [make[_is_parquet(paths[n[0]])](connection, [paths[i] for i in n], tuple(n)) for n in alike.values()]


def _scan(reader: str, paths: Sequence[Path], options: str) -> str:
    return f"{reader}([{', '.join(literal(glob.escape(str(path))) for path in paths)}], {options})"


def _parquet(connection: duckdb.DuckDBPyConnection, paths: Sequence[Path], numbers: tuple[int, ...]) -> Form:
    try:
        described = connection.execute(
            f"DESCRIBE SELECT * FROM {_scan('read_parquet', paths[:1], _PARQUET)}"
        ).fetchall()
    except duckdb.Error as error:
        raise DataError(f"{paths[0]}: cannot be read: {error}") from None
    kinds = {name: kind for name, kind, *_ in described}
    for path, _, logical, _, precision, _ in _parquet_header(paths[0]):
        if path in kinds and (logical == "Float16" or precision > _LARGEST_DECIMAL_WIDTH):
            kinds[path] = HALF if logical == "Float16" else DECIMAL_256
    columns = {name: quoted(name) for name in kinds}
    options = f"file_row_number = true, {_PARQUET}"
    return Form(tuple(paths), numbers, kinds, columns, "read_parquet", options, "file_row_number", False)


def _csv(_: duckdb.DuckDBPyConnection, paths: Sequence[Path], numbers: tuple[int, ...]) -> Form:
    columns = {name: f"c{i}" for i, name in enumerate(_csv_header(paths[0]))}
    typed = ", ".join(f"'{column}': 'VARCHAR'" for column in columns.values())
    packed = "gzip" if paths[0].suffix == ".gz" else "none"
    options = f"columns = {{{typed}}}, compression = '{packed}', {_CSV}"
    # Without an order of its own, row_number() numbers the rows of a scan as they stand in the files.
    row = "row_number() OVER () - 1"
    return Form(tuple(paths), numbers, dict.fromkeys(columns, "VARCHAR"), columns, "read_csv", options, row, True)


def _is_parquet(path: Path) -> bool:
    return path.name.endswith(".parquet")


_Leaf = tuple[str, str, str, int, int, int]


def _parquet_header(path: Path) -> tuple[_Leaf, ...]:
    """Path, physical and logical type, length, precision and scale of each leaf of a file's schema, sorted."""
    try:
        metadata = pq.read_metadata(path)
        schema = metadata.schema
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    size = path.stat().st_size
    if metadata.num_rows > max(PLAIN_ROWS, ROWS_PER_BYTE_FACTOR * size):
        raise DataError(
            f"{path}: holds {metadata.num_rows:,} rows in {size:,} bytes; more than {ROWS_PER_BYTE_FACTOR} rows per byte are no log"
        )
    leaves = [schema.column(i) for i in range(len(schema))]
    for name in (leaf.path for leaf in leaves):
        if name.lower() in _TAKEN:
            raise DataError(f"{path}: a column cannot be called {name!r}; rename it", name)
    return tuple(
        sorted(
            (
                leaf.path,
                str(leaf.physical_type),
                str(leaf.logical_type),
                leaf.length or 0,
                leaf.precision or 0,
                leaf.scale or 0,
            )
            for leaf in leaves
        )
    )


def _csv_header(path: Path) -> tuple[str, ...]:
    """Names of a CSV file's columns, in order."""
    try:
        with path.open("rb") as raw:
            plain = gzip.GzipFile(fileobj=raw) if path.name.endswith(".gz") else raw
            first = plain.readline(HEADER_BYTES + 1)
            while first.count(b'"') % 2 and len(first) <= HEADER_BYTES and (more := plain.readline(HEADER_BYTES)):
                first += more  # a quoted name goes on after the end of the line
        if len(first) > HEADER_BYTES:
            raise DataError(f"{path}: the line with the names of the columns has more than {HEADER_BYTES:,} bytes")
        lines = csv.reader(io.StringIO(first.decode("utf-8-sig"), newline=""), strict=True)
        names = [name.strip() for name in next(lines, ())]
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    if not names:
        raise DataError(f"{path}: cannot be read: a first line with the names of the columns was expected")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path}: column {twice!r} stands twice in the first line; rename one", twice)
    return tuple(names)
