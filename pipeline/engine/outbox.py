"""Queue of answers from worker threads to an event loop: one wake-up, a write to a socket, serves many answers."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress

from pipeline.event import Event

__all__ = ["Outbox"]


class Outbox:
    """Outbox of one event loop. `put` may be called from any thread."""

    __slots__ = ("_futures", "_woken", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._futures: deque[asyncio.Future[None]] = deque()
        self._woken = False

    def put(self, future: asyncio.Future[None], _: Event) -> None:
        """Resolve a future of the loop on its thread."""
        self._futures.append(future)
        if not self._woken:
            self._woken = True
            with suppress(RuntimeError):  # the loop is closed: no caller waits
                self.loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._woken = False  # before the first is taken: a later `put` wakes the loop again
        while self._futures:
            future = self._futures.popleft()
            if not future.done():
                future.set_result(None)
