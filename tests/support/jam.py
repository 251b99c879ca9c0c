"""Engine that a test keeps busy."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from handmade import SCHEMA, random_rows
from installation import RunningLane

from pipeline.event import Event
from pipeline.features import Features
from pipeline.model.model import Model


class _Empty:
    ids = np.array([1, 2, 3], np.int64)


_EMPTY = _Empty()


class Jam:
    """Holds the engine's only worker until `release`."""

    def __init__(self, lane: RunningLane) -> None:
        self._lane = lane
        self._go = threading.Event()
        entered = threading.Event()
        served = lane.lane.registry.snapshot.endpoints["ranker"].stable
        assert served is not None

        def wait(request: Any, model: Model) -> Features:
            entered.set()
            self._go.wait(60)
            return Features.from_context(SCHEMA, random_rows(np.random.default_rng(0), 1, request))

        self._done = lane.lane.engine.submit(
            Event(request={f.name: _EMPTY for f in SCHEMA.embedded}, decoder=wait, model=served.model)
        )
        assert entered.wait(10)

    def release(self) -> None:
        self._go.set()
        self._done.result(10)

    def waiting(self) -> int:
        return int(self._lane.lane.engine.stats().queue_depth)
