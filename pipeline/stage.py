"""Stage of the pipeline: a step that reads some values of an event and adds or rewrites others.

How to write one: docs/pipeline.md. Its contract as a test: `pipeline.stage_contract`. Next stop: `pipeline.engine.plan`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from pipeline.event import Event

__all__ = ["BatchStage", "Stage"]


class Stage(Protocol):
    """Synchronous operator. One instance serves all workers, so it keeps no state of an event between calls.

    A stage may also define:

    - `handles_errors = True`: it also gets events that failed; without it such events skip the stage.
    - `types: Mapping[str, type]`: of values that it consumes or produces; producer and consumer must agree.
    - `as_produced: tuple[str, ...]`: values that it consumes as their producer made them, before another stage rewrites them.
    - `thread_bound: tuple[str, ...]`: values that it produces in buffers of its thread, which the thread's next event
      overwrites; their consumers must be fused with it.
    - `run_batch(events)`: see `BatchStage`.
    """

    @property
    def name(self) -> str:
        """Unique in a plan; the name in errors, timings and metrics."""

    @property
    def consumes(self) -> tuple[str, ...]:
        """Values it needs: inputs of the plan, or products of other stages. Attributes of `Event`, or its `values`."""

    @property
    def produces(self) -> tuple[str, ...]:
        """Values it adds, or rewrites where it consumes them as well. Without any, the plan ends here."""

    def run(self, event: Event) -> None:
        """Do the work on the event in place; raise to fail it."""


@runtime_checkable
class BatchStage(Protocol):
    """Stage that processes several events at once, for less than one by one."""

    def run_batch(self, events: Sequence[Event]) -> None:
        """Do the work on events of one model, none of which has failed (unless the stage handles errors).

        The result of an event depends on that event alone, and equals that of `run`. A failure of one event is set as
        its `error`. An exception means that the whole batch failed: then each event without an error is run singly, so
        the work on it must be safe to repeat.
        """
