"""Files that survive a crash, and the error of a full disk."""

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
    """Flush the content of a file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Replacement of a file: a new file beside `path` that is renamed to it when the block ends without an exception.

    Readers see the old content or the new one.

    Args:
        durable: flush the content before the rename and the folder after it, so that a crash loses neither.

    Raises:
        OSError: the old content stays.
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
    """Raise NotReady for a disk that is full or fails during a write.

    Raises:
        NotReady: instead of the system's error; the write can be tried again.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise NotReady(f"{what} cannot be written: {reason}; nothing is left of it, and it is tried again") from error
