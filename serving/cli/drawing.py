"""What a terminal draws: tables, blocks of them, and views that are drawn again in place.

Rich is told nothing but `Text`, so no text of others is taken for markup.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from serving.runtime.visible import visible

__all__ = ["CELL_LETTERS", "Drawing", "live", "shown", "stacked", "table_of"]

Drawing = RenderableType

CELL_LETTERS = 1000
"""Longest text of a cell; `-o json` has it whole."""


def shown(text: str, style: str = "") -> Text:
    """Text of others as it is, on one line."""
    return Text(visible(text), style)


def table_of(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Collection[int] = (), bold: int | None = None
) -> Drawing:
    """A table of texts, none of which is lost where it is narrow. `right`: columns of figures; `bold`: a row to stand out."""
    table = Table(header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(shown(column), justify="right" if number in right else "left", overflow="fold")
    for number, row in enumerate(rows):
        cells = (Text(visible(cell, CELL_LETTERS)) for cell in row)
        table.add_row(*cells, style="bold" if number == bold else None)
    return table


def stacked(*parts: Drawing) -> Drawing:
    """Parts below each other."""
    return Group(*parts)


def live(console: Console | None = None, draw: Callable[[], Drawing] | None = None) -> Live:
    """A view that is drawn in place, on stdout by default: twice a second what `draw` gives, or what it is told to show."""
    if draw is None:
        return Live(console=console, auto_refresh=False)
    return Live(console=console, refresh_per_second=2, get_renderable=draw)
