"""What was verified, noted until the machine starts again: files that are there as they were are not read a second time.

A note names boot, device, inode, size and times of each file. Until the next boot their pages come from the same page
cache, so reading them again would tell nothing new; a file that was written to, replaced or moved is verified again.
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
"""Folder of a bundle's notes beside its segments, which are this machine's as well."""


def verify_once(note: Path, files: Iterable[Path], verify: Callable[[], None]) -> None:
    """Run `verify` unless it passed on these very files since the machine started.

    One process verifies, others wait for it and take its word. Where no note can be kept (a full disk, a folder of
    somebody else's) it costs verifying each time.

    Raises:
        OSError: a file is gone. And whatever `verify` raises; then nothing is noted.
    """
    files = list(files)
    try:
        kept = open(note, "a+b", buffering=0)  # noqa: SIM115 - closed below
    except OSError:
        verify()
        return
    with kept:
        fcntl.flock(kept, fcntl.LOCK_EX)
        # Told before they are read: what changes meanwhile does not match.
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
