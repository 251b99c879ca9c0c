"""Claim of a lane's folder: one process writes in it.

The kernel holds the lock (flock) and drops it when its holder ends, however that ends.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from pipeline.errors import NotReady

__all__ = ["Claim", "lane_folder"]

_LANES_COUNT = 1 << 16


def lane_folder(root: Path, number: int) -> Path:
    """Folder of a lane."""
    return root / str(number)


class Claim:
    """The right to write in a lane's folder, from `take` to `release`."""

    def __init__(self, number: int, folder: Path, handle: int) -> None:
        self.number = number
        self.folder = folder
        self._handle = handle

    @classmethod
    def take(cls, root: Path, preferred: int) -> Claim:
        """Claim the preferred folder, or the next one that no process holds; it is created if absent.

        Raises:
            NotReady: the folder cannot be created, or there is none left.
        """
        for number in range(preferred, _LANES_COUNT):
            folder = lane_folder(root, number)
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                handle = os.open(folder / "lane.lock", os.O_RDWR | os.O_CREAT, 0o600)
            except OSError as error:
                raise NotReady(f"traffic log {folder} cannot be opened: {error.strerror}") from error
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
            except OSError as error:
                os.close(handle)
                raise NotReady(f"traffic log {folder} cannot be locked: {error.strerror}") from error
            else:
                return cls(number, folder, handle)
        raise NotReady(f"traffic log {root}: other processes hold every lane from {preferred} on")

    def release(self) -> None:
        """Let another process have the folder."""
        os.close(self._handle)
