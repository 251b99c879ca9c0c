"""Positions of readers of the labelled log: a small file for each, which its reader alone writes.

They are not in the labels, so that a reader never waits for the join, which writes there without a pause when it is behind.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from pipeline.disk import replacing, writing

__all__ = ["Readers"]


class Readers:
    """Positions by reader, in a folder that is created with the first."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def commit(self, reader: str, seq: int) -> None:
        """Store how far a reader is; it never goes back.

        Raises:
            NotReady: the disk is full or failing; the earlier position stays.
        """
        if seq > self.position(reader) or not self._path(reader).exists():
            with writing(self._path(reader)), replacing(self._path(reader)) as staging:
                staging.write_text(str(seq))

    def position(self, reader: str) -> int:
        """Position of a reader, 0 if it never committed one."""
        return _read(self._path(reader)) or 0

    def slowest(self) -> int | None:
        """Position of the slowest reader that ever committed one."""
        found = self._folder.iterdir() if self._folder.is_dir() else ()
        places = [_read(path) for path in found if not path.name.startswith(".")]
        return min((place for place in places if place is not None), default=None)

    def _path(self, reader: str) -> Path:
        return self._folder / f"reader-{quote(reader, safe='')}"


def _read(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except FileNotFoundError:
        return None
