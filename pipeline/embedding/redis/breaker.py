"""A circuit breaker: what has failed several times in a row is left alone until a probe says that it is back.

    closed ── `threshold` failures in a row ──► open ── a probe succeeds ──► half_open ── one trial succeeds ──► closed
                                                 ▲                               │
                                                 └───────── the trial fails ─────┘

Probes are made by a thread of the owner (`due`, `probed`), so no request pays for finding out that a server is still
down; in half_open one request at a time is the trial. The pause between probes doubles up to `longest_pause` and is drawn
between half of it and all of it, so that the processes of a machine do not come back in step. No method waits: states are
single assignments, and the one trial is an element that only one thread can pop.
"""

from __future__ import annotations

import random
from collections import deque
from typing import Literal

from pipeline.clock import Clock

__all__ = ["BreakerState", "CircuitBreaker"]

BreakerState = Literal["closed", "open", "half_open"]


class CircuitBreaker:
    """Guards one remote tier of one process.

    Args:
        clock: its monotonic seconds decide when a probe is due.
        rng: draws the pauses.
        threshold: failures in a row that open it.
        pause, longest_pause: seconds between two probes, first and at most.
    """

    def __init__(
        self, clock: Clock, rng: random.Random, *, threshold: int = 3, pause: float = 0.1, longest_pause: float = 2.0
    ) -> None:
        self._clock = clock
        self._rng = rng
        self._threshold = threshold
        self._first_pause = pause
        self._longest_pause = longest_pause
        self._state: BreakerState = "closed"
        self._failures = 0
        self._pause = pause
        self._due = 0.0
        self._trial: deque[None] = deque(maxlen=1)
        self.opened = 0
        """How often it has opened."""

    @property
    def state(self) -> BreakerState:
        return self._state

    def allow(self) -> bool:
        """Whether the caller may try; who is allowed must report `succeeded`, `failed` or `unused`."""
        state = self._state
        if state == "closed":
            return True
        if state == "open":
            return False
        try:
            self._trial.pop()
        except IndexError:
            return False
        return True

    def unused(self) -> None:
        """There was nothing to try after all."""
        if self._state == "half_open":
            self._trial.append(None)

    def succeeded(self) -> None:
        """A try went well."""
        self._failures = 0
        if self._state == "half_open":
            self._pause = self._first_pause
            self._state = "closed"

    def failed(self) -> None:
        """A try failed or was late."""
        self._failures += 1
        state = self._state
        if state == "half_open" or (state == "closed" and self._failures >= self._threshold):
            self._wait()
            self._state = "open"
            self.opened += 1

    def due(self) -> bool:
        """Whether it is open and time for a probe."""
        return self._state == "open" and self._clock.monotonic() >= self._due

    def probed(self, ok: bool) -> None:
        """What the probe found."""
        if self._state != "open":
            return
        if not ok:
            self._wait()
            return
        self._trial.append(None)
        self._state = "half_open"

    def _wait(self) -> None:
        self._due = self._clock.monotonic() + self._pause * self._rng.uniform(0.5, 1.0)
        self._pause = min(2 * self._pause, self._longest_pause)
