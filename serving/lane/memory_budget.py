"""Memory check before a model version is loaded, so that the version that serves is never swapped out.

The need of a version is the estimate of `pipeline.bundle.footprint`. Versions on one base share the base's tables.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from pipeline.bundle.footprint import memory_needed
from pipeline.bundle.versions import Repository
from pipeline.host import available_bytes
from serving.lane.served import Key

__all__ = ["MemoryBudget"]


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

    def refusal(self, key: Key, loaded: Collection[Key], measured_bytes: int = 0) -> str:
        """Reason why a version does not fit beside the loaded ones; "" when it fits.

        Args:
            measured_bytes: that its networks took in a probe. A network may make far more of itself than its file has.

        Raises:
            NotFound, BundleError: the version does not exist or cannot be read.
        """
        footprint = memory_needed(
            self._repository, *key, loaded={version for name, version in loaded if name == key[0]}
        )
        needed_bytes = max(footprint.private, measured_bytes) + footprint.shared
        free_bytes = self._available()
        if needed_bytes + self._reserve_bytes <= free_bytes:
            return ""
        return (
            f"it needs about {_mebibytes(needed_bytes)} and {_mebibytes(free_bytes)} are free, of which "
            f"{_mebibytes(self._reserve_bytes)} are kept (setting engine.memory_reserve_bytes): free memory, or unload "
            "another model"
        )


def _mebibytes(count: int) -> str:
    return f"{count / (1 << 20):,.1f} MiB"
