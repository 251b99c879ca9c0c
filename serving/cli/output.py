"""Output of the command line: tables for people, one JSON object for programs, errors on stderr.

Exit codes: 0 done, 1 refused or failed, 2 usage.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from pipeline.errors import BatonError
from serving.runtime.endings import note_ending

__all__ = ["CommandLine", "Output", "console", "emit", "say", "show_table"]

console = Console(stderr=True)
PLAIN_COLUMNS = 160
"""Width of a table that goes to a file or another program."""


class Output(StrEnum):
    """Value of `-o`."""

    table = "table"
    json = "json"


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table on stdout; numbers are right-aligned, None is a dash."""
    out = Console() if sys.stdout.isatty() else Console(width=PLAIN_COLUMNS)
    if title:
        out.print(title, style="bold", highlight=False)
    table = Table(header_style="bold")
    rows = [list(row) for row in rows]
    for number, column in enumerate(columns):
        numeric = all(
            isinstance(row[number], (int, float, type(None))) and not isinstance(row[number], bool) for row in rows
        )
        table.add_column(column, justify="right" if numeric and rows else "left")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    out.print(table)


def say(text: str) -> None:
    """Print one line for people on stderr; it is not wrapped, so that it can be searched."""
    console.print(text, highlight=False, soft_wrap=True)


def emit(output: Output, data: Any, title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print `data` as JSON or `rows` as a table."""
    if output is Output.json:
        sys.stdout.write(json.dumps(data, indent=1, default=str) + "\n")
    else:
        show_table(title, columns, rows)


class CommandLine(TyperGroup):
    """Group of commands that turns an expected error of any of them into one line on stderr and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BatonError as error:
            note_ending(str(error))
            say(f"[red]error:[/red] {escape(str(error))}")
            raise typer.Exit(1) from None


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() else f"{value:.4f}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)
