"""Files that survive a crash, and the error of a full disk, of SQLite's files too; copies of such files in use.

Writes that a disk refuses are counted in each process (`refused_writes`), whoever catches their error.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from pipeline.errors import InvalidInput, NotReady

__all__ = [
    "asking",
    "clear_staging",
    "copy_database",
    "counting_refusals",
    "creating",
    "refused_writes",
    "replacing",
    "sync",
    "transaction",
    "writing",
]

_LEFT_S = 3600.0
"""Age at which nobody is at work on a new file any more."""
_REFUSALS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "full"),
    errno.EROFS: "read_only",
    errno.EIO: "failed",
    # SQLite's primary codes, below 0 so that they are no errno.
    -sqlite3.SQLITE_FULL: "full",
    -sqlite3.SQLITE_READONLY: "read_only",
    -sqlite3.SQLITE_IOERR: "failed",
}
_refused = dict.fromkeys(_REFUSALS.values(), 0)
_counting = threading.Lock()


def refused_writes() -> Mapping[str, int]:
    """Writes of this process that a disk has refused, by reason: `full`, `read_only`, `failed`."""
    with _counting:
        return dict(_refused)


@contextmanager
def counting_refusals() -> Iterator[None]:
    """Count the error of a disk that takes no write, once, however many of these blocks it leaves."""
    try:
        yield
    except (OSError, sqlite3.Error, SafetensorError) as error:
        reason = _refusal(error)
        if reason and not getattr(error, "refusal_counted", False):
            error.refusal_counted = True  # type: ignore[union-attr]
            with _counting:
                _refused[reason] += 1
        raise


def _refusal(error: BaseException) -> str:
    if isinstance(error, sqlite3.Error):
        return _REFUSALS.get(-(getattr(error, "sqlite_errorcode", 0) & 0xFF), "")
    if isinstance(error, OSError):
        return _REFUSALS.get(error.errno or 0, "")
    return "full" if "No space left" in str(error) else ""


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
    with counting_refusals():
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
def creating(path: Path) -> Iterator[Path]:
    """Creation of a file that appears whole: a new file beside `path`, which gets that name when the block ends without an
    exception. Where another process was faster, its file stays.

    Raises:
        OSError: nothing is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield staging
        sync(staging)
        try:
            os.link(staging, path)
        except FileExistsError:
            return
        except OSError:  # no hard links here: two processes at the same instant are not told apart
            if not path.exists():
                os.replace(staging, path)
        sync(path.parent)
    finally:
        for end in ("", "-journal", "-wal", "-shm"):
            staging.with_name(f"{staging.name}{end}").unlink(missing_ok=True)


def clear_staging(path: Path) -> None:
    """Removal of what processes that were killed in `creating` have left beside a file: another name of it, or half of one.

    Raises:
        OSError: the folder cannot be written.
    """
    for left in path.parent.glob(f".{path.name}.*"):
        with suppress(FileNotFoundError):
            # Never opened: closing it would take away SQLite's locks of this process on the same file.
            if left.stat().st_mtime < time.time() - _LEFT_S or left.samefile(path):
                left.unlink()


@contextmanager
def writing(what: Path) -> Iterator[None]:
    """Raise NotReady for a disk that is full or fails during a write.

    Raises:
        NotReady: instead of the system's error; the write can be tried again.
    """
    try:
        with counting_refusals():
            yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise NotReady(f"{what} cannot be written: {reason}; nothing is left of it, and it is tried again") from error


@contextmanager
def asking(what: str) -> Iterator[None]:
    """Raise NotReady for an SQLite file that is full, locked or fails. `what`: its name in the message."""
    try:
        with counting_refusals():
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


def copy_database(source: Path, folder: Path) -> None:
    """Copy one state of a database into a folder, also while others write; nothing where there is none.

    Raises:
        InvalidInput: it is damaged. NotReady: it cannot be read, or the disk does not let it be written.
    """
    if not source.exists():
        return
    target = folder / source.name
    try:
        with closing(sqlite3.connect(source, timeout=30.0)) as live, closing(sqlite3.connect(target)) as copy:
            live.backup(copy)
            (mode,) = copy.execute("PRAGMA journal_mode=DELETE").fetchone()
            (verdict,) = copy.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        raise NotReady(f"{source} cannot be copied: {error}") from error
    if verdict != "ok" or mode != "delete":
        raise InvalidInput(f"{source} is damaged ({verdict}): bring back an earlier backup", "home")
    target.chmod(0o600)
    sync(target)
