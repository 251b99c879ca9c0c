"""Reusable input arrays of a network, one set per thread."""

from __future__ import annotations

import threading

from pipeline.inputs import KEPT_ROWS, DenseInputs, Layout

__all__ = ["Workspace"]

SMALLEST_ROWS = 128


class Workspace(threading.local):
    """Input arrays of one model. An array belongs to the calling thread until its next call.

    Args:
        linear: whether the model has a weight per id.
    """

    def __init__(self, *, linear: bool) -> None:
        self._linear = linear
        self._rooms: dict[Layout, DenseInputs] = {}

    def take(self, layout: Layout, rows: int, requests: int) -> DenseInputs:
        """Inputs for a number of candidates and requests; their content is undefined."""
        room = self._rooms.get(layout)
        if room is None or not room.holds(rows, requests):
            large = rows > KEPT_ROWS or requests > KEPT_ROWS
            kept = rows if large else max(SMALLEST_ROWS, 1 << (rows - 1).bit_length())
            room = DenseInputs.zeros(layout, kept, linear=self._linear, requests=1 << (requests - 1).bit_length())
            if not large:
                self._rooms[layout] = room
        return room.first(rows, requests)
