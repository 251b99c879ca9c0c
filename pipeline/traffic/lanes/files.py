"""Record files of a lane: their names, the one that is appended to, and those that a reader has open.

They know bytes and offsets, not what a frame means (`frames`) nor which frames count (`index`).
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pipeline.disk import sync
from pipeline.forks import ProcessLock

__all__ = ["OpenFiles", "RecordFile", "file_numbers", "file_path", "write_all"]

_PARTS_COUNT = 1024  # of one call, on every system of today
_OPEN_ENTRIES = 64


def file_path(folder: Path, number: int) -> Path:
    """Path of a record file in its lane's folder."""
    return folder / f"{number:08d}.log"


def file_numbers(folder: Path) -> list[int]:
    """Numbers of the record files that are in a lane's folder."""
    return sorted(int(path.stem) for path in folder.glob("*.log") if path.stem.isdecimal())


def write_all(handle: int, parts: Sequence[bytes], offset: int) -> None:
    """Write parts one after the other from an offset on; all of them or an OSError."""
    for start in range(0, len(parts), _PARTS_COUNT):
        some = parts[start : start + _PARTS_COUNT]
        size = sum(map(len, some))
        written = os.pwritev(handle, some, offset)
        if written < size:  # the disk has become full on the way: the next call says so
            rest = memoryview(b"".join(some))
            while written < size:
                written += os.pwrite(handle, rest[written:], offset + written)
        offset += size


class RecordFile:
    """The file that a lane appends to.

    Args:
        end: offset of the first byte that the lane's index does not know; everything from there on is cut off.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, folder: Path, number: int, begun_ms: int, end: int = 0) -> None:
        self.path = file_path(folder, number)
        self.number = number
        self.begun_ms = begun_ms
        self._dirty = True  # also what another process left, which may not be on the disk yet
        self._new = end == 0
        self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(self._handle, end)
        except BaseException:
            os.close(self._handle)
            raise

    def write(self, parts: Sequence[bytes], at: int) -> None:
        """Write at an offset, over what is there. Raises: OSError: a part of it may be there."""
        self._dirty = True
        write_all(self._handle, parts, at)

    def cut(self, end: int) -> None:
        """Take back what was written from an offset on, if the disk allows it: else the next append overwrites it."""
        with suppress(OSError):
            os.ftruncate(self._handle, end)

    def flush(self) -> None:
        """Bring what was written to disk, if anything was since the last time. Raises: OSError."""
        if not self._dirty:
            return
        self._dirty = False
        try:
            os.fdatasync(self._handle)
            if self._new:
                sync(self.path.parent)
                self._new = False
        except OSError:
            self._dirty = True
            raise

    def close(self) -> None:
        """Release it."""
        os.close(self._handle)


class OpenFiles:
    """Record files open for reading: the few that were read last."""

    def __init__(self, what: str) -> None:
        self._lock = ProcessLock(what)
        self._handles: OrderedDict[Path, int] = OrderedDict()

    def read(self, path: Path, offset: int, size: int) -> bytes:
        """Up to `size` bytes of a file. Raises: OSError; FileNotFoundError also when it was removed since it was opened."""
        with self._lock:
            handle = self._handles.get(path)
            if handle is None:
                handle = self._handles[path] = os.open(path, os.O_RDONLY)
                self._close_some()
            else:
                self._handles.move_to_end(path)
            if not os.fstat(handle).st_nlink:
                os.close(self._handles.pop(path))
                raise FileNotFoundError(f"{path} was removed")
            return os.pread(handle, size, offset)

    def close(self) -> None:
        """Release all of them."""
        with self._lock:
            while self._handles:
                os.close(self._handles.popitem()[1])

    def _close_some(self) -> None:
        """Make room for a file, and let go of those that were removed: their space is free only then."""
        for path, handle in list(self._handles.items()):
            if not os.fstat(handle).st_nlink:
                os.close(self._handles.pop(path))
        while len(self._handles) > _OPEN_ENTRIES:
            os.close(self._handles.popitem(last=False)[1])
