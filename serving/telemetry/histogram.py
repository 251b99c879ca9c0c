"""A histogram that costs a fraction of a microsecond, told in Prometheus' form when someone asks.

`prometheus_client`'s own takes a lock and looks a label up for every observation, of which a request makes half a dozen.
One thread counts; another may read at the same time and finds figures at most one observation apart.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence

from prometheus_client.samples import Exemplar

__all__ = ["Histogram"]


class Histogram:
    """Values by bucket. For one writing thread.

    Args:
        bounds: upper bounds, rising; one more bucket holds what lies above.
        now: Unix seconds, of exemplars.

    >>> seconds = Histogram((0.1, 1.0))
    >>> for value in (0.05, 0.1, 0.5, 7.0):
    ...     seconds.observe(value)
    >>> seconds.buckets(), seconds.total
    ([('0.1', 2), ('1.0', 3), ('+Inf', 4)], 7.65)
    """

    __slots__ = ("_exemplars", "_now", "bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float], now: Callable[[], float] = time.time) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        self._exemplars: dict[int, Exemplar] = {}
        self._now = now

    def observe(self, value: float, trace_id: str = "") -> None:
        """One more value; one that equals a bound lies below it. The last with a trace id is its bucket's exemplar."""
        bucket = bisect_left(self.bounds, value)
        self.counts[bucket] += 1
        self.total += value
        if trace_id:
            self._exemplars[bucket] = Exemplar({"trace_id": trace_id}, value, self._now())

    def buckets(self) -> list[tuple[str, float] | tuple[str, float, Exemplar]]:
        """Upper bound as text, how many values are not above it, and where there is one the bucket's exemplar."""
        told: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
        running = 0
        for bucket, (bound, count) in enumerate(zip((*self.bounds, None), list(self.counts), strict=True)):
            running += count
            name = "+Inf" if bound is None else repr(float(bound))
            exemplar = self._exemplars.get(bucket)
            told.append((name, running) if exemplar is None else (name, running, exemplar))
        return told
