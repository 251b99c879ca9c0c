"""The engine: one bounded queue, named worker threads, and events that each leave exactly once.

An event that is small and finds no queue runs on the caller's own thread, since the hop would cost more than the work.
Deadlines and cancellation are looked at before any stage starts, so work that nobody waits for is not done. It knows
nothing of requests, models or sockets. Next stop: `pipeline.stages`.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue

from pipeline.clock import Clock, SystemClock
from pipeline.errors import DeadlineExceeded, InvalidInput, NotReady, Overloaded
from pipeline.event import Event
from pipeline.meter import EngineStats, Meter, summarise
from pipeline.plan import Plan

__all__ = ["Engine"]

SWEEP_SECONDS = 0.001
RETRY_SECONDS = (0.01, 10.0)
WEIGHT_OF_NEW = 0.05


@dataclass(slots=True, eq=False)
class _Ticket:
    """An event in the queue, since when, and whom to tell."""

    event: Event
    since: float
    done: Callable[[Event], None]


class Engine:
    """Runs events through a plan.

    Args:
        plan: compiled here; raises `InvalidInput` when it does not hold together.
        workers: threads. Stages that release the GIL (lookup, network) run side by side.
        max_queue: events waiting; more are refused.
        clock: of deadlines and timings.
        inline_rows: an event of at most so many rows (`Event.rows`) runs on the thread of the loop that brings it, if
            nothing waits; 0: never.
        name: of the threads.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        workers: int = 1,
        max_queue: int = 256,
        clock: Clock | None = None,
        inline_rows: int = 8,
        name: str = "engine",
    ) -> None:
        if workers < 1 or max_queue < 1:
            raise InvalidInput(f"an engine needs workers and max_queue of at least 1, not {workers} and {max_queue}")
        self._steps = plan.compile().steps
        self._clock: Clock = clock or SystemClock()
        self._now = self._clock.monotonic
        self._max_queue = max_queue
        self._inline_rows = inline_rows
        self._lock = threading.Lock()
        self._queue: deque[_Ticket] = deque()
        # One token per ticket wakes one worker; a worker that finds its ticket swept just goes on waiting.
        self._tokens: SimpleQueue[bool] = SimpleQueue()
        self._swept = 0.0
        self._closed = False
        self._service = 0.0
        self._local = threading.local()
        self._meters: list[Meter] = []
        self._threads = [threading.Thread(target=self._work, name=f"{name}-{i}", daemon=True) for i in range(workers)]
        for thread in self._threads:
            thread.start()

    async def run(self, event: Event) -> Event:
        """Run an event from an asyncio loop; the event when it is answered.

        A caller that is cancelled takes its event out of the queue.

        Raises:
            Overloaded: the queue is full; `retry_after` follows the measured service time.
            DeadlineExceeded: before the work was done.
            NotReady: the engine is closed.
            Exception: whatever a stage raised.
        """
        if event.rows and event.rows <= self._inline_rows and not self._queue and not self._closed:
            meter = self._meter()
            meter.accepted += 1
            self._execute(event, meter, self._now())
        else:
            loop = asyncio.get_running_loop()
            future: asyncio.Future[None] = loop.create_future()

            def done(_: Event) -> None:
                with suppress(RuntimeError):  # the loop was closed: nobody waits any more
                    loop.call_soon_threadsafe(_resolve, future)

            self._admit(event, done)
            try:
                await future
            except asyncio.CancelledError:
                event.cancelled = True
                raise
        if event.error is not None:
            raise event.error
        return event

    def submit(self, event: Event) -> Future[Event]:
        """Queue an event from any thread; the future gives the event or raises as `run` does.

        Raises:
            Overloaded, NotReady: at once.
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

    def stats(self) -> EngineStats:
        """Counters and timings since the start."""
        with self._lock:
            meters = list(self._meters)
        return summarise(meters, [s.name for s in self._steps], len(self._queue), self._service)

    def stalled(self) -> tuple[float, str]:
        """How long the longest running stage has been at it, in seconds, and its name; (0, "") when all are idle."""
        now = self._now()
        with self._lock:
            running = [(m.since, m.stage) for m in self._meters]
        return max(((now - since, stage) for since, stage in running if stage), default=(0.0, ""))

    @property
    def stalled_seconds(self) -> float:
        """See `stalled`: what a watchdog compares with its limit."""
        return self.stalled()[0]

    def close(self, *, drain: bool = True, timeout: float | None = None) -> None:
        """Take no more events; finish those queued, or fail them with `NotReady`; stop the threads.

        Args:
            drain: whether queued events are still answered.
            timeout: seconds to wait for each worker; one that hangs is left behind.
        """
        with self._lock:
            first, self._closed = not self._closed, True
        if not drain:
            self._refuse_queued()
        if first:
            for _ in self._threads:
                self._tokens.put(False)
        for thread in self._threads:
            thread.join(timeout)
        self._refuse_queued()  # there are some only where every worker hangs

    # --- inside ------------------------------------------------------------------------------------------------------

    def _admit(self, event: Event, done: Callable[[Event], None]) -> None:
        now = self._now()
        meter = self._meter()
        stale: list[_Ticket] = []
        try:
            with self._lock:
                if self._closed:
                    meter.reject("closed")
                    raise NotReady("the server is shutting down; ask another replica")
                if len(self._queue) >= self._max_queue:
                    stale = self._sweep(now)
                    if len(self._queue) >= self._max_queue:
                        meter.reject("overloaded")
                        wait = len(self._queue) * self._service / len(self._threads)
                        raise Overloaded(
                            f"{self._max_queue} requests are waiting already",
                            min(max(wait, RETRY_SECONDS[0]), RETRY_SECONDS[1]),
                        )
                meter.accepted += 1
                self._queue.append(_Ticket(event, now, done))
        finally:
            for ticket in stale:
                self._drop(ticket, now)
        self._tokens.put(True)

    def _sweep(self, now: float) -> list[_Ticket]:
        """Take out of a full queue what nobody waits for; called under the lock, seldom, since it walks the queue."""
        if now - self._swept < SWEEP_SECONDS:
            return []
        self._swept = now
        stale = [t for t in self._queue if t.event.cancelled or now >= t.event.deadline]
        if stale:
            kept = [t for t in self._queue if not (t.event.cancelled or now >= t.event.deadline)]
            self._queue.clear()
            self._queue.extend(kept)
        return stale

    def _work(self) -> None:
        meter = self._meter()
        while self._tokens.get():
            with self._lock:
                if not self._queue:
                    continue
                ticket = self._queue.popleft()
            now = self._now()
            event = ticket.event
            if event.cancelled or now >= event.deadline:
                self._drop(ticket, now)
                continue
            meter.waited(now - ticket.since)
            event.timings["queue"] = now - ticket.since
            end = self._execute(event, meter, now)
            self._service += ((end - now) - self._service) * (WEIGHT_OF_NEW if self._service else 1.0)
            ticket.done(event)

    def _drop(self, ticket: _Ticket, now: float) -> None:
        if ticket.event.cancelled:
            self._refuse(ticket, CancelledError(), "cancelled")
        else:
            waited = now - ticket.since
            self._refuse(ticket, DeadlineExceeded(f"the deadline passed after {waited:.3f} s in the queue"), "expired")

    def _refuse_queued(self) -> None:
        with self._lock:
            dropped = list(self._queue)
            self._queue.clear()
        for ticket in dropped:
            self._refuse(ticket, NotReady("the server is shutting down; ask another replica"), "closed")

    def _refuse(self, ticket: _Ticket, error: Exception, reason: str) -> None:
        self._meter().reject(reason)
        ticket.event.error = error
        ticket.done(ticket.event)

    def _execute(self, event: Event, meter: Meter, now: float) -> float:
        """Take an event through all stages; the time at the end."""
        clock = self._now
        reason = ""
        for index, step in enumerate(self._steps):
            if event.error is None:
                if event.cancelled:
                    event.error, reason = CancelledError(), "cancelled"
                elif now >= event.deadline:
                    event.error = DeadlineExceeded(f"the deadline passed before stage {step.name!r}")
                    reason = "expired"
            if event.error is not None and not step.handles_errors:
                continue
            meter.since = now
            meter.stage = step.name
            try:
                step.run(event)
            except Exception as error:
                if event.error is None:
                    event.error = error
            end = clock()
            meter.worked(index, end - now)
            event.timings[step.name] = end - now
            now = end
        meter.stage = ""
        if reason:
            meter.reject(reason)
        elif event.error is not None:
            meter.failed += 1
        else:
            meter.answered += 1
        return now

    def _meter(self) -> Meter:
        meter: Meter | None = getattr(self._local, "meter", None)
        if meter is None:
            meter = self._local.meter = Meter(len(self._steps))
            with self._lock:
                self._meters.append(meter)
        return meter


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
