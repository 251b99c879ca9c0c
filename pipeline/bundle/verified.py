"""Cache of verified files, kept until reboot. A file whose inode, size and times are unchanged is not hashed again.

A note names boot, device, inode, size and times of each file. Until the next boot the file's pages come from the same
page cache, so a second reading would find nothing new. A file that was written to, replaced or moved is verified again.
"""

from __future__ import annotations

import fcntl
import json
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path

__all__ = ["NOTES", "verify_once"]

NOTES = ".verified"
"""Folder of a bundle's notes, beside its segments; both belong to one machine."""


def verify_once(note: Path, files: Iterable[Path], verify: Callable[[], None]) -> None:
    """Run `verify` unless it has passed on these files since the machine started.

    One process verifies; the others wait for it and use its result. Where no note can be written (a full disk, a folder
    of another user) every call verifies.

    Raises:
        OSError: a file is gone. Also what `verify` raises; then nothing is noted.
    """
    files = list(files)
    try:
        kept = open(note, "a+b", buffering=0)  # noqa: SIM115 - closed below
    except OSError:
        verify()
        return
    with kept:
        fcntl.flock(kept, fcntl.LOCK_EX)
        # Taken before the files are read: a file that changes meanwhile does not match.
        identity = _identity(files)
        kept.seek(0)
        if kept.read() == identity:
            return
        verify()
        with suppress(OSError):
            kept.truncate(0)
            kept.write(identity)


def _identity(files: Iterable[Path]) -> bytes:
    found = {}
    for file in files:
        status = file.stat()
        found[str(file)] = [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    return json.dumps([_boot(), found]).encode()


@cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return uuid.uuid4().hex  # unknown: good for this process alone
