"""Folder in memory that the processes of one user share on a machine: it needs no disk, and a boot empties it."""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from pipeline.errors import NotReady

__all__ = ["make_memory_folder", "memory_folder"]

MEMORY_FOLDER = Path("/dev/shm")
"""The same for every process of a machine, whatever its TMPDIR."""


def memory_folder(user: int) -> Path:
    """Where a user's folder is, made or not."""
    base = MEMORY_FOLDER if os.access(MEMORY_FOLDER, os.W_OK) else Path(tempfile.gettempdir())
    return base / f"baton-{user}"


def make_memory_folder(user: int) -> Path:
    """A user's folder, for that user alone; root makes it for others.

    Raises:
        NotReady: it cannot be made, or belongs to another user.
    """
    folder = memory_folder(user)
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        with suppress(PermissionError):
            os.chown(folder, user, -1, follow_symlinks=False)
        found = folder.lstat()
    except OSError as error:
        raise NotReady(f"{folder} cannot be made: {error.strerror}") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != user:
        raise NotReady(f"{folder} belongs to another user")
    return folder
