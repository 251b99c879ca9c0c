"""Whether one more model version fits into memory, asked before it is loaded: the one that serves must not be swapped out.

What it will take is `pipeline.bundle.footprint`'s estimate. Versions on one base share the base's tables.
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
    """Memory of the machine, or of the container that this process is in.

    Args:
        reserve: bytes that must stay free.
        available: free bytes now.
    """

    def __init__(self, repository: Repository, reserve: int, available: Callable[[], int] | None = None) -> None:
        self._repository = repository
        self._reserve = reserve
        self._available = available or available_bytes

    def refusal(self, key: Key, loaded: Collection[Key]) -> str:
        """Why a version cannot be loaded beside those that are; "" when it can.

        Raises:
            NotFound, BundleError: there is no such version to look at.
        """
        footprint = memory_needed(
            self._repository, *key, loaded={version for name, version in loaded if name == key[0]}
        )
        needed = footprint.private + footprint.shared
        free = self._available()
        if needed + self._reserve <= free:
            return ""
        return (
            f"it needs about {_mebibytes(needed)} and {_mebibytes(free)} are free, of which {_mebibytes(self._reserve)} "
            "are kept (setting engine.memory_reserve_bytes): free memory, or unload another model"
        )


def available_bytes(cgroup: Path = _CGROUP) -> int:
    """Memory that can be had without swapping: the machine's, or what is left of the container's limit."""
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
