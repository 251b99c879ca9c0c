"""Answers on their way from worker threads to an event loop: many with one wake-up, which is a write to a socket each."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress

from pipeline.event import Event

__all__ = ["Outbox"]


class Outbox:
    """Of one loop. `put` may be called from any thread."""

    __slots__ = ("_futures", "_woken", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._futures: deque[asyncio.Future[None]] = deque()
        self._woken = False

    def put(self, future: asyncio.Future[None], _: Event) -> None:
        """Have a future of the loop resolved there."""
        self._futures.append(future)
        if not self._woken:
            self._woken = True
            with suppress(RuntimeError):  # the loop was closed: nobody waits any more
                self.loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._woken = False  # before the first is taken: what comes later wakes the loop again
        while self._futures:
            future = self._futures.popleft()
            if not future.done():
                future.set_result(None)
