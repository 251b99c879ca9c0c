"""Clocks that a test sets by hand."""

from __future__ import annotations

__all__ = ["HandClock", "MillisecondClock"]


class HandClock:
    """Clock whose `now` is in seconds."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def wall_ms(self) -> int:
        return round(self.now * 1000)

    def monotonic(self) -> float:
        return self.now


class MillisecondClock:
    """Clock whose `now` is in whole milliseconds."""

    def __init__(self, now: int = 1_000_000) -> None:
        self.now = now

    def wall_ms(self) -> int:
        return self.now

    def monotonic(self) -> float:
        return self.now / 1000
