"""What the engine counts. Each thread counts on a meter of its own, without a lock; readers add them up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["BUCKET_SECONDS", "EngineStats", "Meter", "StageStats", "summarise"]

BUCKETS = 24
BUCKET_SECONDS = tuple((1 << i) * 1e-6 for i in range(BUCKETS))
"""Upper bounds of the buckets: 1 µs, 2 µs, 4 µs, ... 8.4 s; a last bucket holds the rest."""


class Meter:
    """Counters of one thread. `stage` and `since` say what it is doing, "" nothing."""

    __slots__ = ("accepted", "answered", "failed", "rejected", "seconds", "since", "stage", "times", "wait", "waits")

    def __init__(self, stages: int) -> None:
        self.accepted = self.answered = self.failed = 0
        self.rejected: dict[str, int] = {}
        self.stage = ""
        self.since = 0.0
        self.seconds = [0.0] * stages
        self.times = [[0] * (BUCKETS + 1) for _ in range(stages)]
        self.wait = 0.0
        self.waits = [0] * (BUCKETS + 1)

    def reject(self, reason: str) -> None:
        """An event ends without an answer."""
        self.rejected[reason] = self.rejected.get(reason, 0) + 1

    def worked(self, stage: int, seconds: float) -> None:
        """A stage took so long."""
        self.seconds[stage] += seconds
        self.times[stage][_bucket(seconds)] += 1

    def waited(self, seconds: float) -> None:
        """An event was in the queue so long."""
        self.wait += seconds
        self.waits[_bucket(seconds)] += 1


@dataclass(frozen=True, slots=True)
class StageStats:
    """Times of one stage: how often, seconds in all, and how often in each bucket of `BUCKET_SECONDS` (and above)."""

    count: int
    seconds: float
    buckets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counters since the start.

    Args:
        accepted: events taken in; each ends once: answered, failed, or rejected as expired, cancelled or closed.
        answered, failed: events that ended with an answer, or by an exception of a stage.
        rejected: by reason: `overloaded` and `closed` (at the door or in the queue), `expired`, `cancelled`.
        queue_depth: events waiting now.
        service_seconds: moving average of the work on one queued event.
        queue: waiting, apart from work. stages: work by stage.
    """

    accepted: int
    answered: int
    failed: int
    rejected: dict[str, int]
    queue_depth: int
    service_seconds: float
    queue: StageStats
    stages: dict[str, StageStats]


def summarise(meters: Sequence[Meter], stages: Sequence[str], queue_depth: int, service_seconds: float) -> EngineStats:
    """The sum of all threads' meters."""
    rejected: dict[str, int] = {}
    for meter in meters:
        for reason, count in list(meter.rejected.items()):
            rejected[reason] = rejected.get(reason, 0) + count
    return EngineStats(
        accepted=sum(m.accepted for m in meters),
        answered=sum(m.answered for m in meters),
        failed=sum(m.failed for m in meters),
        rejected=rejected,
        queue_depth=queue_depth,
        service_seconds=service_seconds,
        queue=_sum([m.wait for m in meters], [m.waits for m in meters]),
        stages={
            name: _sum([m.seconds[i] for m in meters], [m.times[i] for m in meters]) for i, name in enumerate(stages)
        },
    )


def _sum(seconds: Sequence[float], times: Sequence[Sequence[int]]) -> StageStats:
    buckets = tuple(sum(column) for column in zip(*times, strict=True)) if times else (0,) * (BUCKETS + 1)
    return StageStats(sum(buckets), sum(seconds), buckets)


def _bucket(seconds: float) -> int:
    return min(int(seconds * 1e6).bit_length(), BUCKETS) if seconds > 0 else 0
