"""Batch of requests to a server elsewhere: who waits for which, until when, and what came of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError

import numpy as np

from pipeline.arrays import F64
from pipeline.errors import DeadlineExceeded
from pipeline.inputs import Waiting
from pipeline.model.remote_inputs import RemoteInputs

__all__ = ["Job", "Piece"]

Piece = tuple[int, int, int]
"""Window, first row, end."""


class Job:
    """Windows of one batch, who waits for them, and what came of each: values float64 `[n]`, or an error."""

    def __init__(self, windows: Sequence[RemoteInputs], waits: Sequence[Waiting] | None) -> None:
        self.windows = windows
        self._waits = waits
        self.values: list[F64] = [np.zeros(window.n) for window in windows]
        self.errors: list[Exception | None] = [None] * len(windows)

    def waits_for(self, at: int, now: float) -> bool:
        """Whether somebody still waits for a window; otherwise it gets its error here."""
        if self.errors[at] is None and self._waits is not None:
            wait = self._waits[at]
            if wait.cancelled:
                self.errors[at] = CancelledError()
            elif now >= wait.deadline:
                self.errors[at] = DeadlineExceeded("the deadline passed before the remote model was asked")
        return self.errors[at] is None

    def due(self, pieces: Sequence[Piece]) -> float:
        """The first deadline."""
        waits = self._waits
        return math.inf if waits is None else min(waits[at].deadline for at, _, _ in pieces)

    def fail(self, pieces: Sequence[Piece], error: Exception) -> None:
        for at, _, _ in pieces:
            self.errors[at] = self.errors[at] or error

    def fail_due(self, pieces: Sequence[Piece], due: float, error: Exception) -> bool:
        """Fail the windows whose deadline is `due`; whether others are left."""
        assert self._waits is not None
        self.fail([piece for piece in pieces if self._waits[piece[0]].deadline <= due], error)
        return any(self.errors[at] is None for at, _, _ in pieces)

    def cancels(self, pieces: Sequence[Piece]) -> Cancelling:
        waits = self._waits
        return Cancelling([] if waits is None else [waits[at] for at, _, _ in pieces])


class Cancelling:
    """While entered, a call ends once all who wait for it have gone."""

    def __init__(self, waits: Sequence[Waiting]) -> None:
        self._waits = waits

    def __enter__(self) -> Callable[[Callable[[], None]], None]:
        return self._begun

    def __exit__(self, *_: object) -> None:
        for wait in self._waits:
            wait.abandon = None

    def _begun(self, cancel: Callable[[], None]) -> None:
        def abandon() -> None:
            if all(wait.cancelled for wait in self._waits):
                cancel()

        for wait in self._waits:
            wait.abandon = abandon
        if self._waits:
            abandon()  # they may have gone before
