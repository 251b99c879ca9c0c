"""Output of the command line: tables for people, one JSON object for programs, errors on stderr.

The one door to the terminal; `drawing` and `progress` are its parts that know rich. Texts of others (reasons, names,
manifests, messages of servers) are shown as they are: as text and never as markup, with control characters as escapes.

Exit codes: 0 done, 1 refused or failed, 2 usage.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from types import TracebackType
from typing import Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from pipeline.errors import BatonError
from serving.cli.drawing import shown, table_of
from serving.runtime.endings import note_ending
from serving.runtime.logs import PlainLines
from serving.runtime.process import private_files
from serving.runtime.visible import visible

__all__ = ["CommandLine", "Output", "console", "emit", "line", "print_json", "say", "show_table", "working"]

console = Console(stderr=True)
PLAIN_COLUMNS = 160
"""Width of a table that goes to a file or another program."""
LINE_LETTERS = 8000
"""Longest line for people."""


class Output(StrEnum):
    """Value of `-o`."""

    table = "table"
    json = "json"


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table on stdout; numbers are right-aligned, None is a dash."""
    out = Console() if sys.stdout.isatty() else Console(width=PLAIN_COLUMNS)
    if title:
        out.print(shown(title, "bold"))
    rows = [list(row) for row in rows]
    right = [
        number
        for number in range(len(columns))
        if rows and all(isinstance(row[number], (int, float, type(None))) and not isinstance(row[number], bool) for row in rows)
    ]  # fmt: skip
    out.print(table_of(columns, ([_cell(value) for value in row] for row in rows), right=right))


def say(text: str, *, lead: str = "") -> None:
    """Print one line for people on stderr; it is not wrapped, so that it can be searched. `lead`: in red before it."""
    words = Text.assemble((lead, "red"), " " if lead else "", visible(text, LINE_LETTERS))
    console.print(words, soft_wrap=True)


def line(text: str) -> None:
    """Print one line on stdout, without a style and never wrapped."""
    sys.stdout.write(visible(text) + "\n")
    sys.stdout.flush()


def print_json(data: Any, indent: int | None = None) -> None:
    """Print JSON on stdout; every character beyond ASCII, and every control character, is an escape of JSON."""
    sys.stdout.write(json.dumps(data, indent=indent, default=str) + "\n")
    sys.stdout.flush()


def emit(output: Output, data: Any, title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print `data` as JSON or `rows` as a table."""
    if output is Output.json:
        print_json(data, indent=1)
    else:
        show_table(title, columns, rows)


@contextmanager
def working(text: str) -> Iterator[None]:
    """Show on stderr what is being waited for."""
    with console.status(shown(text)):
        yield


class CommandLine(TyperGroup):
    """Group of commands that turns an expected error of any of them into one line on stderr and exit code 1.

    What a command writes is for its user alone, whatever the umask of the shell.
    """

    def make_context(self, *arguments: Any, **extra: Any) -> Any:
        with _usage_errors_visible():
            return super().make_context(*arguments, **extra)

    def invoke(self, ctx: Any) -> Any:
        _make_output_safe()
        mask = private_files()
        try:
            with _usage_errors_visible():
                return super().invoke(ctx)
        except BatonError as error:
            note_ending(str(error))
            # One line, for a name in it may have ends of lines of its own; several faults of a file stand side by side.
            say(re.sub(r"\s*\n\s*", "; ", str(error)).replace(":; ", ": "), lead="error:")
            raise typer.Exit(1) from None
        finally:
            os.umask(mask)


@contextmanager
def _usage_errors_visible() -> Iterator[None]:
    """Typer prints its errors itself: what they quote of the command line is made visible."""
    try:
        yield
    except Exception as error:
        if hasattr(error, "format_message"):  # a ClickException, which Typer has no public name for
            error.message = visible(str(getattr(error, "message", "")), LINE_LETTERS)  # type: ignore[attr-defined]
        raise


def _make_output_safe() -> None:
    """See to it that what libraries log, and an error that nobody expected, is shown like other text."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a letter that the terminal's encoding lacks is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(PlainLines())
    sys.excepthook = _crashed


def _crashed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    for part in "".join(traceback.format_exception(kind, error, trace)).rstrip().split("\n"):
        sys.stderr.write(visible(part, LINE_LETTERS) + "\n")


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
