"""The DuckDB query of a data set: the log's files as one table, joined, without duplicates, in time order.

DuckDB scans, joins and sorts out of core; this file writes the query and checks what it names. How files are scanned is
in `files.py`, what a value becomes in `columns.py`. Columns of the result:

    __time      microseconds since 1970, null where the time does not parse
    __label, __request, __routing   exact text, or whole numbers; null where missing
    __probability, __weight         doubles, where the descriptor names columns of them
    __file, __row   which file, and which row of it: the original order
    __hit0..    whether a row found its partner in join 0..
    f0, f1, ..  the fields: ids and bags as exact text or whole numbers, numbers as doubles
    NAME__wrong what is wrong with a value of column NAME that cannot be used; null else; only where that may be

Rows of a request stand together and in (time, original order); requests stand by (time of their first row, key).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import duckdb
import pyarrow as pa

from pipeline.errors import DataError
from pipeline.faults import told
from pipeline.host import available_bytes, cores
from pipeline.schema import MISSING_TEXTS
from transfer.data.columns import WHOLE, Bag, Clock, Exact, Label, Number, Raw, Reader
from transfer.data.descriptor import DataField, Descriptor
from transfer.data.files import Form, forms_of

__all__ = ["WRONG", "Dataset", "Source", "connect"]

LOG, ROWS = "log", "rows_of_files"
WRONG = "__wrong"
MOST_THREADS = 4
MOST_MEMORY_BYTES = 1_000_000_000


class Dataset(Descriptor):
    """A descriptor that has been checked against its files. Made by `load`."""

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a descriptor and check it against its files.

        Raises:
            DataError: as `Descriptor.read`; or a file is absent or cannot be read, or a named column is absent or of a
                type that cannot be used. The message names the file and the column, `field` is the column.
        """
        dataset, faults, field = cls._read(Path(path))
        found: list[DataError] = []
        if dataset is not None:
            try:
                found = Source(dataset).faults()
            except DataError as error:
                found = [error]
        if faults:
            own = [str(error).removeprefix(f"{path}: ") for error in found]
            raise DataError(told(str(path), [*faults, *own]), field)
        if len(found) == 1:
            raise found[0]
        if found:
            raise DataError(told(str(path), [str(error) for error in found]), found[0].field)
        assert dataset is not None
        return dataset


@dataclass(slots=True)
class _Table:
    """A table of the query, the log or a file that is joined to it, and the values that the query reads of it."""

    name: str
    forms: Sequence[Form]
    read: dict[tuple[str, Reader], str] = field(default_factory=dict)

    def kinds(self, column: str) -> set[str]:
        return {form.kinds[column] for form in self.forms}

    def value(self, column: str, reader: Reader) -> str:
        """The name under which a column's values are found.

        Raises:
            DataError: the column is of a type that cannot be read so.
        """
        for form in self.forms:
            if reader.read("", form.kinds[column]) is None:
                raise DataError(
                    f"{form.paths[0]}: column {column!r} is of type {form.kinds[column]}; {_expected(reader)} expected",
                    column,
                )
        if isinstance(reader, Raw) and len(self.kinds(column)) > 1:
            one, other = self.forms[0], next(f for f in self.forms if f.kinds[column] != self.forms[0].kinds[column])
            raise DataError(
                f"{one.paths[0]}: column {column!r} is {one.kinds[column]}, but {other.kinds[column]} in "
                f"{other.paths[0]}; write both as one type",
                column,
            )
        return self.read.setdefault((column, reader), f"v{len(self.read)}")

    def may_be_wrong(self, column: str, reader: Reader) -> bool:
        return any((found := reader.read("", kind)) is not None and found.wrong for kind in self.kinds(column))

    def sql(self, form: Form, *more: str) -> str:
        """A query of one form: `more`, then the values that are read, and what is wrong with them."""
        selected = list(more)
        for (column, reader), alias in self.read.items():
            expression = reader.read(form.columns[column], form.kinds[column])
            assert expression is not None  # `value` refuses the type
            selected.append(f"{expression.value} AS {alias}")
            if self.may_be_wrong(column, reader):
                selected.append(f"{expression.wrong or 'NULL::VARCHAR'} AS {alias}{WRONG}")
        return f"SELECT {', '.join(selected)} FROM {form.scan()}"


@dataclass(frozen=True, slots=True)
class _Column:
    """A column that the descriptor names, and the table that has it."""

    name: str
    table: _Table

    def exact(self, missing: tuple[str, ...] = ()) -> Exact:
        return Exact(whole=self.table.kinds(self.name) <= WHOLE, missing=missing)


class Source:
    """The files of a data set, as DuckDB sees them."""

    def __init__(self, dataset: Descriptor) -> None:
        self._dataset = dataset
        self._paths = dataset.paths
        self._join_paths = dataset.join_paths
        self._scans: list[str] = []
        self._forms: list[Form] = []
        self._joined_forms: list[list[Form]] = []
        self._joined: list[_Table] = []
        self._faults: list[DataError] = []
        self.columns: dict[str, tuple[str, Path | None]] = {}
        """By NAME of a column NAME__wrong: the file's column, and the file if it is one that was joined."""

    @property
    def paths(self) -> list[Path]:
        """Files of the log; `__file` indexes them."""
        return self._paths

    @property
    def join_paths(self) -> list[Path]:
        return self._join_paths

    def faults(self) -> list[DataError]:
        """What is wrong with columns that the descriptor names, from headers only.

        Raises:
            DataError: a file is absent or cannot be read.
        """
        with connect() as connection:
            try:
                self._query(connection)
            except DataError as error:
                return self._faults or [error]
        return []

    def check_joins(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Read the files to be joined.

        Raises:
            DataError: a key stands in more than one row, or has no exact text.
        """
        self._query(connection)
        for join, path, table in zip(self._dataset.joins, self._join_paths, self._joined, strict=True):
            reader = _Column(join.on, table).exact(MISSING_TEXTS)
            keys = _Table(table.name, table.forms)
            key = keys.value(join.on, reader)
            rows = keys.sql(table.forms[0])
            if keys.may_be_wrong(join.on, reader):
                wrong = connection.execute(
                    f"SELECT {key}{WRONG} FROM ({rows}) WHERE {key}{WRONG} IS NOT NULL LIMIT 1"
                ).fetchone()
                if wrong:
                    raise DataError(f"{path}: column {join.on!r}: {wrong[0]}", join.on)
            repeated = connection.execute(
                f"SELECT {key}, count(*) FROM ({rows}) WHERE {key} IS NOT NULL GROUP BY 1 HAVING count(*) > 1 ORDER BY 1 LIMIT 1"
            ).fetchone()
            if repeated:
                raise DataError(
                    f"{path}: column {join.on!r}: {repeated[0]!r} stands in {repeated[1]} rows; a join needs one row per key",
                    join.on,
                )

    def batches(self, connection: duckdb.DuckDBPyConnection, rows: int) -> pa.RecordBatchReader:
        """The sorted table, in batches of about `rows` rows."""
        query = self._query(connection)
        first, *others = self._scans
        if others:  # one form at a time: DuckDB opens a few dozen files of every scan of a query
            connection.execute(f"CREATE TEMP TABLE gathered AS {first}")
            for scan in others:
                connection.execute(f"INSERT INTO gathered {scan}")
            first = "FROM gathered"
        return connection.sql(f"WITH {ROWS} AS ({first}) {query}").to_arrow_reader(rows)

    def place(self, file: int, row: int) -> str:
        """Words for a row of `batches`, by its `__file` and `__row`."""
        form = next(form for form in self._forms if file in form.numbers)
        at = form.numbers.index(file)
        if form.counts_on and at:
            with connect() as connection:
                (earlier,) = connection.sql(f"SELECT count(*) FROM {form.scan(at)}").fetchall()[0]
            row -= earlier
        return f"{self._paths[file]}, row {row + 1}"

    def time_text(self, file: int, row: int) -> tuple[str, bool]:
        """The time of a row of `batches` as its file has it, by `__file` and `__row`; and whether it is a number in a unit."""
        column = self._dataset.time.column
        form = next(form for form in self._forms if file in form.numbers)
        rows = f"SELECT CAST({form.columns[column]} AS VARCHAR) AS said, {form.file} AS at_file, {form.row} AS at_row FROM {form.scan()}"
        with connect() as connection:
            found = connection.execute(
                f"SELECT said FROM ({rows}) WHERE at_file = {file} AND at_row = {row}"
            ).fetchone()
        return str(found[0] if found else None), Clock.has_unit(form.kinds[column])

    def _read_headers(self, connection: duckdb.DuckDBPyConnection) -> None:
        if not self._forms:
            self._forms = forms_of(connection, self._paths)
            self._joined_forms = [forms_of(connection, [path]) for path in self._join_paths]

    def _query(self, connection: duckdb.DuckDBPyConnection) -> str:
        """The query over a table `ROWS`, which holds what `_scans` give."""
        data = self._dataset
        self._read_headers(connection)
        self._faults = []
        log = _Table(LOG, self._forms)
        self._joined = [_Table(f"j{i}", forms) for i, forms in enumerate(self._joined_forms)]
        columns = self._resolve(log, self._joined)
        wrong = self._wrong_types(log, columns)
        self._faults += wrong
        if self._faults:
            raise self._faults[0]
        self.columns = {}
        selected: list[str] = []

        def select(name: str, column: _Column, reader: Reader) -> str:
            value = f"{column.table.name}.{column.table.value(column.name, reader)}"
            selected.append(f"{value} AS {name}")
            if column.table.may_be_wrong(column.name, reader):
                selected.append(f"{value}{WRONG} AS {name}{WRONG}")
                joined = column.table is not log
                self.columns[name] = (column.name, column.table.forms[0].paths[0] if joined else None)
            return value

        time = log.value(data.time.column, Clock(data.time.unit))
        select("__time", columns[data.time.column], Clock(data.time.unit))
        select("__label", columns[data.label.column], Label())
        for name, column in (("__probability", data.probability_column), ("__weight", data.weight_column)):
            if column:
                select(name, columns[column], Number())
        request = "NULL::BIGINT"
        if data.request:
            request = select("__request", columns[data.request], columns[data.request].exact(MISSING_TEXTS))
        if data.routing_key:
            select("__routing", columns[data.routing_key], columns[data.routing_key].exact(MISSING_TEXTS))
        for number, spec in enumerate(data.fields):
            select(f"f{number}", columns[spec.name], _reader(spec, columns[spec.name]))
        unique = []
        for number, name in enumerate(data.drop_duplicates):
            plain = all(Exact().read("", kind) is not None for kind in log.kinds(name))
            unique.append(select(f"__unique{number}", columns[name], columns[name].exact() if plain else Raw()))
        matches = [self._match(n, columns, select) for n in range(len(data.joins))]
        selected += [f"j{i}.__hit IS NOT NULL AS __hit{i}" for i in range(len(matches))]
        joins = [
            f"LEFT JOIN ({table.sql(table.forms[0], 'true AS __hit')}) AS {table.name} ON {match}"
            for table, match in zip(self._joined, matches, strict=True)
        ]

        self._scans = [log.sql(form, f"{form.file} AS __file", f"{form.row} AS __row") for form in log.forms]
        rows = ROWS
        if unique:
            order = f"PARTITION BY {', '.join(unique)} ORDER BY {time}, __file, __row"
            rows = f"(SELECT * FROM {ROWS} AS {LOG} QUALIFY row_number() OVER ({order}) = 1)"
        first = f"min({LOG}.{time}) OVER (PARTITION BY {request})" if data.request else f"{LOG}.{time}"
        selected += [f"{first} AS __first", f"{LOG}.__file AS __file", f"{LOG}.__row AS __row"]
        order = f"(__time IS NULL) DESC, __first, {'__request, ' if data.request else ''}__time, __file, __row"
        return f"SELECT {', '.join(selected)} FROM {rows} AS {LOG} {' '.join(joins)} ORDER BY {order}"

    def _wrong_types(self, log: _Table, columns: dict[str, _Column]) -> list[DataError]:
        """Columns of types that cannot be read as the descriptor says; of one column once."""
        data = self._dataset
        readers: list[tuple[str, Reader]] = [(data.time.column, Clock(data.time.unit)), (data.label.column, Label())]
        readers += [(name, Number()) for name in (data.probability_column, data.weight_column) if name]
        readers += [(name, Exact()) for name in (data.request, data.routing_key) if name]
        found: dict[str, DataError] = {}
        for name, reader in readers:
            if name in columns:
                _try(columns[name], reader, found)
        for spec in data.fields:
            if spec.name in columns:
                _try(columns[spec.name], _reader(spec, columns[spec.name]), found)
        return list(found.values())

    def _match(self, number: int, columns: dict[str, _Column], select: Callable[[str, _Column, Reader], str]) -> str:
        """The condition under which rows of a join belong together."""
        join, table = self._dataset.joins[number], self._joined[number]
        column, own = columns[join.on], _Column(join.on, table)
        left, right = column.exact(MISSING_TEXTS), own.exact(MISSING_TEXTS)
        if left.whole != right.whole:
            left = right = Exact(missing=MISSING_TEXTS)
        return f"{select(f'__key{number}', column, left)} = {table.name}.{table.value(join.on, right)}"

    def _resolve(self, log: _Table, joined: list[_Table]) -> dict[str, _Column]:
        """The source of each column that the descriptor names, by name."""
        data = self._dataset
        found: dict[str, list[_Table]] = {name: [log] for name in log.forms[0].kinds}
        resolved: dict[str, _Column] = {}

        def resolve(name: str, said_in: str, *, log_only: bool = False) -> None:
            try:
                find(name, said_in, log_only)
            except DataError as error:
                if str(error) not in map(str, self._faults):
                    self._faults.append(error)

        def find(name: str, said_in: str, log_only: bool) -> None:
            places = [table for table in found.get(name, ()) if not log_only or table is log]
            if not places or places[0] is log:
                for form in log.forms:
                    if name not in form.kinds:
                        raise _absent(form, name, said_in, joined if not log_only else [])
            if len(places) > 1:
                raise DataError(
                    f"{data.path}: {said_in}: column {name!r} is in "
                    f"{' and in '.join(str(t.forms[0].paths[0]) for t in places)}; rename one of the two, so that it is "
                    "clear which is meant",
                    name,
                )
            resolved[name] = _Column(name, places[0])

        resolve(data.time.column, "time", log_only=True)
        resolve(data.label.column, "label", log_only=True)
        if data.request:
            resolve(data.request, "request", log_only=True)
        if data.probability_column:
            resolve(data.probability_column, "sampling", log_only=True)
        if data.weight_column:
            resolve(data.weight_column, "sample_weight", log_only=True)
        for name in data.drop_duplicates:
            resolve(name, "drop_duplicates", log_only=True)
        for number, (join, table) in enumerate(zip(data.joins, joined, strict=True)):
            resolve(join.on, f"joins.{number}.on")
            kinds = table.forms[0].kinds
            if join.on not in kinds:
                self._faults.append(_absent(table.forms[0], join.on, f"joins.{number}.on", []))
            for name in kinds:
                if name != join.on:
                    found.setdefault(name, []).append(table)
        if data.routing_key:
            resolve(data.routing_key, "routing_key")
        for spec in data.fields:
            resolve(spec.name, "fields")
        return resolved


def _reader(spec: DataField, column: _Column) -> Reader:
    if spec.kind == "number":
        return Number(spec.missing_texts)
    return Bag(spec.separator or "") if spec.kind == "bag" else column.exact()


def _try(column: _Column, reader: Reader, found: dict[str, DataError]) -> None:
    try:
        _Table(column.table.name, column.table.forms).value(column.name, reader)
    except DataError as error:
        found.setdefault(column.name, error)


def _expected(reader: Reader) -> str:
    if isinstance(reader, Clock):
        return "numbers or timestamps were"
    if isinstance(reader, Bag):
        return "text or a list of values was"
    return "integers, floats, booleans or text were"


def _absent(form: Form, name: str, said_in: str, joined: list[_Table]) -> DataError:
    elsewhere = "".join(f", nor has {table.forms[0].paths[0].name}" for table in joined)
    there = ", ".join(sorted(form.kinds)) or "none"
    return DataError(
        f"{form.paths[0]}: there is no column {name!r} (named in {said_in}){elsewhere}; it has {there}", name
    )


def connect(memory: str = "", spill: Path | None = None, spill_bytes: int = 0) -> duckdb.DuckDBPyConnection:
    """A private DuckDB that may use `memory` before it spills to a directory; by default half of what this process may
    still take, and `MOST_MEMORY_BYTES` at most. `spill_bytes`: of the directory, at most; without one nothing is spilled."""
    config: dict[str, Any] = {
        "memory_limit": memory or f"{min(MOST_MEMORY_BYTES, available_bytes() // 2) // 1000}KB",
        "threads": min(MOST_THREADS, cores().amount),
        "autoinstall_known_extensions": False,
        "preserve_insertion_order": True,
    }
    config["temp_directory"] = "" if spill is None else str(spill)
    if spill is not None:
        config["max_temp_directory_size"] = f"{spill_bytes // 1000}KB"
    return duckdb.connect(config=config)
