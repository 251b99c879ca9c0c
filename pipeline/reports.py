"""Reports of processes: small files that each process rewrites about once a second, and others read.

Where the disk takes none (full, read-only, failing), a report goes to memory, so that a process does not look dead because
its disk is full. Readers take the newer of both. A report in memory is removed once the disk has taken one again.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from pipeline.disk import replacing
from pipeline.errors import NotReady
from pipeline.memory_folder import make_memory_folder, memory_folder

__all__ = ["report_files", "write_report"]

_in_memory: set[Path] = set()
"""Reports of this process that are in memory now."""


def write_report(path: Path, text: str) -> None:
    """Write a report; a reader sees it whole.

    Raises:
        OSError: the disk does not take it, and neither does memory.
    """
    try:
        with replacing(path) as staging:
            staging.write_text(text, encoding="utf-8")
    except OSError as error:
        try:
            _in_memory.add(_into_memory(path, text))
        except (OSError, NotReady):
            raise error from None
    else:
        spare = _spare_folder(path.parent) / path.name if _in_memory else path
        if spare in _in_memory:
            with suppress(OSError):
                spare.unlink(missing_ok=True)
            _in_memory.discard(spare)


def _into_memory(path: Path, text: str) -> Path:
    """Write a report to memory. Raises: OSError, NotReady."""
    spare = _spare_folder(path.parent, make=True) / path.name
    with replacing(spare) as staging:
        staging.write_text(text, encoding="utf-8")
    return spare


def report_files(folder: Path, ending: str) -> list[Path]:
    """The newest file of each report of a folder, by name. `ending`: of their names, with its dot."""
    found: dict[str, tuple[float, Path]] = {}
    for place in (folder, _spare_folder(folder)):
        with suppress(OSError):
            for entry in os.scandir(place):
                if entry.name.endswith(ending) and not entry.name.startswith("."):
                    with suppress(OSError):  # removed since the folder was listed
                        at = entry.stat().st_mtime
                        if entry.name not in found or found[entry.name][0] < at:
                            found[entry.name] = at, Path(entry.path)
    return [found[name][1] for name in sorted(found)]


def _spare_folder(folder: Path, *, make: bool = False) -> Path:
    """Folder in memory for the reports of a folder, that of the folder's owner. Raises: OSError or NotReady: it cannot be made."""
    try:
        owner = folder.stat().st_uid
    except OSError:
        owner = os.getuid()
    name = f"reports-{hashlib.blake2b(os.fsencode(folder.resolve()), digest_size=8).hexdigest()}"
    if not make:
        return memory_folder(owner) / name
    spare = make_memory_folder(owner) / name
    spare.mkdir(mode=0o700, exist_ok=True)
    return spare
