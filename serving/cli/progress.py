"""Progress bar of long work, on stderr; a plain line where there is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskProgressColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from serving.cli.drawing import shown
from serving.cli.output import console, say

__all__ = ["bar", "rows_progress"]

_COLUMNS: dict[str, type[ProgressColumn]] = {
    "bar": BarColumn,
    "count": MofNCompleteColumn,
    "elapsed": TimeElapsedColumn,
    "left": TimeRemainingColumn,
    "percent": TaskProgressColumn,
    "spinner": SpinnerColumn,
}


class _Words(ProgressColumn):
    """Words about a task, filled into a pattern of ours."""

    def __init__(self, pattern: str) -> None:
        super().__init__()
        self._pattern = pattern

    def render(self, task: Task) -> Text:
        """The words now."""
        return shown(self._pattern.format(task=task))


def bar(*columns: str, transient: bool = False) -> Progress:
    """Progress on stderr. `columns`: bar, count, elapsed, left, percent, spinner, or a pattern such as `{task.description}`."""
    made = (_COLUMNS[column]() if column in _COLUMNS else _Words(column) for column in columns)
    return Progress(*made, console=console, transient=transient)


@contextmanager
def rows_progress(title: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """Show how many of `total` rows are done; yields the function to call with (done, total)."""
    if not sys.stderr.isatty():
        say(f"{title}: {total:,} rows ...")
        yield lambda done, of: None
        return
    with bar("spinner", "{task.description}", "bar", "count", "rows", "elapsed", "left") as progress:
        task = progress.add_task(title, total=total)
        yield lambda done, of: progress.update(task, completed=done, total=of)
