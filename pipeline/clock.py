"""Clock that is passed in: wall time for values that are stored or compared between processes, monotonic time inside one."""

from __future__ import annotations

import time
from typing import Protocol

__all__ = ["Clock", "SystemClock"]


class Clock(Protocol):
    """Source of wall time and monotonic time; tests pass one that they set by hand."""

    def wall_ms(self) -> int:
        """Unix time in milliseconds."""

    def monotonic(self) -> float:
        """Seconds that never go back."""


class SystemClock:
    """Clock of the machine."""

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()
