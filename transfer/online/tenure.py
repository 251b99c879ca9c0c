"""Tenure of a worker: whether it is still the one worker of its endpoint, asked before each publication."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Alone", "Tenure"]


class Tenure(Protocol):
    """Right of one worker at a time to publish for an endpoint."""

    def holds(self) -> bool:
        """Whether this worker has it."""

    def published(self, position: int) -> None:
        """Note for a successor that a version was published that has learned up to a place in the labelled log."""


class Alone:
    """Tenure of a worker that no other one can follow or precede, since its home has one worker."""

    def holds(self) -> bool:
        return True

    def published(self, position: int) -> None:
        pass
