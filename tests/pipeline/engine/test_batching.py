from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engine.batching import BatchPolicy, EntryQueue, InnerQueue, QueuePolicy, Ticket
from pipeline.errors import InvalidInput
from pipeline.event import Event

A, B = object(), object()


def event(rows: int, model: object = A, **more: object) -> Event:
    return Event(rows=rows, model=model, **more)  # type: ignore[arg-type]


def put(queue: EntryQueue, *events: Event, now: float = 0.0) -> list[Ticket]:
    tickets = [queue.ticket(e, now, lambda _: None) for e in events]
    for ticket in tickets:
        assert queue.push(ticket) is None
    return tickets


def rows_taken(queue: EntryQueue, now: float = 0.0) -> list[list[int]]:
    taken = []
    while queue.size:
        batch, _ = queue.take(now, batched=True)
        taken.append([t.event.rows for t in batch])
    return taken


@pytest.mark.parametrize(
    ("rows", "preferred", "batches"),
    [
        ([10, 20, 30], (), [[10, 20, 30]]),
        ([60, 40, 1], (), [[60, 40], [1]]),
        ([60, 50, 1], (), [[60], [50, 1]]),  # what does not fit is not overtaken
        ([500, 1], (), [[500], [1]]),  # larger than a batch: alone
        ([1, 500, 1], (), [[1], [500], [1]]),
        ([0, 1, 1], (), [[0], [1, 1]]),  # of unknown size: alone
        ([1, 0, 1], (), [[1], [0], [1]]),
        ([30, 30, 30], (64,), [[30, 30], [30]]),
        ([10, 10], (64,), [[10, 10]]),  # not reached: as much as there is
        ([70, 10, 10, 10], (32, 64), [[70], [10, 10, 10]]),
        ([8] * 9, (16, 64), [[8] * 8, [8]]),
    ],
)
def test_batches_count_rows(rows: list[int], preferred: tuple[int, ...], batches: list[list[int]]) -> None:
    queue = EntryQueue(BatchPolicy(max_batch_size=100, preferred_batch_size=preferred))
    put(queue, *(event(n) for n in rows))
    assert rows_taken(queue) == batches
    assert queue.rows == 0


def test_a_batch_has_one_model_and_the_others_keep_their_places() -> None:
    queue = EntryQueue(BatchPolicy(max_batch_size=100))
    put(queue, event(1, A), event(2, B), event(3, A), event(4, B), event(5, A))
    assert rows_taken(queue) == [[1, 3, 5], [2, 4]]
    put(queue, event(1, A), event(2, B))
    assert [t.event.rows for t in queue.take(0.0, batched=False)[0]] == [1]


def test_only_what_somebody_waits_for_is_taken() -> None:
    queue = EntryQueue(BatchPolicy())
    cancelled = event(2)
    put(queue, event(1, deadline=5.0), cancelled, event(3), event(4, deadline=5.0))
    cancelled.cancelled = True
    batch, stale = queue.take(5.0, batched=True)
    assert ([t.event.rows for t in batch], [t.event.rows for t in stale]) == ([3], [1, 2, 4])
    assert queue.size == queue.rows == 0


def test_important_events_go_first_and_the_least_important_makes_room() -> None:
    own = {3: QueuePolicy(max_queue_size=1)}
    policy = BatchPolicy(
        max_batch_size=4, priority_levels=3, default_priority_level=2, priority_queue_policy=own,
        default_queue_policy=QueuePolicy(max_queue_size=3),
    )  # fmt: skip
    queue = EntryQueue(policy)
    put(queue, event(1, priority=3), event(2, priority=9), event(3))
    assert queue.depths() == (0, 2, 1)
    assert queue.full_for(2)  # of its own
    assert not queue.full_for(1)
    assert queue.ahead(0) == (0, 0)
    assert queue.ahead(1) == (2, 5)
    shed = queue.push(queue.ticket(event(4, priority=1), 0.0, lambda _: None))
    assert shed is not None
    assert shed.event.rows == 1
    assert queue.full_for(1)
    shed = queue.push(queue.ticket(event(1, priority=1), 0.0, lambda _: None))
    assert shed is not None
    assert shed.event.rows == 3  # the last that came
    assert rows_taken(queue) == [[4], [1, 2]]


def test_a_queue_timeout_rejects_or_delays() -> None:
    late = QueuePolicy(default_timeout_microseconds=1_000_000)
    queue = EntryQueue(BatchPolicy(default_queue_policy=late))
    put(queue, event(1), event(2, queue_timeout=0.5))
    assert queue.next_expiry() == 1.0
    assert [t.event.rows for t in queue.sweep(1.0)] == [1, 2]

    late = QueuePolicy(default_timeout_microseconds=1_000_000, allow_timeout_override=True, timeout_action="DELAY")
    queue = EntryQueue(BatchPolicy(default_queue_policy=late))
    put(queue, event(1, queue_timeout=0.5), event(2, B), event(3, queue_timeout=2.0))
    assert queue.next_expiry() == math.inf
    assert rows_taken(queue, now=0.6) == [[2], [3, 1]]


def test_patience_is_what_remains_for_the_oldest() -> None:
    queue = EntryQueue(BatchPolicy(max_batch_size=10, max_queue_delay_microseconds=10_000))
    assert queue.patience(0.0) == 0
    for i in range(4):
        put(queue, event(2), now=0.002 * i)
    assert queue.patience(0.007) == pytest.approx(0.003)
    assert queue.patience(0.0085) == 0  # the next comes every 2 ms: too late
    put(queue, event(2), now=0.008)
    assert queue.patience(0.008) == 0  # full
    assert EntryQueue(BatchPolicy()).patience(0.0) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_batch_size": 0}, "max_batch_size is at least 1"),
        ({"preferred_batch_size": (600,)}, "preferred_batch_size 600 is not in 1..max_batch_size"),
        ({"max_queue_delay_microseconds": -1}, "max_queue_delay_microseconds is at least 0"),
        ({"priority_levels": 2}, "default_priority_level is one of 1..priority_levels"),
        ({"priority_queue_policy": {1: QueuePolicy()}}, "names level 1"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused_by_name(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        BatchPolicy(**settings)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="max_queue_size is at least 1"):
        QueuePolicy(max_queue_size=0)


def test_an_inner_queue_keeps_the_order_and_batches_neighbours() -> None:
    queue = InnerQueue(10, batched=True)
    tickets = [Ticket(event(n, m), 0.0, lambda _: None) for n, m in [(4, A), (4, A), (4, A), (1, B), (0, A), (1, A)]]
    for ticket in tickets:
        queue.push(ticket, 1.0)
    taken = []
    while queue:
        taken.append([t.event.rows for t, came in queue.take() if came == 1.0])
    assert taken == [[4, 4], [4], [1], [0], [1]]
    single = InnerQueue(10, batched=False)
    for ticket in tickets[:2]:
        single.push(ticket, 1.0)
    assert [len(single.take()), len(single.take())] == [1, 1]


moves = st.lists(
    st.one_of(
        st.tuples(
            st.just("put"),
            st.integers(0, 12),  # rows
            st.sampled_from([A, B]),
            st.integers(0, 4),  # priority
            st.sampled_from([math.inf, 1.0, 3.0]),  # lifetime
            st.booleans(),  # cancelled later on
        ),
        st.tuples(st.just("take"), st.booleans()),
        st.tuples(st.just("sweep")),
        st.tuples(st.just("tick"), st.floats(0.1, 2.0)),
    ),
    max_size=60,
)


@given(moves, st.integers(1, 10), st.integers(0, 3), st.sampled_from([(), (4,), (2, 7)]), st.booleans())
def test_whatever_happens_each_event_leaves_once_in_order_and_in_time(
    steps: list[tuple[object, ...]], size: int, levels: int, preferred: tuple[int, ...], delay: bool
) -> None:
    own = QueuePolicy(
        max_queue_size=size,
        timeout_action="DELAY" if delay else "REJECT",
        default_timeout_microseconds=2_000_000,
    )
    policy = BatchPolicy(
        max_batch_size=10, preferred_batch_size=preferred, priority_levels=levels,
        default_priority_level=min(levels, 2), default_queue_policy=own,
    )  # fmt: skip
    queue = EntryQueue(policy)
    now = 0.0
    inside: list[Ticket] = []
    doomed: list[Event] = []
    for step in steps:
        if step[0] == "put":
            _, rows, model, priority, life, cancel = step
            new = event(rows, model, priority=priority, deadline=now + life)  # type: ignore[arg-type, operator]
            ticket = queue.ticket(new, now, lambda _: None)
            if cancel:
                doomed.append(new)
            if queue.full_for(ticket.level):
                assert len(inside) >= size
                assert not any(t.level > ticket.level for t in inside)
                continue
            shed = queue.push(ticket)
            inside.append(ticket)
            if shed is not None:
                assert shed.level == max(t.level for t in inside) > ticket.level
                inside.remove(shed)
        elif step[0] == "tick":
            now += step[1]  # type: ignore[operator]
            for each in doomed:
                each.cancelled = True
        else:
            batch: list[Ticket] = []
            if step[0] == "take":
                batch, gone = queue.take(now, batched=bool(step[1]))
            else:
                gone = queue.sweep(now)
            for ticket in gone:
                assert ticket.event.cancelled or now >= ticket.expires
            for ticket in batch:
                assert not ticket.event.cancelled
                assert now < min(ticket.expires, ticket.event.deadline)
                assert ticket.event.model is batch[0].event.model
            if len(batch) > 1:
                assert step[1]
                assert all(t.event.rows > 0 for t in batch)
                assert sum(t.event.rows for t in batch) <= 10
            left = [t for t in inside if t not in gone and t not in batch]
            assert len(left) + len(gone) + len(batch) == len(inside)
            if batch:
                rank = {id(t): (t.level, now >= t.demoted, at) for at, t in enumerate(inside)}
                alive = [t for t in left if not t.event.cancelled and now < t.expires]
                assert all(rank[id(batch[0])] < rank[id(t)] for t in alive) or delay
            inside = left
        assert queue.size == len(inside) <= size
        assert queue.rows == sum(t.event.rows for t in inside)
        assert sum(queue.depths()) == queue.size
    assert sorted(map(id, queue.clear())) == sorted(map(id, inside))
    assert queue.size == queue.rows == 0
