"""Progress bar of long work, on stderr; a plain line where there is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from serving.cli.output import console, say

__all__ = ["rows_progress"]


@contextmanager
def rows_progress(title: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """Show how many of `total` rows are done; yields the function to call with (done, total)."""
    if not sys.stderr.isatty():
        say(f"{title}: {total:,} rows ...")
        yield lambda done, of: None
        return
    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("rows"),
        TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done, of: progress.update(task, completed=done, total=of)
