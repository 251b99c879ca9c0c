"""Arrays for the inputs of a network that a thread uses again for its next request or batch."""

from __future__ import annotations

import threading

from pipeline.inputs import KEPT_ROWS, DenseInputs, Layout

__all__ = ["Workspace"]

SMALLEST_ROWS = 128


class Workspace(threading.local):
    """One per model; what it hands out is the calling thread's until it asks again.

    Args:
        linear: whether the model has a weight per id.
    """

    def __init__(self, *, linear: bool) -> None:
        self._linear = linear
        self._rooms: dict[Layout, DenseInputs] = {}

    def take(self, layout: Layout, rows: int, requests: int) -> DenseInputs:
        """Room for so many candidates of so many requests; what stands in it is left over from earlier."""
        room = self._rooms.get(layout)
        if room is None or not room.holds(rows, requests):
            large = rows > KEPT_ROWS or requests > KEPT_ROWS
            kept = rows if large else max(SMALLEST_ROWS, 1 << (rows - 1).bit_length())
            room = DenseInputs.zeros(layout, kept, linear=self._linear, requests=1 << (requests - 1).bit_length())
            if not large:
                self._rooms[layout] = room
        return room.first(rows, requests)
