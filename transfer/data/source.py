"""The DuckDB query of a data set: the log's files as one table, joined, without duplicates, in time order.

DuckDB scans, joins and sorts out of core; this file writes the query and checks what it names. Columns of the result:

    __time      microseconds since 1970, null where the time does not parse
    __label, __request, __routing   as stored
    __file, __row   which file, and which row of it: the original order
    __hit0..    whether a row found its partner in join 0..
    f0, f1, ..  the fields' raw values, numbers as doubles
    __bad0, ..  the text of a number that is none

Rows of a request stand together and in (time, original order); requests stand by (time of their first row, key).
"""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import duckdb
import pyarrow as pa

from pipeline.errors import DataError
from pipeline.host import available_bytes, cores
from transfer.data.descriptor import DataField, Descriptor

__all__ = ["Dataset", "Source", "connect"]

INTEGERS = frozenset({"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT"})
FLOATS = frozenset({"FLOAT", "DOUBLE"})
TIMESTAMPS = frozenset({"TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS", "TIMESTAMP WITH TIME ZONE"})
LOG = "log"
MOST_THREADS = 4
MOST_MEMORY_BYTES = 1_000_000_000
MICROSECONDS = {"s": 1_000_000, "ms": 1_000, "us": 1}


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    columns: dict[str, str]  # name -> DuckDB's name of the type


@dataclass(frozen=True, slots=True)
class _Column:
    name: str
    table: str  # LOG or the alias of a join
    kind: str
    path: Path

    @property
    def value(self) -> str:
        value = f"{self.table}.{_quoted(self.name)}"
        return f"CAST({value} AS DOUBLE)" if self.kind.startswith("DECIMAL") else value


class Dataset(Descriptor):
    """A descriptor that has been checked against its files. Made by `load`."""

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a descriptor and check it against its files.

        Raises:
            DataError: as `Descriptor.read`; or a file is absent or cannot be read, or a named column is absent or of a
                type that cannot be used. The message names the file and the column, `field` is the column.
        """
        dataset = cls.read(path)
        Source(dataset).check()
        return dataset


class Source:
    """The files of a data set, as DuckDB sees them."""

    def __init__(self, dataset: Descriptor) -> None:
        self._dataset = dataset
        self._paths = dataset.paths
        self._join_paths = dataset.join_paths
        self._key_kinds: list[str] = []

    @property
    def paths(self) -> list[Path]:
        """Files of the log; `__file` indexes them."""
        return self._paths

    @property
    def join_paths(self) -> list[Path]:
        return self._join_paths

    def check(self) -> None:
        """Read headers only.

        Raises:
            DataError: as `Dataset.load` says.
        """
        with connect() as connection:
            self._query(connection)

    def check_joins(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Read the files to be joined.

        Raises:
            DataError: a key stands in more than one row.
        """
        for join, path in zip(self._dataset.joins, self._join_paths, strict=True):
            repeated = connection.execute(
                f"SELECT {_quoted(join.on)}, count(*) FROM {_scan(path)} "
                f"WHERE {_quoted(join.on)} IS NOT NULL GROUP BY 1 HAVING count(*) > 1 ORDER BY 1 LIMIT 1"
            ).fetchone()
            if repeated:
                raise DataError(
                    f"{path}: column {join.on!r}: {repeated[0]!r} stands in {repeated[1]} rows; a join needs one row per key",
                    join.on,
                )

    def batches(self, connection: duckdb.DuckDBPyConnection, rows: int) -> pa.RecordBatchReader:
        """The sorted table, in batches of about `rows` rows."""
        return connection.sql(self._query(connection)).to_arrow_reader(rows)

    def _query(self, connection: duckdb.DuckDBPyConnection) -> str:
        data = self._dataset
        files = [_describe(connection, path) for path in self._paths]
        columns = self._resolve(files, [_describe(connection, path) for path in self._join_paths])
        union = " UNION ALL ".join(
            _branch(i, file, [name for name, column in columns.items() if column.table == LOG])
            for i, file in enumerate(files)
        )
        clock = _clock(data.time.column, columns[data.time.column].kind, data.time.unit, files[0].path)
        log = f"SELECT *, {clock} AS __time FROM ({union})"
        if data.drop_duplicates:
            keys = ", ".join(_quoted(c) for c in data.drop_duplicates)
            order = "PARTITION BY " + keys + " ORDER BY __time, __file, __row"
            log = f"SELECT * FROM ({log}) QUALIFY row_number() OVER ({order}) = 1"
        request = _key(columns[data.request]) if data.request else "NULL::BIGINT"
        first = f"min({LOG}.__time) OVER (PARTITION BY {request})" if data.request else f"{LOG}.__time"
        routing = columns[data.routing_key].value if data.routing_key else "NULL::VARCHAR"
        selected = [
            f"{first} AS __first",
            f"{LOG}.__time AS __time",
            f"{columns[data.label.column].value} AS __label",
            f"{request} AS __request",
            f"{routing} AS __routing",
            f"{LOG}.__file AS __file",
            f"{LOG}.__row AS __row",
            *(f"j{i}.__hit IS NOT NULL AS __hit{i}" for i in range(len(data.joins))),
            *(_feature(i, field, columns[field.name]) for i, field in enumerate(data.fields)),
        ]
        joins = [
            _left_join(i, path, columns[join.on], join.on, self._key_kinds[i])
            for i, (join, path) in enumerate(zip(data.joins, self._join_paths, strict=True))
        ]
        return (
            f"SELECT {', '.join(selected)} FROM ({log}) AS {LOG} {' '.join(joins)} "
            "ORDER BY (__time IS NULL) DESC, __first, __request, __time, __file, __row"
        )

    def _resolve(self, files: list[_File], joined: list[_File]) -> dict[str, _Column]:
        """The source of each column that the descriptor names, by name."""
        data = self._dataset
        found: dict[str, list[_Column]] = {
            name: [_Column(name, LOG, kind, files[0].path)] for name, kind in files[0].columns.items()
        }
        resolved: dict[str, _Column] = {}

        def resolve(name: str, said_in: str, *, log_only: bool = False) -> _Column:
            places = [c for c in found.get(name, ()) if not log_only or c.table == LOG]
            if not places or places[0].table == LOG:
                for file in files:
                    if name not in file.columns:
                        raise _absent(file, name, said_in, joined if not log_only else [])
            if len(places) > 1:
                raise DataError(
                    f"{data.path}: {said_in}: column {name!r} is in {' and in '.join(str(c.path) for c in places)}; "
                    "rename one of the two, so that it is clear which is meant",
                    name,
                )
            column = places[0]
            if column.table == LOG:
                column = _Column(name, LOG, _common_type(name, files), column.path)
            resolved[name] = column
            return column

        resolve(data.time.column, "time", log_only=True)
        _plain(resolve(data.label.column, "label", log_only=True))
        if data.request:
            _plain(resolve(data.request, "request", log_only=True))
        for name in data.drop_duplicates:
            resolve(name, "drop_duplicates", log_only=True)
        self._key_kinds = []
        for number, (join, file) in enumerate(zip(data.joins, joined, strict=True)):
            resolve(join.on, f"joins.{number}.on")
            if join.on not in file.columns:
                raise _absent(file, join.on, f"joins.{number}.on", [])
            self._key_kinds.append(file.columns[join.on])
            for name, kind in file.columns.items():
                if name != join.on:
                    found.setdefault(name, []).append(_Column(name, f"j{number}", kind, file.path))
        if data.routing_key:
            _plain(resolve(data.routing_key, "routing_key"))
        for field in data.fields:
            _plain(resolve(field.name, "fields"))
        return resolved


def _feature(number: int, field: DataField, column: _Column) -> str:
    value = column.value
    if field.kind != "number":
        return f"{value} AS f{number}"
    if column.kind == "VARCHAR":
        text = f"nullif(trim({value}), '')"
        parsed = f"TRY_CAST({text} AS DOUBLE)"
        return f"{parsed} AS f{number}, CASE WHEN {parsed} IS NULL THEN {text} END AS __bad{number}"
    return f"CAST({value} AS DOUBLE) AS f{number}"


def _key(column: _Column) -> str:
    """A value to group rows by; every kind of missing value is null."""
    if column.kind == "VARCHAR":
        return f"nullif({column.value}, '')"
    return f"CASE WHEN NOT isnan({column.value}) THEN {column.value} END" if column.kind in FLOATS else column.value


def _absent(file: _File, name: str, said_in: str, joined: list[_File]) -> DataError:
    elsewhere = "".join(f", nor has {other.path.name}" for other in joined)
    there = ", ".join(sorted(file.columns)) or "none"
    return DataError(f"{file.path}: there is no column {name!r} (named in {said_in}){elsewhere}; it has {there}", name)


def _plain(column: _Column) -> None:
    if column.kind not in INTEGERS | FLOATS | {"VARCHAR", "BOOLEAN"} and not column.kind.startswith("DECIMAL"):
        raise DataError(
            f"{column.path}: column {column.name!r} is of type {column.kind}; "
            "integers, floats, booleans or text were expected",
            column.name,
        )


def connect(memory: str = "", spill: Path | None = None) -> duckdb.DuckDBPyConnection:
    """A private DuckDB that may use `memory` before it spills to a directory; by default half of what this process may
    still take, and `MOST_MEMORY_BYTES` at most."""
    config: dict[str, Any] = {
        "memory_limit": memory or f"{min(MOST_MEMORY_BYTES, available_bytes() // 2) // 1000}KB",
        "threads": min(MOST_THREADS, cores().amount),
        "autoinstall_known_extensions": False,
        "preserve_insertion_order": True,
    }
    if spill is not None:
        config["temp_directory"] = str(spill)
    return duckdb.connect(config=config)


def _describe(connection: duckdb.DuckDBPyConnection, path: Path) -> _File:
    try:
        described = connection.execute(f"DESCRIBE SELECT * FROM {_scan(path)}").fetchall()
    except duckdb.Error as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    return _File(path, {name: kind for name, kind, *_ in described if name != "file_row_number"})


def _scan(path: Path) -> str:
    """A file as a table. Values of a CSV file stay text, since ids are hashed from text."""
    quoted = "'" + glob.escape(str(path)).replace("'", "''") + "'"
    if path.name.endswith(".parquet"):
        return f"read_parquet({quoted}, file_row_number = true)"
    return f"read_csv({quoted}, header = true, all_varchar = true, delim = ',', quote = '\"', escape = '\"')"


def _branch(number: int, file: _File, columns: list[str]) -> str:
    # Without an order of its own, row_number() numbers the rows of a scan as they stand in the file.
    row = "file_row_number" if file.path.name.endswith(".parquet") else "row_number() OVER () - 1"
    chosen = ", ".join(_quoted(c) for c in columns)
    return f"SELECT {chosen}, {number}::INTEGER AS __file, {row} AS __row FROM {_scan(file.path)}"


def _left_join(number: int, path: Path, key: _Column, on: str, kind: str) -> str:
    left, right = key.value, f"j{number}.{_quoted(on)}"
    if (key.kind == "VARCHAR") != (kind == "VARCHAR"):
        left, right = f"CAST({left} AS VARCHAR)", f"CAST({right} AS VARCHAR)"
    return f"LEFT JOIN (SELECT *, true AS __hit FROM {_scan(path)}) AS j{number} ON {left} = {right}"


def _common_type(column: str, files: list[_File]) -> str:
    kinds = {file.columns[column]: file for file in files if column in file.columns}
    if len(kinds) == 1:
        return next(iter(kinds))
    if set(kinds) <= INTEGERS | FLOATS:
        return "DOUBLE" if set(kinds) & FLOATS else "BIGINT"
    if set(kinds) <= INTEGERS | {"VARCHAR"}:
        return "VARCHAR"
    # A float or a boolean becomes other text than the one that its id is made of, so there is no common type.
    (one, first), (two, second), *_ = kinds.items()
    raise DataError(
        f"{first.path}: column {column!r} is {one}, but {two} in {second.path}; write both as one type", column
    )


def _clock(column: str, kind: str, unit: str, path: Path) -> str:
    """Microseconds since 1970, null where a value is missing, does not parse or is out of range."""
    value, factor = _quoted(column), MICROSECONDS[unit]
    if kind in TIMESTAMPS:
        return f"epoch_us({value})"
    if kind in INTEGERS:
        return f"TRY(CAST({value} AS BIGINT) * {factor})"
    if kind in FLOATS or kind == "VARCHAR" or kind.startswith("DECIMAL"):
        # A double holds microseconds since 1970 exactly until the year 2255.
        return f"TRY_CAST(round(TRY_CAST({value} AS DOUBLE) * {factor}) AS BIGINT)"
    raise DataError(f"{path}: column {column!r} is of type {kind}; numbers or timestamps were expected", column)


def _quoted(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'
