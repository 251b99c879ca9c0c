"""Engines of a lane: one for models here, and one for models on other servers, whose calls wait in threads of their own.

So a server that is slow or hangs takes no worker from the other arms. Both have the same plan and policy. The second begins
with the first remote version.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.engine.engine import Engine
from pipeline.engine.meter import EngineStats
from pipeline.model.model import Model

__all__ = ["Engines"]


@dataclass
class Engines:
    """Engines of one lane.

    Args:
        local: of models in this process.
        open_remote: makes the engine of remote models.
    """

    local: Engine
    open_remote: Callable[[], Engine]
    _remote: Engine | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, model: Model) -> Engine:
        """The engine that runs requests for a model."""
        if not model.remote:
            return self.local
        if self._remote is None:
            with self._lock:
                self._remote = self._remote or self.open_remote()
        return self._remote

    def stats(self) -> EngineStats:
        """Counters and timings of both."""
        return self.local.stats() if self._remote is None else self.local.stats().plus(self._remote.stats())

    def stalled(self) -> tuple[float, str]:
        """As `Engine.stalled`, of the models here: a call to another server has its own limit."""
        return self.local.stalled()

    def close(self, timeout: float) -> None:
        """Answer what is queued and end all threads."""
        self.local.close(timeout=timeout)
        if self._remote is not None:
            self._remote.close(timeout=timeout)
