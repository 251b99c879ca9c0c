"""Columns of a log's files as SQL: what a value of each type becomes, and which values cannot become anything.

A value that names something (an id, a request, a key) becomes its exact text, by the rule of `pipeline.hashing.canonical`,
before files are united: files may differ in types, and no value is cast to the type of another file. Whole numbers stay
numbers where all files hold them. NULL is missing. This file knows neither files nor the query: `source.py` puts both
together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from pipeline.hashing import EXACT_BELOW
from pipeline.traffic.plausible import UNITS_NS

__all__ = ["DECIMAL_256", "HALF", "Bag", "Clock", "Exact", "Expression", "Label", "Number", "Raw", "Reader", "literal", "quoted"]  # fmt: skip

WHOLE = frozenset({"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER"})
"""Whole numbers that a signed 64-bit integer holds."""
INTEGERS = WHOLE | {"UBIGINT"}
HALF, DECIMAL_256 = "HALF", "DECIMAL256"
"""Types that DuckDB reads as wider or narrower floats, by names of our own."""
_FLOATS = {"DOUBLE": EXACT_BELOW[64], "FLOAT": EXACT_BELOW[32], HALF: EXACT_BELOW[16]}
_TIMESTAMPS = frozenset({"TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS", "TIMESTAMP WITH TIME ZONE"})
_TEXTS = frozenset({"VARCHAR", "JSON", "UUID"})
_NOTHING = '"NULL"'  # DuckDB's name of a column that holds nulls alone


@dataclass(frozen=True, slots=True)
class Expression:
    """SQL of a value, and of what is wrong with it as text, NULL where nothing is; "": nothing can be."""

    value: str
    wrong: str = ""


class Reader(Protocol):
    """One way to read a column, which gives values of one type whatever the types of the files are."""

    def read(self, value: str, kind: str) -> Expression | None:
        """The SQL for a value of DuckDB's type `kind`; None: this type cannot be read so."""


@dataclass(frozen=True, slots=True)
class Exact:
    """Reader of values that name something: their exact text; or whole numbers, where all files hold `whole` ones.

    Args:
        missing: texts that mean that there is none; texts alone, not numbers.
    """

    whole: bool = False
    missing: tuple[str, ...] = ()

    def read(self, value: str, kind: str) -> Expression | None:
        if kind in WHOLE and self.whole:
            return Expression(f"CAST({value} AS BIGINT)")
        found = _text(value, kind)
        if found is None:
            return None
        return Expression(_without(found.value, ("", *self.missing)), found.wrong)


@dataclass(frozen=True, slots=True)
class Bag:
    """Reader of bags: text with separators, or a list, which becomes such text."""

    separator: str

    def read(self, value: str, kind: str) -> Expression | None:
        if not kind.endswith("[]"):
            return Exact().read(value, kind)
        element = _text("e", kind.removesuffix("[]"))
        if element is None:
            return None
        separator = literal(self.separator)
        texts = f"list_transform({value}, lambda e: coalesce({element.value}, ''))"
        faults = [
            f"CASE WHEN contains({element.value}, {separator}) THEN {element.value} || ' holds the separator' END"
        ]
        faults += [element.wrong] if element.wrong else []
        first = (
            f"list_filter(list_transform({value}, lambda e: coalesce({', '.join(faults)})), lambda w: w IS NOT NULL)[1]"
        )
        return Expression(f"nullif(array_to_string({texts}, {separator}), '')", first)


@dataclass(frozen=True, slots=True)
class Label:
    """Reader of labels: text, in which numbers may have been rounded."""

    def read(self, value: str, kind: str) -> Expression | None:
        if kind in _FLOATS or kind == DECIMAL_256:
            return Expression(f"CAST(CAST({value} AS DOUBLE) AS VARCHAR)")
        return Exact().read(value, kind)


@dataclass(frozen=True, slots=True)
class Number:
    """Reader of numbers as doubles.

    Args:
        missing: texts that mean that there is none.
    """

    missing: tuple[str, ...] = ()

    def read(self, value: str, kind: str) -> Expression | None:
        if kind in INTEGERS | set(_FLOATS) | {"BOOLEAN", DECIMAL_256, _NOTHING} or kind.startswith("DECIMAL"):
            return Expression(f"CAST({value} AS DOUBLE)")
        if kind not in ("VARCHAR", "JSON", "BLOB"):
            return None
        decoded = (
            f"coalesce(TRY(decode({value})), '\\x' || hex({value}))" if kind == "BLOB" else f"CAST({value} AS VARCHAR)"
        )
        text = _without(f"trim({decoded})", ("", *self.missing))
        parsed = f"TRY_CAST({text} AS DOUBLE)"
        return Expression(parsed, f"CASE WHEN {parsed} IS NULL THEN '''' || {text} || ''' is not a number' END")


@dataclass(frozen=True, slots=True)
class Clock:
    """Reader of times as microseconds since 1970, null where a value is missing, does not parse or is out of range."""

    unit: str

    @staticmethod
    def has_unit(kind: str) -> bool:
        """Whether values of a type are numbers in some unit; a timestamp knows its own."""
        return kind not in _TIMESTAMPS

    def read(self, value: str, kind: str) -> Expression | None:
        factor = UNITS_NS[self.unit] // 1000
        if not self.has_unit(kind):
            return Expression(f"epoch_us({value})")
        if kind in INTEGERS:
            whole = f"TRY_CAST({value} AS BIGINT)"
            return Expression(f"TRY({whole} * {factor})" if factor else f"{whole} // 1000")
        if kind in _FLOATS or kind == "VARCHAR" or kind.startswith("DECIMAL"):
            # A double holds microseconds since 1970 exactly until the year 2255.
            return Expression(f"TRY_CAST(round(TRY_CAST({value} AS DOUBLE) * {factor or 0.001}) AS BIGINT)")
        return None


@dataclass(frozen=True, slots=True)
class Raw:
    """Reader of values of any type, which must be the same in all files."""

    def read(self, value: str, kind: str) -> Expression | None:
        return Expression(value)


def _text(value: str, kind: str) -> Expression | None:
    """The canonical text of a value that names something; None for types without one."""
    if kind in INTEGERS:
        return Expression(f"CAST({value} AS VARCHAR)")
    if kind in _FLOATS:
        return _float_text(value, kind)
    if kind == "BOOLEAN":
        return Expression(f"CASE WHEN {value} THEN '1' WHEN NOT {value} THEN '0' END")
    if kind in _TEXTS:
        return Expression(value if kind == "VARCHAR" else f"CAST({value} AS VARCHAR)")
    if kind == _NOTHING:
        return Expression("NULL::VARCHAR")
    if kind == "BLOB":
        decoded = f"TRY(decode({value}))"
        wrong = f"CASE WHEN {decoded} IS NULL THEN '0x' || hex({value}) || ' is not UTF-8 text' END"
        return Expression(decoded, wrong)
    if kind.startswith("DECIMAL("):
        digits = f"CAST({value} AS VARCHAR)"
        if not kind.endswith(",0)"):
            digits = f"rtrim(rtrim({digits}, '0'), '.')"
        return Expression(f"CASE WHEN {value} = 0 THEN '0' ELSE {digits} END")
    return None


def _float_text(value: str, kind: str) -> Expression:
    limit = _FLOATS[kind]
    wide = f"CAST({value} AS DOUBLE)"
    inexact = f"(NOT isnan({wide}) AND abs({wide}) >= {limit})"
    text = (
        f"CASE WHEN isnan({wide}) OR {inexact} THEN NULL WHEN {wide} = trunc({wide}) "
        f"THEN CAST(TRY_CAST({wide} AS BIGINT) AS VARCHAR) ELSE CAST({wide} AS VARCHAR) END"
    )
    why = literal(
        f" is a float of type {kind}, which is exact below {limit} (2^{limit.bit_length() - 1}) only; write the column as integers "
        "or text"
    )
    return Expression(text, f"CASE WHEN {inexact} THEN CAST({wide} AS VARCHAR) || {why} END")


def _without(text: str, missing: Iterable[str]) -> str:
    first, *others = missing
    if not others:
        return f"nullif({text}, {literal(first)})"
    return f"CASE WHEN {text} NOT IN ({', '.join(map(literal, (first, *others)))}) THEN {text} END"


def quoted(name: str) -> str:
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"
