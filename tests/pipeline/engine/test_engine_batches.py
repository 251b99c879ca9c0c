"""Engine with batches, priorities, timers and plans that fork."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.engine.batching import BatchPolicy, QueuePolicy
from pipeline.engine.engine import Engine
from pipeline.engine.plan import Plan
from pipeline.errors import DeadlineExceeded, InvalidInput, NotReady, Overloaded
from pipeline.event import Event


class Score:
    """Doubles the request, in batches; holds at a gate; falls over an event whose first value is negative."""

    name = "score"
    consumes = ("request", "model")
    produces = ("scores",)

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[list[int]] = []
        self.models: list[object] = []
        self.singles: list[int] = []

    def run(self, event: Event) -> None:
        self.singles.append(int(event.request[0]))
        assert self.gate.wait(20)
        if event.request[0] < 0:
            raise InvalidInput("negative")
        event.scores = 2 * event.request

    def run_batch(self, events: Sequence[Event]) -> None:
        self.batches.append([int(e.request[0]) for e in events])
        assert len({id(e.model) for e in events}) == 1
        assert self.gate.wait(20)
        together = np.concatenate([e.request for e in events])
        if (together < 0).any():
            raise InvalidInput("one of them is negative")
        at = 0
        for event in events:
            event.scores = 2 * together[at : at + len(event.request)]
            at += len(event.request)


@dataclass
class Step:
    """A stage of a graph: what it makes is the names of all that came before it."""

    name: str
    consumes: tuple[str, ...]
    produces: tuple[str, ...]
    handles_errors: bool = False
    fails: bool = False
    gate: threading.Event = field(default_factory=threading.Event)
    ran: int = 0

    def __post_init__(self) -> None:
        self.gate.set()

    def run(self, event: Event) -> None:
        assert self.gate.wait(20)
        self.ran += 1
        if self.fails:
            raise InvalidInput(f"{self.name} fails")
        if event.error is None:
            known = [event.values[value] for value in self.consumes if value != "request"]
            for value in self.produces:
                event.values[value] = frozenset({self.name}.union(*known))


def request(first: int, rows: int = 1, **more: Any) -> Event:
    return Event(request=np.arange(first, first + rows, dtype=np.float32), rows=rows, **more)


@contextmanager
def running(plan: Plan, **more: Any) -> Iterator[Engine]:
    engine = Engine(plan, **more)
    try:
        yield engine
    finally:
        engine.close(drain=False, timeout=20)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def jam(engine: Engine, score: Score) -> Future[Event]:
    """Hold the only worker of an engine."""
    score.gate.clear()
    held = engine.submit(request(0))
    wait_for(lambda: score.singles == [0])
    return held


def test_what_waits_is_done_together_and_each_gets_its_own() -> None:
    score, first, second = Score(), object(), object()
    with running(Plan([score]), policy=BatchPolicy(max_batch_size=10)) as engine:
        jam(engine, score)
        sizes = [(100, 4, first), (200, 3, second), (300, 4, first), (400, 25, first), (500, 2, first)]
        futures = [engine.submit(request(v, n, model=m)) for v, n, m in sizes]
        score.gate.set()
        for (value, rows, _), future in zip(sizes, futures, strict=True):
            np.testing.assert_array_equal(future.result(20).scores, 2 * np.arange(value, value + rows))
        assert score.batches == [[100, 300]]
        assert score.singles == [0, 200, 400, 500]  # alone: other model, too large, nobody left
        stats = engine.stats()
        assert (stats.batch_events.count, stats.batch_events.sum, stats.batch_rows.sum) == (5, 6, 39)
        assert stats.stages["score"].count == 5
        one, other = futures[0].result().timings, futures[2].result().timings
        assert one["score"] == other["score"]
        assert one["queue"] > 0


def test_one_bad_event_does_not_fail_its_neighbours() -> None:
    score = Score()
    with running(Plan([score])) as engine:
        jam(engine, score)
        good, bad = engine.submit(request(10, 3)), engine.submit(request(-1, 3))
        last = engine.submit(request(20, 1))
        score.gate.set()
        np.testing.assert_array_equal(good.result(20).scores, [20, 22, 24])
        np.testing.assert_array_equal(last.result(20).scores, [40])
        with pytest.raises(InvalidInput, match="negative"):
            bad.result(20)
        assert score.batches == [[10, -1, 20]]
        assert score.singles == [0, 10, -1, 20]  # once
        stats = engine.stats()
        assert (stats.answered, stats.failed, stats.retried) == (3, 1, 1)


def test_a_fault_that_a_batch_tells_of_one_event_is_its_own() -> None:
    class Picky(Score):
        def run_batch(self, events: Sequence[Event]) -> None:
            super().run_batch([e for e in events if e.request[0] < 100])
            for event in events:
                if event.request[0] >= 100:
                    event.error = InvalidInput("too large")

    score = Picky()
    with running(Plan([score])) as engine:
        jam(engine, score)
        futures = [engine.submit(request(v)) for v in (1, 100, 2)]
        score.gate.set()
        assert [futures[i].result(20).scores[0] for i in (0, 2)] == [2, 4]
        with pytest.raises(InvalidInput, match="too large"):
            futures[1].result(20)
        assert engine.stats().retried == 0


def test_an_event_in_the_queue_is_answered_at_its_deadline_not_when_the_batch_before_it_ends() -> None:
    score = Score()
    with running(Plan([score])) as engine:
        held = jam(engine, score)
        waiting = engine.submit(request(1, deadline=time.monotonic() + 60))
        expiring = engine.submit(request(2, deadline=time.monotonic() + 0.02))
        with pytest.raises(DeadlineExceeded, match="in the queue"):
            expiring.result(20)
        with pytest.raises(DeadlineExceeded):
            engine.submit(request(3, deadline=time.monotonic() - 1))
        assert not held.done()
        score.gate.set()
        waiting.result(20)
        assert score.singles == [0, 1]
        assert engine.stats().rejected == {"expired": 2}


def test_a_queue_timeout_is_overload_and_not_the_callers_deadline() -> None:
    score = Score()
    own = QueuePolicy(default_timeout_microseconds=20_000)
    with running(Plan([score]), policy=BatchPolicy(default_queue_policy=own)) as engine:
        jam(engine, score)
        waiting = engine.submit(request(1))
        with pytest.raises(Overloaded, match="no answer in"):
            waiting.result(20)
        assert engine.stats().rejected == {"timeout": 1}
        score.gate.set()


def test_important_requests_go_first_and_take_the_place_of_others() -> None:
    score = Score()
    policy = BatchPolicy(
        max_batch_size=1, priority_levels=3, default_priority_level=2,
        default_queue_policy=QueuePolicy(max_queue_size=3),
    )  # fmt: skip
    with running(Plan([score]), policy=policy) as engine:
        jam(engine, score)
        low, default, also = (engine.submit(request(v, priority=p)) for v, p in [(1, 3), (2, 0), (3, 7)])
        assert engine.stats().depth_by_priority == (0, 2, 1)
        assert engine.refusal() is None  # a more important one would find room
        high = engine.submit(request(4, priority=1))
        with pytest.raises(Overloaded, match="a more important request took its place"):
            low.result(20)
        with pytest.raises(Overloaded):
            engine.submit(request(5, priority=2))
        score.gate.set()
        for future in (default, also, high):
            future.result(20)
        assert score.singles == [0, 4, 2, 3]
        assert engine.stats().rejected == {"shed": 1, "overloaded": 1}


def test_the_door_tells_at_no_cost_that_all_would_be_refused() -> None:
    score = Score()
    with running(Plan([score]), policy=BatchPolicy(default_queue_policy=QueuePolicy(max_queue_size=2))) as engine:
        assert engine.refusal() is None
        jam(engine, score)
        cancelled = request(1)
        gone = engine.submit(cancelled)
        kept = engine.submit(request(2))
        refusal = engine.refusal()
        assert isinstance(refusal, Overloaded)
        assert refusal.retry_after > 0
        assert engine.stats().rejected == {"overloaded": 1}
        cancelled.cancelled = True
        wait_for(lambda: engine.refusal() is None)  # what nobody waits for takes no place
        with pytest.raises(CancelledError):
            gone.result(20)
        score.gate.set()
        kept.result(20)


def test_events_that_could_not_be_answered_in_time_are_refused_at_once() -> None:
    class Slow(Score):
        def run(self, event: Event) -> None:
            super().run(event)
            time.sleep(0.02)

    score = Slow()
    with running(Plan([score]), policy=BatchPolicy(max_batch_size=1)) as engine:
        engine.submit(request(0)).result(20)
        score.singles.clear()
        jam(engine, score)
        kept = [engine.submit(request(v)) for v in range(1, 6)]
        with pytest.raises(Overloaded, match="the deadline would pass") as refused:
            engine.submit(request(9, deadline=time.monotonic() + 0.05))
        assert refused.value.retry_after >= 0.1
        score.gate.set()
        for future in kept:
            future.result(20)
        assert 9 not in score.singles


def test_a_free_worker_may_wait_for_company_but_no_longer_than_the_delay_of_the_oldest() -> None:
    score = Score()
    policy = BatchPolicy(max_batch_size=4, max_queue_delay_microseconds=10_000_000)
    with running(Plan([score]), policy=policy) as engine:
        futures = [engine.submit(request(v)) for v in (1, 2, 3, 4)]
        assert [f.result(20).scores[0] for f in futures] == [2, 4, 6, 8]
        assert sorted(v for batch in score.batches for v in batch) + score.singles in ([1, 2, 3, 4], [2, 3, 4, 1])
        policy = BatchPolicy(max_batch_size=100, max_queue_delay_microseconds=1000)
    with running(Plan([score]), policy=policy) as engine:
        futures = [engine.submit(request(v)) for v in range(5, 9)]
        assert [f.result(20).scores[0] for f in futures] == [10, 12, 14, 16]


async def test_small_events_run_where_they_arrive_until_they_come_together() -> None:
    score = Score()
    with running(Plan([score]), inline_rows=4) as engine:
        for value in range(400):
            await engine.run(request(value, 2))
        assert not score.batches
        alone = engine.stats().batch_events.count  # of those that went to a worker, to see whether there is company
        assert 0 < alone < 100

        async def caller(first: int) -> None:
            for value in range(100):
                event = await engine.run(request(first + value, 2))
                assert event.scores is not None
                assert event.scores[0] == 2 * (first + value)

        await asyncio.gather(*(caller(1000 * number) for number in range(1, 9)))
        assert engine.stats().batch_events.sum - alone > 700
        assert score.batches


def test_networks_in_branches_get_batches_too() -> None:
    score, halve = Score(), Halve()
    with running(Plan([score, halve, Add()])) as engine:
        jam(engine, score)
        futures = [engine.submit(request(v)) for v in (10, 20, 30)]
        score.gate.set()
        assert [f.result(20).scores[0] for f in futures] == [25, 50, 75]
        assert score.batches == [[10, 20, 30]]


def diamond() -> tuple[Plan, dict[str, Step]]:
    steps = [
        Step("start", ("request",), ("x",)),
        Step("left", ("x",), ("a",)),
        Step("right", ("x",), ("b",)),
        Step("join", ("a", "b"), ("out",)),
        Step("watch", ("out",), (), handles_errors=True),
    ]
    return Plan(steps, outputs=("out",)), {step.name: step for step in steps}


def test_branches_run_in_parallel_and_a_join_waits_for_both() -> None:
    plan, steps = diamond()
    with running(plan, workers=2, name="two") as engine:
        steps["left"].gate.clear()
        future = engine.submit(request(1))
        wait_for(lambda: steps["right"].ran == 1)
        assert steps["join"].ran == 0
        steps["left"].gate.set()
        event = future.result(20)
        assert event.values["out"] == {"start", "left", "right", "join"}
        assert set(event.timings) == {
            "queue", "start", "left", "right", "join", "watch", "queue:left", "queue:right", "queue:join",
        }  # fmt: skip
        stats = engine.stats()
        assert stats.answered == 1
        assert {name: queue.count for name, queue in stats.queues.items()} == {"left": 1, "right": 1, "join": 1}


@pytest.mark.parametrize("failing", ["start", "left", "right", "join"])
def test_a_failed_branch_still_reaches_the_join_and_those_who_handle_errors(failing: str) -> None:
    plan, steps = diamond()
    steps[failing].fails = True
    with running(plan, workers=2) as engine:
        futures = [engine.submit(request(v)) for v in range(20)]
        for future in futures:
            with pytest.raises(InvalidInput, match=f"{failing} fails"):
                future.result(20)
        assert steps["watch"].ran == 20
        assert steps["join"].ran == (20 if failing == "join" else 0)
        stats = engine.stats()
        assert (stats.accepted, stats.answered, stats.failed) == (20, 0, 20)


async def test_a_plan_that_forks_also_runs_where_the_event_arrives() -> None:
    plan, steps = diamond()
    with running(plan, workers=1) as engine:
        event = await engine.run(request(1))
        assert event.values["out"] == {"start", "left", "right", "join"}
        assert steps["watch"].ran == 1


def test_closing_answers_what_is_inside_a_plan_that_forks() -> None:
    plan, steps = diamond()
    engine = Engine(plan, workers=2)
    steps["right"].gate.clear()
    futures = [engine.submit(request(v)) for v in range(5)]
    wait_for(lambda: steps["left"].ran >= 1)
    closer = threading.Thread(target=engine.close, kwargs={"timeout": 20})
    closer.start()
    steps["right"].gate.set()
    closer.join(20)
    assert [f.result(0).values["out"] for f in futures] == [{"start", "left", "right", "join"}] * 5


def test_a_worker_that_hangs_is_left_behind_and_others_are_told() -> None:
    plan, steps = diamond()
    engine = Engine(plan, workers=1)
    for name in ("left", "right"):
        steps[name].gate.clear()
    future = engine.submit(request(1))
    waiting = engine.submit(request(2))
    wait_for(lambda: engine.stalled()[1] in ("left", "right"))
    engine.close(drain=False, timeout=0.05)
    for each in (future, waiting):
        with pytest.raises(NotReady):
            each.result(20)
    for name in ("left", "right"):
        steps[name].gate.set()
    engine.close(timeout=20)
    assert engine.stats().rejected == {"closed": 2}
    assert steps["join"].ran == 0


def test_a_stage_that_would_end_its_thread_ends_its_event_only() -> None:
    class Exits(Score):
        def run(self, event: Event) -> None:
            if event.request[0] == 1:
                raise SystemExit(3)
            super().run(event)

    with running(Plan([Exits()])) as engine:
        with pytest.raises(RuntimeError, match="SystemExit"):
            engine.submit(request(1)).result(20)
        assert engine.submit(request(2)).result(20).scores[0] == 4


plans = st.sampled_from(["one run", "fork"])
requests_of = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 2, 5, 9, 40]),  # rows, 0: not said
        st.sampled_from(["wait", "wait", "cancel", "expired", "late", "bad"]),
        st.integers(0, 3),  # priority
        st.booleans(),  # which model
        st.booleans(),  # yield to the loop before the next
    ),
    min_size=1,
    max_size=40,
)


class Check:
    """Sees every event, those that failed as well."""

    name = "check"
    consumes = ("scores",)
    produces = ()
    handles_errors = True

    def __init__(self) -> None:
        self.seen: Counter[int] = Counter()

    def run(self, event: Event) -> None:
        self.seen[id(event)] += 1


class Halve:
    """Another network in the same plan."""

    name = "halve"
    consumes = ("request", "model")
    produces = ("halves",)

    def run(self, event: Event) -> None:
        event.values["halves"] = event.request / 2

    def run_batch(self, events: Sequence[Event]) -> None:
        for event in events:
            self.run(event)


class Add:
    """Rewrites the scores from what both networks said."""

    name = "add"
    consumes = ("scores", "halves")
    produces = ("scores",)

    def run(self, event: Event) -> None:
        event.scores = event.scores + event.values["halves"]


@settings(deadline=None, max_examples=80)
@given(
    requests_of, plans, st.integers(1, 3), st.integers(1, 12), st.sampled_from([1, 8, 20]), st.integers(0, 3),
    st.sampled_from([0, 300]), st.integers(0, 6), st.sampled_from(["REJECT", "DELAY"]), st.sampled_from([0, 500]),
)  # fmt: skip
def test_for_any_interleaving_each_answer_is_of_its_own_rows_none_lost_none_twice(
    requests: list[tuple[int, str, int, bool, bool]], shape: str, workers: int, size: int, batch: int, levels: int,
    delay: int, inline_rows: int, action: Any, timeout: int,
) -> None:  # fmt: skip
    score, check = Score(), Check()
    fork = shape == "fork"
    plan = Plan([score, check, *([Halve(), Add()] if fork else [])])
    policy = BatchPolicy(
        max_batch_size=batch,
        max_queue_delay_microseconds=delay,
        priority_levels=levels,
        default_priority_level=levels and 1,
        default_queue_policy=QueuePolicy(size, action, timeout),
    )
    models = (object(), object())
    answers: Counter[int] = Counter()

    async def ask(engine: Engine, event: Event) -> Event:
        try:
            return await engine.run(event)
        finally:
            answers[id(event)] += 1

    async def scenario(engine: Engine) -> list[tuple[Event, object]]:
        tasks = []
        for number, (rows, kind, priority, other, pause) in enumerate(requests):
            deadline = {"expired": 0.0, "late": time.monotonic() + 2e-4}.get(kind, float("inf"))
            first = 100 * number + 1 if kind != "bad" else -(100 * number + 100)
            event = request(first, rows or 3, priority=priority, deadline=deadline, model=models[other])
            event.rows = rows
            task = asyncio.create_task(ask(engine, event))
            tasks.append((event, task))
            if pause:
                await asyncio.sleep(0)
            if kind == "cancel":
                task.cancel()
        ends = await asyncio.wait_for(asyncio.gather(*(t for _, t in tasks), return_exceptions=True), 20)
        return [(event, end) for (event, _), end in zip(tasks, ends, strict=True)]

    with running(plan, workers=workers, policy=policy, inline_rows=inline_rows) as engine:
        ends = asyncio.run(scenario(engine))
        engine.close(timeout=20)
        stats = engine.stats()
    worked = Counter(score.singles) + Counter(v for each in score.batches for v in each)
    retried = Counter(v for each in score.batches for v in each) & Counter(score.singles)
    for (event, end), (_, kind, *_) in zip(ends, requests, strict=True):
        first = int(event.request[0])
        times = worked[first] - retried[first]
        assert times <= 1
        if end is event:
            assert kind in ("wait", "late", "cancel")
            assert times == 1
            np.testing.assert_array_equal(event.scores, event.request * (2.5 if fork else 2))
        elif kind == "wait":
            assert isinstance(end, Overloaded)
        elif kind == "bad":
            assert isinstance(end, (Overloaded, InvalidInput))
        elif kind == "cancel":
            assert isinstance(end, (Overloaded, asyncio.CancelledError))
        else:
            assert isinstance(end, (Overloaded, DeadlineExceeded))
        if kind == "expired":
            assert times == 0
        assert check.seen[id(event)] <= 1
    if not any(kind == "bad" for _, kind, *_ in requests):
        assert not stats.retried
    for rows in score.batches:
        sizes = [len(ends[(abs(v) - (1 if v > 0 else 100)) // 100][0].request) for v in rows]
        assert sum(sizes) <= batch
    assert all(count == 1 for count in answers.values())
    door = stats.rejected.get("overloaded", 0)
    inside = sum(stats.rejected.values()) - door
    assert stats.accepted == stats.answered + stats.failed + inside
    assert stats.queue_depth == 0
