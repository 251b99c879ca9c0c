"""Engine: runs events through a compiled plan with named worker threads; each event leaves exactly once.

Events enter one bounded queue (`pipeline.engine.batching`) under an adaptive limit (`pipeline.engine.admission`); workers
take them in batches (`pipeline.engine.execution`). A small event that comes alone runs on the caller's thread, since the
hop would cost more than the work. It knows nothing of requests, models or sockets. Next stop: `pipeline.stages`.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, Future
from functools import partial

from pipeline.clock import Clock, SystemClock
from pipeline.engine.admission import Admission
from pipeline.engine.batching import BatchPolicy, EntryQueue, InnerQueue, Ticket
from pipeline.engine.execution import execute, execute_batch
from pipeline.engine.meter import EngineStats, Meter, summarise
from pipeline.engine.outbox import Outbox
from pipeline.engine.plan import Plan
from pipeline.errors import DeadlineExceeded, InvalidInput, NotReady, Overloaded
from pipeline.event import Event

__all__ = ["Engine"]

SWEEP_S = 0.001
SHARED_FACTOR = 1.25
"""Mean events per batch above which small events are queued and not run inline."""
TURNS, PROBES = 40, 8
NEW_FRACTION = 0.2


class Engine:
    """Worker threads that run events through a plan.

    Args:
        plan: compiled here; an inconsistent one raises `InvalidInput`.
        workers: threads. Stages that release the GIL (lookup, network) run in parallel.
        policy: of the queue and of batches.
        clock: of deadlines and timings.
        inline_rows: an event of at most this many rows (`Event.rows`) runs on the thread of its event loop, if the queue
            is empty and recent batches had one event; 0: never.
        name: of the threads.

    Attributes:
        allows_queue_timeouts: whether `Event.queue_timeout` is used.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        workers: int = 1,
        policy: BatchPolicy | None = None,
        clock: Clock | None = None,
        inline_rows: int = 8,
        name: str = "engine",
    ) -> None:
        if workers < 1:
            raise InvalidInput(f"an engine needs at least 1 of workers, not {workers}", "workers")
        policy = policy or BatchPolicy()
        compiled = plan.compile()
        self.allows_queue_timeouts = policy.allows_queue_timeouts
        self._runs = compiled.runs
        self._steps = compiled.steps
        self._joins = [run.joins for run in self._runs]
        self._batched = any(run.batched for run in self._runs)  # later runs get the batches of the first
        self._now = (clock or SystemClock()).monotonic
        self._inline_rows = inline_rows
        self._lock = threading.Lock()
        self._queue = EntryQueue(policy)
        self._inner = [InnerQueue(policy.max_batch_size, batched=run.batched) for run in self._runs]
        self._inward = range(len(self._runs) - 1, 0, -1)
        self._admission = Admission(len(self._runs), workers)
        # A worker without work waits for its wakeup, a lock that it holds. Who brings work takes it from here and releases it.
        self._idle: list[threading.Lock] = []
        self._batch_events = 1.0
        self._turn = 0
        self._alarm = math.inf
        self._bell = threading.Event()
        self._swept = -math.inf
        self._closed = self._ended = False
        self._local = threading.local()
        self._meters: list[Meter] = []
        self._workers = [threading.Thread(target=self._work, name=f"{name}-{i}", daemon=True) for i in range(workers)]
        self._timer = threading.Thread(target=self._watch, name=f"{name}-timer", daemon=True)
        for thread in (*self._workers, self._timer):
            thread.start()

    async def run(self, event: Event) -> Event:
        """Run an event from an asyncio loop. Returns the event when it is answered.

        Cancelling the caller removes its event from the queue.

        Raises:
            Overloaded: the queue is full, the event would miss its deadline, or the queue's policy removed it;
                `retry_after` follows the measured service time.
            DeadlineExceeded: the deadline passed before the work was done.
            NotReady: the engine is closed.
            Exception: raised by a stage.
        """
        if 0 < event.rows <= self._inline_rows and not self._queue.size and not self._closed and self._alone():
            meter = self._meter()
            meter.accepted += 1
            execute(self._steps, event, meter, self._now, self._now())
            _count(event, meter)
        else:
            loop = asyncio.get_running_loop()
            future: asyncio.Future[None] = loop.create_future()
            self._admit(event, partial(self._outbox(loop).put, future))
            try:
                await future
            except asyncio.CancelledError:
                event.cancelled = True
                abandon = event.abandon
                if abandon is not None:
                    abandon()
                raise
        if event.error is not None:
            raise event.error
        return event

    def submit(self, event: Event) -> Future[Event]:
        """Queue an event from any thread; the future returns the event or raises as `run` does.

        Raises:
            Overloaded, DeadlineExceeded, NotReady: the event is refused at once.
        """
        future: Future[Event] = Future()

        def done(event: Event) -> None:
            if not future.set_running_or_notify_cancel():
                return
            if event.error is not None:
                future.set_exception(event.error)
            else:
                future.set_result(event)

        self._admit(event, done)
        return future

    def refusal(self, seconds_left: float = math.inf) -> Overloaded | None:
        """The error that any event would get now, counted as a refusal; None if an event could be admitted.

        It costs very little, and saves callers reading a request.

        Args:
            seconds_left: until the deadline.
        """
        queue = self._queue
        now = self._now()
        if queue.full_for(0):
            with self._lock:
                stale = self._sweep(now)
            self._drop(stale, now)
            if not queue.full_for(0):
                return None
        elif not self._admission.hopeless(now, seconds_left, *queue.ahead(0)):
            return None
        self._meter().reject("overloaded")
        return self._overloaded(0)

    def answered(self, seconds: float) -> None:
        """Report the time of an answer without the queue; events with less time left are refused."""
        self._admission.answered(self._now(), seconds)

    def stats(self) -> EngineStats:
        """Counters and timings since the start."""
        with self._lock:
            meters = list(self._meters)
            depths = self._queue.depths()
        inner = [run.steps[0].name for run in self._runs[1:]]
        service = (self._admission.per_event, self._admission.per_row)
        return summarise(meters, [s.name for s in self._steps], inner, depths, service)

    def stalled(self) -> tuple[float, str]:
        """Duration in seconds and name of the stage that has been running longest; (0, "") when all are idle."""
        now = self._now()
        with self._lock:
            running = [(m.since, m.stage) for m in self._meters]
        return max(((now - since, stage) for since, stage in running if stage), default=(0.0, ""))

    @property
    def stalled_seconds(self) -> float:
        """Duration of `stalled`, which a watchdog compares with its limit."""
        return self.stalled()[0]

    def close(self, *, drain: bool = True, timeout: float | None = None) -> None:
        """Admit no more events; finish the queued ones, or fail them with `NotReady`; stop the threads.

        Args:
            drain: whether queued events are still answered.
            timeout: seconds to wait for each worker; a worker that hangs is abandoned.
        """
        with self._lock:
            self._closed = True
            waiting = [] if drain else self._queue.clear()
            idle, self._idle = self._idle, []
        self._give_up(waiting)
        for wakeup in idle:
            wakeup.release()
        for worker in self._workers:
            worker.join(timeout)
        with self._lock:  # not empty only where every worker hangs
            waiting = [*self._queue.clear(), *(ticket for queue in self._inner for ticket in queue.clear())]
            left = [ticket for ticket in dict.fromkeys(waiting) if ticket.left]
            for ticket in left:
                ticket.left = 0
            self._ended = True
        self._give_up(left)
        self._bell.set()
        self._timer.join(timeout)

    def _alone(self) -> bool:
        """Whether small events come one at a time, so that queueing them would not give larger batches.

        An event that runs inline delays the next ones unseen, so a few of every `TURNS` events are queued to measure.
        """
        if not self._batched:
            return True
        if self._batch_events > SHARED_FACTOR:
            return False
        self._turn = (self._turn + 1) % TURNS
        return self._turn > PROBES

    # --- admission ---------------------------------------------------------------------------------------------------

    def _admit(self, event: Event, done: Callable[[Event], None]) -> None:
        now = self._now()
        meter = self._meter()
        queue, admission = self._queue, self._admission
        ticket = queue.ticket(event, now, done)
        if len(self._runs) > 1:
            ticket.waits, ticket.left = list(self._joins), len(self._runs)
        stale: list[Ticket] = []
        shed: Ticket | None = None
        wakeup: threading.Lock | None = None
        ring = False
        error: Exception | None = None
        with self._lock:
            if queue.size or self._closed or now >= event.deadline:
                error = self._refused(ticket, now, stale)
            if error is None:
                if not queue.size:
                    admission.filled(now, event.deadline)
                shed = queue.push(ticket)
                meter.accepted += 1
                if self._idle:
                    wakeup = self._idle.pop()
                if ticket.expires < self._alarm:
                    self._alarm, ring = ticket.expires, True
        if wakeup is not None:
            wakeup.release()
        if ring:
            self._bell.set()
        if stale:
            self._drop(stale, now)
        if shed is not None:
            self._leave(shed, self._overloaded(shed.level, "a more important request took its place"), "shed")
        if error is not None:
            raise error

    def _refused(self, ticket: Ticket, now: float, stale: list[Ticket]) -> Exception | None:
        meter = self._meter()
        level = ticket.level
        if self._closed:
            meter.reject("closed")
            return _closed()
        if now >= ticket.event.deadline:
            meter.accepted += 1
            meter.reject("expired")
            return DeadlineExceeded("the deadline had passed when the request came")
        if self._queue.full_for(level):
            stale += self._sweep(now)
            if self._queue.full_for(level):
                meter.reject("overloaded")
                return self._overloaded(level)
        ahead = self._queue.ahead(level)
        ticket.event.load = self._admission.wait(*ahead)
        admitted, ticket.estimate = self._admission.admit(now, ticket.event.deadline, *ahead, ticket.event.rows)
        if admitted:
            return None
        meter.reject("overloaded")
        return self._overloaded(level, "the deadline would pass before its turn")

    def _overloaded(self, level: int, why: str = "") -> Overloaded:
        events, rows = self._queue.ahead(level)
        return Overloaded(why or f"{events} requests are waiting already", self._admission.retry_after(events, rows))

    def _sweep(self, now: float) -> list[Ticket]:
        """Remove cancelled and expired events; called under the lock, at most once every `SWEEP_S`."""
        if now - self._swept < SWEEP_S:
            return []
        self._swept = now
        stale = self._queue.sweep(now)
        if not self._queue.size:
            self._admission.emptied()
        return stale

    # --- workers -----------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        meter = self._meter()
        wakeup = threading.Lock()
        wakeup.acquire()
        report: tuple[int, int, int, float] | None = None
        while True:
            with self._lock:
                if report is not None:
                    self._admission.executed(*report)
                    report = None
                now = self._now()
                at, batch, stale, patience = self._pick(meter, now)
                if not batch:
                    if self._closed and not self._queue.size:
                        break
                    self._idle.append(wakeup)
            if stale:
                self._drop(stale, now)
            if batch:
                report = self._perform(at, batch, meter, now)
            elif not wakeup.acquire(timeout=patience or -1):
                with self._lock:
                    if wakeup in self._idle:
                        self._idle.remove(wakeup)
                        continue
                wakeup.acquire()  # another thread has just taken it and is about to release it
        self._drop(stale, now)

    def _pick(self, meter: Meter, now: float) -> tuple[int, list[Ticket], list[Ticket], float]:
        """Pick the next batch. Returns (run index, tickets, expired tickets, seconds to wait when there is no batch).

        Called under the lock.
        """
        for at in self._inward:  # the last run first
            if self._inner[at]:
                taken = self._inner[at].take()
                label = f"queue:{self._runs[at].steps[0].name}"
                for ticket, came in taken:
                    meter.waited(at, now - came)
                    ticket.event.timings[label] = now - came
                return at, [ticket for ticket, _ in taken], [], 0.0
        queue = self._queue
        if not queue.size:
            return 0, [], [], 0.0
        if not self._idle and not self._closed and (patience := queue.patience(now)) > 0:
            return 0, [], [], patience
        batch, stale = queue.take(now, batched=self._batched)
        if not queue.size:
            self._admission.emptied()
        if batch:
            self._batch_events += (len(batch) - self._batch_events) * NEW_FRACTION
            self._admission.waited(batch[0].estimate, now - batch[0].since)
        return 0, batch, stale, 0.0

    def _perform(self, at: int, batch: Sequence[Ticket], meter: Meter, now: float) -> tuple[int, int, int, float]:
        """Take a batch through a run and pass it on. Returns run index, events, rows and seconds, for `Admission.executed`."""
        run = self._runs[at]
        events: list[Event] = []
        rows = 0
        for ticket in batch:
            event = ticket.event
            events.append(event)
            rows += event.rows
            if at == 0:
                event.timings["queue"] = waited = now - ticket.since
                meter.waited(0, waited)
        if at == 0:
            meter.executed(len(events), rows)
        try:
            if len(events) == 1:
                end = execute(run.steps, events[0], meter, self._now, now)
            else:
                end = execute_batch(run.steps, events, meter, self._now, now)
        except BaseException as error:  # a stage that ends its thread must not cost other events their answers
            end, meter.stage = self._now(), ""
            for event in events:
                event.error = event.error or RuntimeError(f"a stage raised {error!r}")
        for ticket in batch if len(self._runs) == 1 else self._pass_on(at, batch, end):
            _count(ticket.event, meter)
            ticket.done(ticket.event)
        return at, len(events), rows, end - now

    def _pass_on(self, at: int, batch: Sequence[Ticket], now: float) -> list[Ticket]:
        """Pass a batch on to the runs that waited for it. Returns the tickets that leave the engine."""
        leaving: list[Ticket] = []
        pushed = 0
        with self._lock:
            for ticket in batch:
                if not ticket.left:
                    continue  # given up by `close`
                ticket.left -= 1
                if not ticket.left:
                    leaving.append(ticket)
                assert ticket.waits is not None
                for after in self._runs[at].successors:
                    ticket.waits[after] -= 1
                    if not ticket.waits[after]:
                        self._inner[after].push(ticket, now)
                        pushed += 1
            # This worker takes the next batch itself.
            wake = min(pushed - 1, len(self._idle)) if pushed else 0
            wakeups = [self._idle.pop() for _ in range(wake)]
        for wakeup in wakeups:
            wakeup.release()
        return leaving

    # --- leaving -----------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Answer events in the queue when they expire, even while all workers are busy."""
        while not self._ended:
            stale: list[Ticket] = []
            with self._lock:
                now = self._now()
                if now >= self._alarm:
                    self._swept = -math.inf
                    stale = self._sweep(now)
                # The alarm stays even when its event has left, so that later events need not wake this thread.
                self._alarm = self._queue.next_expiry()
                left = self._alarm - now
            self._drop(stale, now)
            self._bell.wait(None if math.isinf(left) else min(max(left, SWEEP_S), threading.TIMEOUT_MAX))
            self._bell.clear()

    def _drop(self, tickets: Iterable[Ticket], now: float) -> None:
        for ticket in tickets:
            event = ticket.event
            waited = now - ticket.since
            if event.cancelled:
                self._leave(ticket, CancelledError(), "cancelled")
            elif now >= event.deadline:
                error = DeadlineExceeded(f"the deadline passed after {waited:.3f} s in the queue")
                self._leave(ticket, error, "expired")
            else:
                self._leave(ticket, self._overloaded(ticket.level, f"no answer in {waited:.3f} s of queue"), "timeout")

    def _give_up(self, tickets: Iterable[Ticket]) -> None:
        for ticket in tickets:
            self._leave(ticket, _closed(), "closed")

    def _leave(self, ticket: Ticket, error: Exception, reason: str) -> None:
        self._meter().reject(reason)
        ticket.event.error = error
        ticket.done(ticket.event)

    def _meter(self) -> Meter:
        meter: Meter | None = getattr(self._local, "meter", None)
        if meter is None:
            meter = self._local.meter = Meter(len(self._steps), len(self._runs))
            with self._lock:
                self._meters.append(meter)
        return meter

    def _outbox(self, loop: asyncio.AbstractEventLoop) -> Outbox:
        outbox: Outbox | None = getattr(self._local, "outbox", None)
        if outbox is None or outbox.loop is not loop:
            outbox = self._local.outbox = Outbox(loop)
        return outbox


def _count(event: Event, meter: Meter) -> None:
    if event.error is None:
        meter.answered += 1
    elif isinstance(event.error, CancelledError):
        meter.reject("cancelled")
    elif isinstance(event.error, DeadlineExceeded):
        meter.reject("expired")
    else:
        meter.failed += 1


def _closed() -> NotReady:
    return NotReady("the server is shutting down; ask another replica")
