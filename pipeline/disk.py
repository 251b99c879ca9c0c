"""Writing to disks: what must survive a crash, and what is said when a disk is full."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from pipeline.errors import NotReady

__all__ = ["sync", "writing"]


def sync(path: Path) -> None:
    """Have a file's or folder's content on disk before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def writing(what: Path) -> Iterator[None]:
    """Tell of a disk that is full or fails while something is written.

    Raises:
        NotReady: in place of the system's error; it can be tried again.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise NotReady(f"{what} cannot be written: {reason}; nothing is left of it, and it is tried again") from error
