"""Entry queue of the engine: order of events, batches, and expiry.

Batches count rows, not requests. Settings have the names and meanings of Triton's `ModelDynamicBatching` and
`ModelQueuePolicy`, where a size counts requests of one row. It has no threads and takes no lock: the engine calls it
under its own. Next stop: `pipeline.engine.admission`, which refuses events that would miss their deadline.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from pipeline.errors import InvalidInput
from pipeline.event import Event

__all__ = ["BatchPolicy", "EntryQueue", "InnerQueue", "QueuePolicy", "Ticket"]

NEW_GAP_FRACTION = 0.1


def _at_least(value: int, least: int, name: str) -> None:
    if value < least:
        raise InvalidInput(f"{name} is at least {least}, not {value}", name)


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """Queue policy: length and waiting times.

    Args:
        max_queue_size: events that may wait, at least 1; one more is refused, or replaces a less important one.
        timeout_action: for an event that has waited for its timeout: REJECT answers it as overloaded at that moment,
            DELAY moves it behind all others of its level.
        default_timeout_microseconds: of waiting; 0: none. Independently, an event leaves at its own deadline.
        allow_timeout_override: whether an event's `queue_timeout` may shorten it.
    """

    max_queue_size: int = 512
    timeout_action: Literal["REJECT", "DELAY"] = "REJECT"
    default_timeout_microseconds: int = 0
    allow_timeout_override: bool = False

    def __post_init__(self) -> None:
        _at_least(self.max_queue_size, 1, "max_queue_size")
        _at_least(self.default_timeout_microseconds, 0, "default_timeout_microseconds")
        if self.timeout_action not in ("REJECT", "DELAY"):
            raise InvalidInput(f"timeout_action is REJECT or DELAY, not {self.timeout_action!r}", "timeout_action")

    def timeout(self, event: Event) -> float:
        """Longest wait of an event in seconds."""
        seconds = self.default_timeout_microseconds * 1e-6 or math.inf
        if self.allow_timeout_override and event.queue_timeout > 0:
            return min(seconds, event.queue_timeout)
        return seconds


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """Batch policy: sizes, waiting for more events, and priorities.

    Args:
        max_batch_size: rows; a larger event, or one of unknown rows, is a batch of its own.
        preferred_batch_size: rows; a batch ends at the largest of these that the waiting events reach.
        max_queue_delay_microseconds: longest time that the oldest event waits for more events while its worker is free;
            no event waits while another worker is free too, or when no event is expected in the remaining time.
        priority_levels: number of levels, 1 being the most important; 0: no priorities.
        default_priority_level: of events that name no level or an unknown one.
        default_queue_policy: of the whole queue, and of each level without a policy of its own.
        priority_queue_policy: by level; the queue as a whole stays bounded by the default policy.
    """

    max_batch_size: int = 512
    preferred_batch_size: tuple[int, ...] = ()
    max_queue_delay_microseconds: int = 0
    priority_levels: int = 0
    default_priority_level: int = 0
    default_queue_policy: QueuePolicy = QueuePolicy()
    priority_queue_policy: Mapping[int, QueuePolicy] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _at_least(self.max_batch_size, 1, "max_batch_size")
        _at_least(self.max_queue_delay_microseconds, 0, "max_queue_delay_microseconds")
        _at_least(self.priority_levels, 0, "priority_levels")
        for size in self.preferred_batch_size:
            if not 1 <= size <= self.max_batch_size:
                raise InvalidInput(
                    f"preferred_batch_size {size} is not in 1..max_batch_size ({self.max_batch_size})",
                    "preferred_batch_size",
                )
        if self.priority_levels and not 1 <= self.default_priority_level <= self.priority_levels:
            raise InvalidInput(
                f"default_priority_level is one of 1..priority_levels ({self.priority_levels}), not "
                f"{self.default_priority_level}",
                "default_priority_level",
            )
        for level in self.priority_queue_policy:
            if not 1 <= level <= self.priority_levels:
                raise InvalidInput(
                    f"priority_queue_policy names level {level}; there are 1..{self.priority_levels}",
                    "priority_queue_policy",
                )

    @property
    def allows_queue_timeouts(self) -> bool:
        """Whether an event's own queue timeout is used, on any level."""
        return any(p.allow_timeout_override for p in (self.default_queue_policy, *self.priority_queue_policy.values()))


@dataclass(slots=True, eq=False)
class Ticket:
    """Event in the engine, with its state.

    Args:
        since: time of arrival.
        done: called once, when it leaves, from any thread.
        level: index of its priority, 0 being the most important.
        expires: when it leaves the queue unanswered; demoted: when it moves behind the others.
        estimate: seconds of work before it when it came; 0: not usable.
        waits: by run, number of runs that it still waits for; None where the plan is one run.
        left: runs that are still to do; 0: it has left the engine.
    """

    event: Event
    since: float
    done: Callable[[Event], None]
    level: int = 0
    expires: float = math.inf
    demoted: float = math.inf
    estimate: float = 0.0
    waits: list[int] | None = None
    left: int = 1


class _Level:
    """Events of one priority: `waiting` in time, and `late` ones behind them."""

    __slots__ = ("late", "policy", "rows", "size", "waiting")

    def __init__(self, policy: QueuePolicy) -> None:
        self.policy = policy
        self.waiting: deque[Ticket] = deque()
        self.late: deque[Ticket] = deque()
        self.size = self.rows = 0


class EntryQueue:
    """Bounded queue in order of priority, then of arrival.

    Attributes:
        size, rows: waiting events, and their known rows.
    """

    def __init__(self, policy: BatchPolicy) -> None:
        self._policy = policy
        own = policy.priority_queue_policy
        self._levels = [
            _Level(own.get(level + 1, policy.default_queue_policy)) for level in range(max(1, policy.priority_levels))
        ]
        self._max_size = policy.default_queue_policy.max_queue_size
        self._target = max(policy.preferred_batch_size, default=policy.max_batch_size)
        self._delay = policy.max_queue_delay_microseconds * 1e-6
        self._came = -math.inf
        self._gap = math.inf
        self.size = 0
        self.rows = 0

    def ticket(self, event: Event, now: float, done: Callable[[Event], None]) -> Ticket:
        """Ticket of an event that arrives now; it is not in the queue yet."""
        level = 0
        if self._policy.priority_levels:
            known = 1 <= event.priority <= self._policy.priority_levels
            level = (event.priority if known else self._policy.default_priority_level) - 1
        ticket = Ticket(event, now, done, level, event.deadline)
        policy = self._levels[level].policy
        until = now + policy.timeout(event)
        if policy.timeout_action == "DELAY":
            ticket.demoted = until
        elif until < ticket.expires:
            ticket.expires = until
        return ticket

    def full_for(self, level: int) -> bool:
        """Whether an event of a level finds no room: none free, and none of a less important event."""
        own = self._levels[level]
        if own.size >= own.policy.max_queue_size:
            return True
        return self.size >= self._max_size and not any(less.size for less in self._levels[level + 1 :])

    def ahead(self, level: int) -> tuple[int, int]:
        """Number of events, and of their rows, ahead of an event of a level that arrives now."""
        if level == len(self._levels) - 1:
            return self.size, self.rows
        more = self._levels[: level + 1]
        return sum(each.size for each in more), sum(each.rows for each in more)

    def push(self, ticket: Ticket) -> Ticket | None:
        """Add an event. Returns the event that it replaced, if any: the last of the least important."""
        shed = None
        if self.size >= self._max_size:
            level = next(level for level in reversed(self._levels) if level.size)
            shed = (level.late or level.waiting).pop()
            self._left(shed)
        level = self._levels[ticket.level]
        level.waiting.append(ticket)
        level.size += 1
        level.rows += ticket.event.rows
        self.size += 1
        self.rows += ticket.event.rows
        if self._delay:
            gap = ticket.since - self._came
            self._came = ticket.since
            if math.isfinite(gap):
                self._gap = gap if math.isinf(self._gap) else self._gap + (gap - self._gap) * NEW_GAP_FRACTION
        return shed

    def patience(self, now: float) -> float:
        """Seconds that a batch may still wait for more events; 0: it does not wait."""
        if not self._delay or not self.size or self.rows >= self._target:
            return 0.0
        left = min(t.since for level in self._levels for t in (*level.waiting, *level.late)) + self._delay - now
        return left if left > self._gap else 0.0

    def take(self, now: float, *, batched: bool) -> tuple[list[Ticket], list[Ticket]]:
        """The next batch, and the cancelled and expired events before it; both leave the queue.

        Args:
            batched: a batch is several events of one model (the same object); otherwise one event.
        """
        if len(self._levels) == 1 and (self.size == 1 or not batched):
            queue = self._levels[0].waiting
            if queue and not queue[0].event.cancelled and now < queue[0].expires and now < queue[0].demoted:
                first = queue.popleft()
                self._left(first)
                return [first], []
        batch: list[Ticket] = []
        stale: list[Ticket] = []
        seen: list[tuple[deque[Ticket], list[Ticket]]] = []
        model: object = None
        rows, most = 0, self._policy.max_batch_size
        for level in self._levels:
            for queue in (level.waiting, level.late):
                passed: list[Ticket] = []
                while queue and rows < most:
                    ticket = queue.popleft()
                    event = ticket.event
                    if event.cancelled or now >= ticket.expires:
                        stale.append(ticket)
                        continue
                    if now >= ticket.demoted and queue is level.waiting:
                        level.late.append(ticket)
                        continue
                    passed.append(ticket)
                    if not batch:
                        batch.append(ticket)
                        model = event.model
                        rows = event.rows if batched and event.rows > 0 else most
                    elif event.model is model:
                        if not 0 < event.rows <= most - rows:
                            most = rows  # the batch ends here, so that no later event of the model overtakes this one
                            break
                        batch.append(ticket)
                        rows += event.rows
                seen.append((queue, passed))
        batch = self._preferred(batch, rows)
        taken = set(batch)
        for queue, passed in seen:
            queue.extendleft(ticket for ticket in reversed(passed) if ticket not in taken)
        for ticket in (*batch, *stale):
            self._left(ticket)
        return batch, stale

    def sweep(self, now: float) -> list[Ticket]:
        """Remove all cancelled and expired events; walks the whole queue."""
        stale: list[Ticket] = []
        for level in self._levels:
            for queue in (level.waiting, level.late):
                gone = [t for t in queue if t.event.cancelled or now >= t.expires]
                if gone:
                    kept = [t for t in queue if not (t.event.cancelled or now >= t.expires)]
                    queue.clear()
                    queue.extend(kept)
                    stale += gone
        for ticket in stale:
            self._left(ticket)
        return stale

    def next_expiry(self) -> float:
        """Time when the next event expires; infinity if none does."""
        return min(
            (t.expires for level in self._levels for queue in (level.waiting, level.late) for t in queue),
            default=math.inf,
        )

    def clear(self) -> list[Ticket]:
        """Remove all events."""
        taken = [t for level in self._levels for queue in (level.waiting, level.late) for t in queue]
        for level in self._levels:
            level.waiting.clear()
            level.late.clear()
        for ticket in taken:
            self._left(ticket)
        return taken

    def depths(self) -> tuple[int, ...]:
        """Waiting events by level, the most important first."""
        return tuple(level.size for level in self._levels)

    def _left(self, ticket: Ticket) -> None:
        level = self._levels[ticket.level]
        level.size -= 1
        level.rows -= ticket.event.rows
        self.size -= 1
        self.rows -= ticket.event.rows

    def _preferred(self, batch: list[Ticket], rows: int) -> list[Ticket]:
        """The longest prefix of a batch within the largest preferred size that it reaches; at least one event."""
        reached = max((size for size in self._policy.preferred_batch_size if size <= rows), default=rows)
        if reached == rows or len(batch) < 2:
            return batch
        count, total = 1, batch[0].event.rows
        while total + batch[count].event.rows <= reached:
            total += batch[count].event.rows
            count += 1
        return batch[:count]


class InnerQueue:
    """Queue in front of a further run of the plan, in order of arrival.

    Workers take from it before they take new events, so its length is bounded: the largest batch times their number.
    """

    def __init__(self, max_batch_size: int, *, batched: bool) -> None:
        self._most = max_batch_size if batched else 0
        self._waiting: deque[tuple[Ticket, float]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, ticket: Ticket, now: float) -> None:
        """Add an event."""
        self._waiting.append((ticket, now))

    def take(self) -> list[tuple[Ticket, float]]:
        """The next batch, each event with its time of arrival."""
        first = self._waiting.popleft()
        batch = [first]
        model = first[0].event.model
        rows = first[0].event.rows or self._most
        while self._waiting:
            event = self._waiting[0][0].event
            if event.model is not model or not 0 < event.rows <= self._most - rows:
                break
            rows += event.rows
            batch.append(self._waiting.popleft())
        return batch

    def clear(self) -> list[Ticket]:
        """Remove all events."""
        taken = [ticket for ticket, _ in self._waiting]
        self._waiting.clear()
        return taken
