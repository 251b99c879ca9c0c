"""Opening of a bundle's files: regular files inside its directory, of a bounded size.

Who publishes a bundle decides what lies in its directory. A link, a pipe that nobody writes to, a device without an end or
a file larger than it may be is refused before a byte of it is read.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from pipeline.errors import BundleError

__all__ = ["MOST_BYTES", "opened", "read"]

MOST_BYTES = 1 << 50
"""Bound of a file that is mapped or read in pieces."""
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


@contextmanager
def opened(root: Path, name: str, most_bytes: int = MOST_BYTES) -> Iterator[io.BufferedReader]:
    """A file of a directory, open for reading.

    Args:
        name: path inside `root`, with slashes.
        most_bytes: that the file may have.

    Raises:
        BundleError: it is absent, larger, no regular file, or a link is on the way.
    """
    handle = _handle(root, name)
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{root}: {name} is no regular file", name)
        if status.st_size > most_bytes:
            raise BundleError(f"{root}: {name} has {status.st_size:,} bytes; at most {most_bytes:,} are read", name)
        with open(handle, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(handle)


def read(root: Path, name: str, most_bytes: int) -> bytes:
    """The bytes of a file; arguments and errors as of `opened`."""
    with opened(root, name, most_bytes) as file:
        found = file.read(most_bytes + 1)
    if len(found) > most_bytes:  # it grew meanwhile
        raise BundleError(f"{root}: {name} has more than {most_bytes:,} bytes", name)
    return found


def _handle(root: Path, name: str) -> int:
    """An open file descriptor, reached folder by folder without following a link below `root`."""
    *folders, last = PurePosixPath(name).parts or ("",)
    at = -1
    try:
        at = os.open(root, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
        for folder in folders:
            inside = os.open(folder, _FLAGS | os.O_DIRECTORY, dir_fd=at)
            os.close(at)
            at = inside
        return os.open(last, _FLAGS, dir_fd=at)
    except FileNotFoundError:
        raise BundleError(f"{root}: {name} is not there", name) from None
    except OSError as error:
        raise BundleError(f"{root}: {name} is no regular file inside it: {error.strerror}", name) from None
    finally:
        if at >= 0:
            os.close(at)
