"""Timing of lookups: several in a row by one thread, or by each of two at once, on requests that are new to all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.hierarchy.stacks import Lookup, Request
from pipeline.arrays import I64

__all__ = ["Lookers"]


class Lookers:
    """Threads that look up ids; a context manager.

    Args:
        threads: 1 is the caller's own.
        repeat: lookups of each per turn.
        ids, width: shape of an answer; each thread has one array for all of its own.
    """

    def __init__(self, threads: int, repeat: int, ids: int, width: int) -> None:
        self._repeat = repeat
        self._outs = [np.empty((ids, width), np.float32) for _ in range(threads)]
        self._work: Callable[[int], None] | None = None
        self._start, self._end = threading.Barrier(threads + 1), threading.Barrier(threads + 1)
        self._spans = [(0.0, 0.0)] * threads
        self._threads = [
            threading.Thread(target=self._serve, args=(number,), name=f"looker-{number}", daemon=True)
            for number in range(threads if threads > 1 else 0)
        ]

    @property
    def per_turn(self) -> int:
        """Requests that a turn uses: one of each thread, not timed, brings what is popular into the processor's caches,
        from where the case before has driven it."""
        return (self._repeat + 1) * len(self._outs)

    def timed(self, lookup: Lookup, requests: Sequence[Request], marks: I64) -> float:
        """Seconds per lookup of one thread, over `per_turn` requests; how many ids had each mark is added to `marks`."""
        found: list[object] = [None] * self.per_turn
        errors: list[Exception] = []

        def work(thread: int, first: int, count: int) -> None:
            try:
                for at in range(first, first + count):
                    found[at] = lookup(requests[at], self._outs[thread])
            except Exception as error:
                errors.append(error)

        self._all(lambda thread: work(thread, thread, 1))
        threads = len(self._outs)
        seconds = self._all(lambda thread: work(thread, threads + thread * self._repeat, self._repeat)) / self._repeat
        if errors:
            raise errors[0]
        for one in found:
            if isinstance(one, np.ndarray):
                marks += np.bincount(one, minlength=len(marks))
        return seconds

    def __enter__(self) -> Lookers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._threads:
            self._work = None
            self._start.wait()
            for thread in self._threads:
                thread.join()

    def _all(self, work: Callable[[int], None]) -> float:
        """Seconds until every thread has done its work, which is called with the thread's number."""
        if not self._threads:
            began = time.perf_counter()
            work(0)
            return time.perf_counter() - began
        self._work = work
        self._start.wait()
        self._end.wait()
        # Their own clocks: this thread may find no free core until they are done.
        return max(end for _, end in self._spans) - min(began for began, _ in self._spans)

    def _serve(self, number: int) -> None:
        while True:
            self._start.wait()
            work = self._work
            if work is None:
                return
            began = time.perf_counter()
            work(number)
            self._spans[number] = (began, time.perf_counter())
            self._end.wait()
