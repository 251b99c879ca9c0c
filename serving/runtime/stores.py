"""Stores of an installation and how full they are: disks, and the Redis of state, traffic log and embeddings.

`look` at a disk is here; `serving.wiring.stores` looks at all that a configuration names. The control process looks every few
seconds and reports what it found; where it does not run, commands on the machine look themselves.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["LEAST_FREE_FRACTION", "StoreStatus", "disks"]

LEAST_FREE_FRACTION = 0.15
"""Share of a store below which its free room is a matter for a person; that of the alert BatonStoreFilling."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStatus:
    """A store at one time.

    Args:
        name: `home`, `traffic`, `bundles` or `temporary` of a disk; `state`, `traffic` or `embedding` of a Redis.
        kind: `disk` or `redis`. where: a path, or a URL without its password.
        size_bytes: 0: it has no limit. used_bytes: of it, by all who share it. free_bytes: that Baton may still write.
        refused: writes that a Redis has refused for want of memory since its start.
        reason: why it cannot be looked at, "": it answers.
        evicts: it makes room by itself, so that being full is no fault.
    """

    name: str
    kind: str
    where: str
    size_bytes: int = 0
    used_bytes: int = 0
    free_bytes: int = 0
    refused: int = 0
    reason: str = ""
    evicts: bool = False

    @property
    def full(self) -> bool:
        """Whether it is nearly full: less than `LEAST_FREE_FRACTION` is free."""
        limited = self.size_bytes > 0 and not self.reason and not self.evicts
        return limited and self.free_bytes < LEAST_FREE_FRACTION * self.size_bytes

    def __str__(self) -> str:
        """What it is and how full.

        >>> print(StoreStatus(name="home", kind="disk", where="/srv", size_bytes=100 << 20, used_bytes=95 << 20, free_bytes=5 << 20))
        disk of home (/srv): 5 MiB of 100 MiB free
        """
        what = f"{'disk of' if self.kind == 'disk' else 'Redis of'} {self.name} ({self.where})"
        if self.reason:
            return f"{what} does not answer: {self.reason}"
        if not self.size_bytes:
            return f"{what}: {_mib(self.used_bytes)} used, without a limit"
        said = f"{what}: {_mib(self.free_bytes)} of {_mib(self.size_bytes)} free"
        return f"{said}; {self.refused:,} writes refused" if self.refused else said


def disks(folders: Mapping[str, Path]) -> Iterator[StoreStatus]:
    """Disks of folders by name; a disk that several share has the name of the first."""
    seen = set()
    for name, folder in folders.items():
        place = folder.absolute()
        while not place.exists() and place != place.parent:
            place = place.parent
        try:
            device = place.stat().st_dev
            if device in seen:
                continue
            seen.add(device)
            usage = shutil.disk_usage(place)
            writable = os.access(place, os.W_OK)
        except OSError as error:
            yield StoreStatus(name=name, kind="disk", where=str(folder), reason=error.strerror or str(error))
            continue
        # Of the superuser's reserve nothing counts: what is free is what this user may write.
        size = usage.used + usage.free
        free = usage.free if writable and not _read_only(place) else 0
        yield StoreStatus(
            name=name, kind="disk", where=str(folder), size_bytes=size, used_bytes=usage.used, free_bytes=free
        )


def _read_only(place: Path) -> bool:
    return bool(os.statvfs(place).f_flag & os.ST_RDONLY)


def _mib(number: int) -> str:
    if number >= 10 << 30:
        return f"{number / (1 << 30):,.0f} GiB"
    return f"{number / (1 << 20):,.0f} MiB" if number >= 10 << 20 else f"{number / (1 << 20):.1f} MiB"
