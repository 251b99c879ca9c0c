"""Circuit breaker: after several failures in a row a server is not used until a probe succeeds.

    closed ── `threshold` failures in a row ──► open ── a probe succeeds ──► half_open ── one trial succeeds ──► closed
                                                 ▲                               │
                                                 └───────── the trial fails ─────┘

A thread of the owner makes the probes (`due`, `probed`), so no request waits for a server that is still down; in
half_open one request at a time is the trial. The pause between probes doubles up to `longest_pause`; the actual pause is
random between half of it and all of it, so that the processes of a machine do not probe in step. No method waits: states
are single assignments, and the trial is an element that only one thread can pop.
"""

from __future__ import annotations

import random
from collections import deque
from typing import Literal

from pipeline.clock import Clock

__all__ = ["BreakerState", "CircuitBreaker"]

BreakerState = Literal["closed", "open", "half_open"]


class CircuitBreaker:
    """Circuit breaker of one remote tier in one process.

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
        """Number of times it has opened."""

    @property
    def state(self) -> BreakerState:
        return self._state

    def allow(self) -> bool:
        """Whether the caller may use the server; it must then report `succeeded`, `failed` or `unused`."""
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
        """Report that the server was not used after all."""
        if self._state == "half_open":
            self._trial.append(None)

    def succeeded(self) -> None:
        """Report a success."""
        self._failures = 0
        if self._state == "half_open":
            self._pause = self._first_pause
            self._state = "closed"

    def failed(self) -> None:
        """Report a failure or a late answer."""
        self._failures += 1
        state = self._state
        if state == "half_open" or (state == "closed" and self._failures >= self._threshold):
            self._wait()
            self._state = "open"
            self.opened += 1

    def due(self) -> bool:
        """Whether it is open and a probe is due."""
        return self._state == "open" and self._clock.monotonic() >= self._due

    def probed(self, ok: bool) -> None:
        """Report the result of a probe."""
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
