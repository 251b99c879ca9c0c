"""Memory check before a model version is loaded, so that the version that serves is never swapped out.

The need of a version is the estimate of `pipeline.bundle.footprint`. Versions on one base share the base's tables.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import psutil

from pipeline.bundle.footprint import memory_needed
from pipeline.bundle.versions import Repository
from serving.lane.served import Key

__all__ = ["MemoryBudget", "available_bytes"]

_CGROUP = Path("/sys/fs/cgroup")


class MemoryBudget:
    """Memory budget of the machine, or of the container of this process.

    Args:
        reserve_bytes: that must stay free.
        available: returns the free bytes now.
    """

    def __init__(self, repository: Repository, reserve_bytes: int, available: Callable[[], int] | None = None) -> None:
        self._repository = repository
        self._reserve_bytes = reserve_bytes
        self._available = available or available_bytes

    def refusal(self, key: Key, loaded: Collection[Key]) -> str:
        """Reason why a version does not fit beside the loaded ones; "" when it fits.

        Raises:
            NotFound, BundleError: the version does not exist or cannot be read.
        """
        footprint = memory_needed(
            self._repository, *key, loaded={version for name, version in loaded if name == key[0]}
        )
        needed_bytes = footprint.private + footprint.shared
        free_bytes = self._available()
        if needed_bytes + self._reserve_bytes <= free_bytes:
            return ""
        return (
            f"it needs about {_mebibytes(needed_bytes)} and {_mebibytes(free_bytes)} are free, of which "
            f"{_mebibytes(self._reserve_bytes)} are kept (setting engine.memory_reserve_bytes): free memory, or unload "
            "another model"
        )


def available_bytes(cgroup: Path = _CGROUP) -> int:
    """Memory available without swapping, in bytes: the machine's, or what is left of the container's limit."""
    free = int(psutil.virtual_memory().available)
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        lines = (line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        reclaimable = sum(int(value) for name, value in lines if name == "inactive_file")
    except (OSError, ValueError):  # no such limit: "max", or another system
        return free
    return min(free, max(0, limit - used + reclaimable))


def _mebibytes(count: int) -> str:
    return f"{count / (1 << 20):,.1f} MiB"
