"""Cost of training: a stopwatch, and peak memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["PeakMemory", "Stopwatch"]


class Stopwatch:
    """Seconds spent inside `running`.

    Args:
        clock: seconds; `time.process_time` on a machine that others use too, as it counts this process's work alone.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self._seconds = 0.0
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        return self._seconds + (0.0 if self._since is None else self.clock() - self._since)

    @contextmanager
    def running(self) -> Iterator[None]:
        self._since = self.clock()
        try:
            yield
        finally:
            self._seconds, self._since = self.seconds, None


class PeakMemory:
    """Peak resident memory of this process since this object was made, where the kernel can reset it (Linux); else since
    the process began."""

    def __init__(self) -> None:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    @property
    def megabytes(self) -> float:
        """In MB (1e6 bytes)."""
        with suppress(OSError):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return float(line.split()[1]) * 1024 / 1e6
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
