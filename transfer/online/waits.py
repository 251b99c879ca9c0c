"""Waits of the transfer worker: what it waits for, and how much of that is missing, for its status and its log.

The status has every wait at once. The log has a wait once, when it has lasted for `LOG_AFTER_S`: rows for the next batch are
waited for all the time.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from pipeline.clock import Clock

__all__ = ["Waits"]

LOG_AFTER_S = 10.0

log = logging.getLogger(__name__)


@dataclass
class _Wait:
    text: str
    since: float
    logged: bool = False


class Waits:
    """What is waited for at present, by kind."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waits: dict[str, _Wait] = {}

    @property
    def text(self) -> str:
        """All of them in words, "" where there is none."""
        return "; ".join(wait.text for wait in self._waits.values())

    def note(self, kind: str, text: str) -> None:
        """Wait for something, or go on waiting; `text` names it and how much is missing."""
        now = self._clock.monotonic()
        wait = self._waits.setdefault(kind, _Wait(text, now))
        wait.text = text
        if not wait.logged and now - wait.since >= LOG_AFTER_S:
            wait.logged = True
            log.warning("waiting for %s", text)

    def end(self, kind: str) -> None:
        """Wait for it no longer."""
        self._waits.pop(kind, None)
