"""Counters of the engine. Each thread has its own meter, without a lock; readers add them up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

__all__ = ["BUCKET_SECONDS", "BUCKET_SIZES", "REJECTIONS", "BucketCounts", "EngineStats", "Meter", "summarise"]

BUCKETS = 24
BUCKET_SECONDS = tuple((1 << i) * 1e-6 for i in range(BUCKETS))
"""Upper bounds of the buckets of times: 1 µs, 2 µs, 4 µs, ... 8.4 s; a last bucket holds the rest."""

SIZE_BUCKETS = 15
BUCKET_SIZES = tuple((1 << i) - 1 for i in range(SIZE_BUCKETS))
"""Largest sizes in the buckets of batches: 0, 1, 3, 7, ... 16383; a last bucket holds the rest."""

REJECTIONS = ("overloaded", "closed", "shed", "timeout", "expired", "cancelled")
"""Reasons for which an event ends without an answer, see `EngineStats`."""


class Meter:
    """Counters of one thread. `stage` is the running stage ("": none), `since` its start.

    Attributes:
        accepted, answered, failed: events.
        rejected: events that ended without an answer, by reason.
        retried: batches that failed as a whole and were repeated event by event.
    """

    __slots__ = (
        "accepted", "answered", "events", "failed", "rejected", "requests", "retried", "rows", "rows_done", "seconds",
        "since", "stage", "times", "wait", "waits",
    )  # fmt: skip

    def __init__(self, stages: int, runs: int) -> None:
        self.accepted = self.answered = self.failed = self.retried = 0
        self.rejected: dict[str, int] = {}
        self.stage = ""
        self.since = 0.0
        self.seconds = [0.0] * stages
        self.times = [[0] * (BUCKETS + 1) for _ in range(stages)]
        self.wait = [0.0] * runs
        self.waits = [[0] * (BUCKETS + 1) for _ in range(runs)]
        self.events = self.rows_done = 0
        self.requests = [0] * (SIZE_BUCKETS + 1)
        self.rows = [0] * (SIZE_BUCKETS + 1)

    def reject(self, reason: str) -> None:
        """Count an event that ends without an answer."""
        self.rejected[reason] = self.rejected.get(reason, 0) + 1

    def worked(self, stage: int, seconds: float) -> None:
        """Count the time of a stage, for one event or one batch."""
        self.seconds[stage] += seconds
        self.times[stage][_bucket(seconds)] += 1

    def waited(self, run: int, seconds: float) -> None:
        """Count the time of an event in the queue of a run."""
        self.wait[run] += seconds
        self.waits[run][_bucket(seconds)] += 1

    def executed(self, events: int, rows: int) -> None:
        """Count a batch that a worker took from the queue."""
        self.events += events
        self.rows_done += rows
        self.requests[min(events.bit_length(), SIZE_BUCKETS)] += 1
        self.rows[min(rows.bit_length(), SIZE_BUCKETS)] += 1


@dataclass(frozen=True, slots=True)
class BucketCounts:
    """Count, sum, and count by bucket (of `BUCKET_SECONDS` or `BUCKET_SIZES`, and one above)."""

    count: int
    sum: float
    buckets: tuple[int, ...]

    def plus(self, other: BucketCounts) -> BucketCounts:
        """Both together."""
        buckets = tuple(a + b for a, b in zip(self.buckets, other.buckets, strict=True))
        return BucketCounts(self.count + other.count, self.sum + other.sum, buckets)


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counters of an engine since the start.

    Args:
        accepted: events admitted; each ends once: answered, failed, or rejected inside.
        answered, failed: events that ended with an answer, or by an exception of a stage.
        rejected: by reason. At admission: `overloaded` (full, or it would miss its deadline), `closed`. Inside: `shed`
            (replaced by a more important one), `timeout` (its queue timeout), `expired` (its deadline), `cancelled`,
            `closed`.
        retried: batches that failed as a whole and were repeated event by event.
        queue_depth: events waiting now. depth_by_priority: the same by level, the most important first.
        service_seconds: of one worker per event, without its rows. row_seconds: per row.
        queue: seconds of an event in the entry queue. queues: the same in front of each further run of the plan, by the
            name of its first stage.
        stages: seconds by stage, of one event or one batch.
        batch_events, batch_rows: sizes of the batches taken from the entry queue.
    """

    accepted: int
    answered: int
    failed: int
    rejected: dict[str, int]
    retried: int
    queue_depth: int
    depth_by_priority: tuple[int, ...]
    service_seconds: float
    row_seconds: float
    queue: BucketCounts
    queues: dict[str, BucketCounts]
    stages: dict[str, BucketCounts]
    batch_events: BucketCounts
    batch_rows: BucketCounts

    def plus(self, other: EngineStats) -> EngineStats:
        """Counters of two engines of one plan together; times per event and row are of this one."""
        rejected = {reason: self.rejected.get(reason, 0) + other.rejected.get(reason, 0)
                    for reason in {**self.rejected, **other.rejected}}  # fmt: skip
        return replace(
            self,
            accepted=self.accepted + other.accepted,
            answered=self.answered + other.answered,
            failed=self.failed + other.failed,
            rejected=rejected,
            retried=self.retried + other.retried,
            queue_depth=self.queue_depth + other.queue_depth,
            depth_by_priority=tuple(
                a + b for a, b in zip(self.depth_by_priority, other.depth_by_priority, strict=True)
            ),
            queue=self.queue.plus(other.queue),
            queues={name: counts.plus(other.queues[name]) for name, counts in self.queues.items()},
            stages={name: counts.plus(other.stages[name]) for name, counts in self.stages.items()},
            batch_events=self.batch_events.plus(other.batch_events),
            batch_rows=self.batch_rows.plus(other.batch_rows),
        )


def summarise(
    meters: Sequence[Meter],
    stages: Sequence[str],
    runs: Sequence[str],
    depths: Sequence[int],
    service: tuple[float, float],
) -> EngineStats:
    """Sum of all threads' meters; `runs` names those after the first, `service` is seconds per event and per row."""
    rejected: dict[str, int] = {}
    for meter in meters:
        for reason, count in list(meter.rejected.items()):
            rejected[reason] = rejected.get(reason, 0) + count
    return EngineStats(
        accepted=sum(m.accepted for m in meters),
        answered=sum(m.answered for m in meters),
        failed=sum(m.failed for m in meters),
        rejected=rejected,
        retried=sum(m.retried for m in meters),
        queue_depth=sum(depths),
        depth_by_priority=tuple(depths),
        service_seconds=service[0],
        row_seconds=service[1],
        queue=_sum([m.wait[0] for m in meters], [m.waits[0] for m in meters], BUCKETS),
        queues={
            name: _sum([m.wait[i] for m in meters], [m.waits[i] for m in meters], BUCKETS)
            for i, name in enumerate(runs, start=1)
        },
        stages={
            name: _sum([m.seconds[i] for m in meters], [m.times[i] for m in meters], BUCKETS)
            for i, name in enumerate(stages)
        },
        batch_events=_sum([m.events for m in meters], [m.requests for m in meters], SIZE_BUCKETS),
        batch_rows=_sum([m.rows_done for m in meters], [m.rows for m in meters], SIZE_BUCKETS),
    )


def _sum(totals: Sequence[float], counts: Sequence[Sequence[int]], size: int) -> BucketCounts:
    buckets = tuple(sum(column) for column in zip(*counts, strict=True)) if counts else (0,) * (size + 1)
    return BucketCounts(sum(buckets), sum(totals), buckets)


def _bucket(seconds: float) -> int:
    return min(int(seconds * 1e6).bit_length(), BUCKETS) if seconds > 0 else 0
