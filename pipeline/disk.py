"""Files that survive a crash, and the error of a full disk, of SQLite's files too."""

from __future__ import annotations

import os
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from pipeline.errors import NotReady

__all__ = ["asking", "replacing", "sync", "transaction", "writing"]


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


@contextmanager
def asking(what: str) -> Iterator[None]:
    """Raise NotReady for an SQLite file that is full, locked or fails. `what`: its name in the message."""
    try:
        yield
    except sqlite3.Error as error:
        raise NotReady(f"{what}: {error}") from error


@contextmanager
def transaction(db: sqlite3.Connection, begin: str, end: str, what: str) -> Iterator[None]:
    """A transaction of a connection that commits by itself: from `begin` to `end`, rolled back after any exception.

    Raises:
        NotReady: the first error, not that of the roll-back: SQLite itself has rolled back where the disk is full.
    """
    with asking(what):
        db.execute(begin)
        try:
            yield
            db.execute(end)
        finally:
            if db.in_transaction:
                with suppress(sqlite3.Error):
                    db.execute("ROLLBACK")
