"""Resident memory of a server's processes over time."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import psutil

from benchmarks.report import median
from benchmarks.server import BatonServer

__all__ = ["MemoryWatch"]


@dataclass
class MemoryWatch:
    """Sampler of memory every `interval` seconds within its block: `samples` are (`time.monotonic()`, bytes by process)."""

    server: BatonServer
    interval: float = 1.0
    samples: list[tuple[float, dict[str, int]]] = field(default_factory=list)

    def __enter__(self) -> MemoryWatch:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory-watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def megabytes(self, process: str, start: float, end: float) -> float:
        """Median of a process's samples between two times (`time.monotonic()`), in MB; NaN without any."""
        return median([found[process] / 1e6 for at, found in self.samples if start <= at < end and process in found])

    def processes(self) -> list[str]:
        """Processes that are in every sample; the growth of a restarted one means nothing."""
        names = [set(found) for _, found in self.samples]
        return sorted(set.intersection(*names)) if names else []

    def _watch(self) -> None:
        while not self._stop.wait(self.interval):
            try:
                self.samples.append((time.monotonic(), self.server.rss()))
            except psutil.Error:  # one of them is being restarted
                continue
