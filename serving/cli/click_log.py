"""The click log of a `dataset.yaml`, opened for a command: what a person should know of its rows is said first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.schema import Schema
from serving.cli.output import say

if TYPE_CHECKING:
    from transfer.data import Log

__all__ = ["click_log"]


def click_log(data: Path, cache: Path, *, like: Schema | None = None) -> Log:
    """The log that `data` describes; `like` as in `transfer.data.open_log`. Raises: DataError."""
    from transfer.data import open_log

    log = open_log(data, cache, like=like)
    for note in log.notes:
        say(note)
    return log
