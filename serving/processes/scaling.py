"""Number of replicas, from how busy they are and how long requests wait. It knows no Ray."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from serving.runtime.status import LaneStatus

__all__ = ["Load", "LoadMeter", "wanted_replicas"]


@dataclass(frozen=True, slots=True)
class Load:
    """How busy a replica is: fraction of the time that its workers worked, mean seconds in the queue."""

    utilisation: float
    queue_wait: float


class LoadMeter:
    """Turns the totals in the status of a replica's lanes into `Load` between two readings.

    Args:
        workers: worker threads of the replica, of all its lanes.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._before: dict[str, tuple[int, float, float, int]] = {}

    def read(self, lanes: Mapping[str, LaneStatus]) -> Load:
        """The load since the last reading, from the status of each lane by name; zero at the first one.

        A lane that was restarted counts from its new start.
        """
        elapsed = worked = waited = 0.0
        events = 0
        for name, lane in lanes.items():
            engine = lane.engine
            now = (lane.time_ms, engine.worked_seconds, engine.waited_seconds, engine.accepted)
            then = self._before.get(name, now)
            self._before[name] = now
            if now[1] < then[1] or now[3] < then[3]:
                continue
            elapsed = max(elapsed, (now[0] - then[0]) / 1000)
            worked += now[1] - then[1]
            waited += now[2] - then[2]
            events += now[3] - then[3]
        return Load(worked / (elapsed * self._workers) if elapsed > 0 else 0.0, waited / events if events else 0.0)


def wanted_replicas(
    loads: Sequence[Load], *, running: int, lowest: int, highest: int, utilisation: float, queue_wait: float
) -> int:
    """Number of replicas that brings their utilisation to the one wanted; one more at least where requests wait too long.

    Args:
        loads: of the replicas that reported; with none the number stays.
        running: replicas that there are.
        lowest, highest: bounds of the answer.
        utilisation: that each should have.
        queue_wait: mean seconds in the queue that are not too long.

    >>> wanted_replicas([Load(0.9, 0.0), Load(0.7, 0.0)], running=2, lowest=1, highest=8, utilisation=0.6, queue_wait=0.005)
    3
    >>> wanted_replicas([Load(0.2, 0.02)], running=1, lowest=1, highest=8, utilisation=0.6, queue_wait=0.005)
    2
    """
    if not loads:
        return min(max(running, lowest), highest)
    mean = sum(load.utilisation for load in loads) / len(loads)
    wanted = math.ceil(mean * max(running, 1) / utilisation - 1e-9)
    if sum(load.queue_wait for load in loads) / len(loads) > queue_wait:
        wanted = max(wanted, running + 1)
    return min(max(wanted, lowest), highest)
