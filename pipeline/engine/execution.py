"""Execution of the steps of a run, for one event and for a batch. It knows no queues and no threads.

A stage that takes batches runs once for all events. Consecutive stages that do not take batches run event by event. A
batch that fails as a whole is repeated once, event by event, so that one event cannot fail the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError

from pipeline.engine.meter import Meter
from pipeline.engine.plan import Step
from pipeline.errors import DeadlineExceeded
from pipeline.event import Event

__all__ = ["execute", "execute_batch"]

Clock = Callable[[], float]


def execute(steps: Sequence[Step], event: Event, meter: Meter, clock: Clock, now: float) -> float:
    """Run steps on an event. Returns the time at the end.

    Deadline and cancellation are checked before each step, so that no unneeded work starts. A failed event skips all
    steps except those that handle errors.
    """
    for step in steps:
        if event.error is None:
            if event.cancelled:
                event.error = CancelledError()
            elif now >= event.deadline:
                event.error = DeadlineExceeded(f"the deadline passed before stage {step.name!r}")
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
        meter.worked(step.index, end - now)
        event.timings[step.name] = end - now
        now = end
    meter.stage = ""
    return now


def execute_batch(steps: Sequence[Step], events: Sequence[Event], meter: Meter, clock: Clock, now: float) -> float:
    """Run steps on several events of one model. Returns the time at the end."""
    at = 0
    while at < len(steps):
        step = steps[at]
        if step.run_batch is None:
            end = next((i for i in range(at, len(steps)) if steps[i].run_batch is not None), len(steps))
            singles = steps[at:end]
            for event in events:
                now = execute(singles, event, meter, clock, now)
            at = end
            continue
        alive = [event for event in events if _goes_through(step, event, now)]
        if len(alive) > 1:
            meter.since = now
            meter.stage = step.name
            try:
                step.run_batch(alive)
            except Exception:
                meter.retried += 1
                for event in events:
                    now = execute(steps[at:], event, meter, clock, now)
                return now
            began, now = now, clock()
            meter.worked(step.index, now - began)
            for event in alive:
                event.timings[step.name] = now - began
            meter.stage = ""
        elif alive:
            now = execute((step,), alive[0], meter, clock, now)
        at += 1
    return now


def _goes_through(step: Step, event: Event, now: float) -> bool:
    """Whether a step runs on an event; a cancelled or expired one fails here."""
    if event.error is None:
        if event.cancelled:
            event.error = CancelledError()
        elif now >= event.deadline:
            event.error = DeadlineExceeded(f"the deadline passed before stage {step.name!r}")
    return event.error is None or step.handles_errors
