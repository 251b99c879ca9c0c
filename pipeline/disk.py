"""Writing to disks: what must survive a crash, and what is said when a disk is full."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from pipeline.errors import NotReady

__all__ = ["replacing", "sync", "writing"]


def sync(path: Path) -> None:
    """Have a file's or folder's content on disk before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A new file beside `path`, which takes its place when the block ends well: readers see the old content or the new.

    Args:
        durable: on disk before it takes the place, and the name with it, so that a crash loses neither.

    Raises:
        OSError: what was there before stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield staging
        if durable:
            sync(staging)
        os.replace(staging, path)
        if durable:
            sync(path.parent)
    finally:
        staging.unlink(missing_ok=True)


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
