from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager

import numpy as np
import pytest
from handmade import random_rows, random_tables, write_bundle
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.engine.batching import BatchPolicy, QueuePolicy
from pipeline.engine.engine import Engine
from pipeline.engine.plan import Plan
from pipeline.errors import DeadlineExceeded, InvalidInput, NotReady, Overloaded
from pipeline.event import Event
from pipeline.features import Features
from pipeline.model.model import Model
from pipeline.stages.decode import Decode
from pipeline.stages.embed import Embed
from pipeline.stages.infer import Infer
from pipeline.stages.record import Record
from pipeline.traffic.record import unpack


class HandClock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def wall_ms(self) -> int:
        return 1_700_000_000_000


class Work:
    """Doubles the request; waits at a gate, fails or is looked at where a test says so."""

    name = "work"
    consumes = ("request",)
    produces = ("scores",)

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.ran: list[int] = []
        self.threads: set[str] = set()

    def run(self, event: Event) -> None:
        self.ran.append(int(event.request[0]))
        self.threads.add(threading.current_thread().name)
        assert self.gate.wait(20)
        if event.request[0] < 0:
            raise InvalidInput("negative")
        event.scores = 2 * event.request


class Notice:
    name = "notice"
    consumes = ("scores",)
    produces = ()
    handles_errors = True

    def __init__(self) -> None:
        self.errors: list[str] = []

    def run(self, event: Event) -> None:
        self.errors.append(type(event.error).__name__)


def request(*values: float, rows: int = 0, deadline: float = float("inf")) -> Event:
    return Event(request=np.array(values, np.float32), rows=rows, deadline=deadline)


def queue_of(size: int) -> BatchPolicy:
    return BatchPolicy(default_queue_policy=QueuePolicy(max_queue_size=size))


@contextmanager
def running(plan: Plan, **more: object) -> Iterator[Engine]:
    engine = Engine(plan, **more)  # type: ignore[arg-type]
    try:
        yield engine
    finally:
        engine.close(drain=False, timeout=20)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_answers_and_timings() -> None:
    with running(Plan([Work()])) as engine:
        event = request(1, 2)
        assert engine.submit(event).result(20) is event
        np.testing.assert_array_equal(event.scores, [2, 4])
        assert set(event.timings) == {"queue", "work"}
        stats = engine.stats()
        assert (stats.accepted, stats.answered, stats.rejected) == (1, 1, {})
        assert stats.stages["work"].count == stats.queue.count == 1
        assert sum(stats.stages["work"].buckets) == 1


async def test_small_events_run_where_they_arrive_and_large_ones_on_a_worker() -> None:
    work = Work()
    with running(Plan([work]), inline_rows=4, name="lane") as engine:
        await engine.run(request(1, rows=4))
        assert work.threads == {threading.current_thread().name}
        work.threads.clear()
        await engine.run(request(1, rows=5))
        await engine.run(request(1))
        assert work.threads == {"lane-0"}
        assert engine.stats().answered == 3


async def test_an_error_passes_later_stages_by_except_those_that_handle_it() -> None:
    work, notice = Work(), Notice()
    late = Work()
    late.name, late.consumes, late.produces = "late", ("scores",), ()
    with running(Plan([work, late, notice])) as engine:
        for rows in (0, 1):
            with pytest.raises(InvalidInput, match="negative"):
                await engine.run(request(-1, rows=rows))
        assert late.ran == []
        assert notice.errors == ["InvalidInput"] * 2
        assert engine.stats().failed == 2


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    work = Work()
    with running(Plan([work]), policy=queue_of(2)) as engine:
        engine.submit(request(0)).result(20)
        work.gate.clear()
        first = engine.submit(request(1))
        wait_for(lambda: work.ran == [0, 1])
        waiting = [engine.submit(request(2)), engine.submit(request(3))]
        with pytest.raises(Overloaded) as refused:
            engine.submit(request(4))
        assert 0 < refused.value.retry_after <= 10
        assert engine.stats().queue_depth == 2
        work.gate.set()
        done = [f.result(20) for f in [first, *waiting]]
        assert [event.scores[0] for event in done] == [2, 4, 6]
        assert [event.load > 0 for event in done] == [False, False, True], (
            "the last one alone found another in the queue"
        )
        assert engine.stats().rejected == {"overloaded": 1}


def test_expired_and_cancelled_events_make_room_and_are_never_run() -> None:
    work, clock = Work(), HandClock()
    with running(Plan([work]), policy=queue_of(2), clock=clock) as engine:
        work.gate.clear()
        blocker = engine.submit(request(1))
        wait_for(lambda: work.ran == [1])
        expiring = engine.submit(request(2, deadline=101))
        cancelled = request(3)
        gone = engine.submit(cancelled)
        clock.now = 102
        cancelled.cancelled = True
        last = engine.submit(request(4))
        with pytest.raises(DeadlineExceeded, match="in the queue"):
            expiring.result(20)
        with pytest.raises(CancelledError):
            gone.result(20)
        work.gate.set()
        assert blocker.result(20).scores[0] == 2
        assert last.result(20).scores[0] == 8
        assert work.ran == [1, 4]
        assert engine.stats().rejected == {"expired": 1, "cancelled": 1}


async def test_a_deadline_that_passes_between_stages_stops_the_work() -> None:
    clock, work, late = HandClock(), Work(), Work()
    late.name, late.consumes, late.produces = "late", ("scores",), ("final",)

    class Slow(Work):
        def run(self, event: Event) -> None:
            super().run(event)
            clock.now += 5

    slow = Slow()
    with running(Plan([slow, late], outputs=("final",)), clock=clock) as engine:
        for rows in (0, 1):
            with pytest.raises(DeadlineExceeded, match="late"):
                await engine.run(request(1, rows=rows, deadline=clock.now + 1))
        assert late.ran == []
        assert work.ran == []
        with pytest.raises(DeadlineExceeded):
            await engine.run(request(1, rows=1, deadline=clock.now))
        assert slow.ran == [1, 1]


async def test_a_cancelled_caller_takes_its_event_along() -> None:
    work = Work()
    with running(Plan([work])) as engine:
        work.gate.clear()
        first = asyncio.create_task(engine.run(request(1)))
        while work.ran != [1]:
            await asyncio.sleep(0.001)
        second = asyncio.create_task(engine.run(request(2)))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        work.gate.set()
        await first
        await engine.run(request(3))
        assert work.ran == [1, 3]


def test_a_hung_stage_is_seen() -> None:
    work, clock = Work(), HandClock()
    with running(Plan([work]), clock=clock) as engine:
        assert engine.stalled() == (0.0, "")
        work.gate.clear()
        future = engine.submit(request(1))
        wait_for(lambda: work.ran == [1])
        clock.now += 7
        assert engine.stalled() == (7.0, "work")
        assert engine.stalled_seconds == 7
        work.gate.set()
        future.result(20)
        assert engine.stalled_seconds == 0


@pytest.mark.parametrize("drain", [True, False])
def test_closing(drain: bool) -> None:
    work = Work()
    engine = Engine(Plan([work]))
    work.gate.clear()
    futures = [engine.submit(request(v)) for v in (1, 2, 3)]
    wait_for(lambda: work.ran == [1])
    closer = threading.Thread(target=engine.close, kwargs={"drain": drain, "timeout": 20})
    closer.start()
    if not drain:
        for future in futures[1:]:
            with pytest.raises(NotReady):
                future.result(20)
    work.gate.set()
    closer.join(20)
    assert not closer.is_alive()
    assert futures[0].result(20).scores[0] == 2
    assert work.ran == ([1, 2, 3] if drain else [1])
    with pytest.raises(NotReady):
        engine.submit(request(4))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 20),  # rows
            st.sampled_from(["wait", "cancel", "expired", "late"]),
            st.booleans(),  # yield to the loop before the next
        ),
        min_size=1,
        max_size=40,
    ),
    st.integers(1, 3),
    st.integers(1, 8),
    st.integers(0, 10),
)
def test_each_answer_is_of_its_own_rows_none_lost_none_twice(
    requests: list[tuple[int, str, bool]], workers: int, max_queue: int, inline_rows: int
) -> None:
    work = Work()

    async def scenario(engine: Engine) -> list[tuple[Event, object]]:
        tasks = []
        for number, (size, kind, pause) in enumerate(requests):
            deadline = {"expired": 0.0, "late": time.monotonic() + 1e-4}.get(kind, float("inf"))
            event = request(*(1000 * number + 1 + np.arange(size)), rows=size, deadline=deadline)
            task = asyncio.create_task(engine.run(event))
            tasks.append((event, kind, task))
            if pause:
                await asyncio.sleep(0)
            if kind == "cancel":
                task.cancel()
        ends = await asyncio.wait_for(asyncio.gather(*(t for _, _, t in tasks), return_exceptions=True), 20)
        return [(event, end) for (event, _, _), end in zip(tasks, ends, strict=True)]

    with running(Plan([work]), workers=workers, policy=queue_of(max_queue), inline_rows=inline_rows) as engine:
        ends = asyncio.run(scenario(engine))
        engine.close(timeout=20)
        stats = engine.stats()
    assert len(work.ran) == len(set(work.ran))
    for (event, end), (_, kind, _) in zip(ends, requests, strict=True):
        if end is event:
            np.testing.assert_array_equal(event.scores, 2 * event.request)
            assert int(event.request[0]) in work.ran
            assert kind in ("wait", "late", "cancel")
        else:
            allowed = {"wait": (Overloaded,), "cancel": (Overloaded, asyncio.CancelledError)}
            assert isinstance(end, allowed.get(kind, (Overloaded, DeadlineExceeded)))
        if kind == "expired":
            assert int(event.request[0]) not in work.ran
    refused = stats.rejected.get("overloaded", 0)
    inside = sum(n for reason, n in stats.rejected.items() if reason != "overloaded")
    assert stats.accepted == stats.answered + stats.failed + inside
    assert stats.accepted + refused <= len(requests)


def serving_plan(
    sink: Callable[[bytes], bool], shadow: Callable[[bytes, str], bool] | None = None, **more: object
) -> tuple[Plan, Record]:
    record = Record(HandClock(), sink, shadow, lambda endpoint: endpoint == "ranker", **more)  # type: ignore[arg-type]
    return Plan([Decode(), Embed(), Infer(), record]), record


@pytest.fixture
def model(repository, segments) -> Model:  # type: ignore[no-untyped-def]
    write_bundle(repository, random_tables(1))
    return Model.load(repository, "ranker", segments=segments)


async def test_a_request_goes_through_decode_embed_infer_record(model: Model) -> None:
    rows = random_rows(np.random.default_rng(3), 30, random_tables(1))
    kept: list[bytes] = []
    handed: list[bytes] = []
    plan, record = serving_plan(lambda b: kept.append(b) is None, lambda b, trace: handed.append(b) is None)
    with running(plan) as engine:
        event = Event(
            request=rows,
            decoder=lambda r, m: Features.from_context(m.schema, r),
            model=model,
            prediction_id="p1",
            endpoint="ranker",
            arm="stable",
        )
        await engine.run(event)
        silent = Event(model=model, features=Features.from_rows(rows))
        await engine.run(silent)
        for alone in (
            {},
            {"endpoint": "solo", "arm": "stable"},
            {"endpoint": "ranker", "arm": "stable", "overridden": True},
        ):
            await engine.run(Event(model=model, features=Features.from_rows(rows), prediction_id="p2", **alone))
    np.testing.assert_allclose(event.scores, model.score(Features.from_context(model.schema, rows)))
    stored = unpack(kept[0])
    assert (stored.prediction_id, stored.endpoint, stored.arm, stored.bundle) == ("p1", "ranker", "stable", "ranker")
    np.testing.assert_array_equal(stored.scores, event.scores)
    np.testing.assert_array_equal(stored.features.rows(model.schema).ids, event.features.rows(model.schema).ids)
    assert len(kept) == 4
    assert handed == kept[:1]
    assert record.recorded == {"sink": 4, "shadow": 1}


async def test_a_record_says_how_its_answer_came_about_and_what_the_caller_wrote_where_it_may(model: Model) -> None:
    rows = random_rows(np.random.default_rng(3), 3, random_tables(1))
    for keep_text in (False, True):
        kept: list[bytes] = []
        plan, _ = serving_plan(
            lambda b, kept=kept: kept.append(b) is None, inclusion_probability=0.25, keep_text=keep_text
        )
        with running(plan) as engine:
            await engine.run(
                Event(
                    model=model,
                    features=Features.from_rows(rows),
                    prediction_id="p",
                    stable_version=4,
                    candidate_version=9,
                    request_id="r7",
                    candidate_texts=["a", "b", "ö"],
                    load=0.5,
                )
            )
        record = unpack(kept[0])
        assert (record.network, record.inclusion_probability, record.load) == ("dense.onnx", 0.25, 0.5)
        assert (record.stable_version, record.candidate_version) == (4, 9)
        told = ("r7", ["a", "b", "ö"]) if keep_text else ("", [])
        assert (record.request_id, list(record.candidate_texts)) == told


async def test_a_sink_that_fails_or_drops_never_fails_the_answer(model: Model) -> None:
    rows = random_rows(np.random.default_rng(3), 3, random_tables(1))

    def broken(_: bytes) -> bool:
        raise OSError("disk full")

    plan, record = serving_plan(broken, lambda _, trace: False)
    with running(plan) as engine:
        for rows_hint in (0, 3):
            event = Event(
                model=model,
                features=Features.from_rows(rows),
                prediction_id="p",
                endpoint="ranker",
                arm="stable",
                rows=rows_hint,
            )
            assert (await engine.run(event)).scores.shape == (3,)
    assert record.failed == {"sink": 2, "shadow": 0}
    assert record.dropped == {"sink": 0, "shadow": 2}


async def test_features_that_do_not_fit_are_refused_by_name(model: Model) -> None:
    rows = random_rows(np.random.default_rng(3), 3, random_tables(1))
    rows.numbers[1, 1] = np.inf
    plan, _ = serving_plan(lambda _: True)
    with running(plan) as engine:
        with pytest.raises(InvalidInput, match="price"):
            await engine.run(Event(model=model, features=Features.from_rows(rows)))
        with pytest.raises(NotReady):
            await engine.run(Event(features=Features.from_rows(rows)))
        with pytest.raises(InvalidInput, match="decoder"):
            await engine.run(Event(model=model))
