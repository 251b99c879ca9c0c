"""What a stage of the pipeline is: a step that reads some values of an event and adds or rewrites others.

How to write one: docs/pipeline.md. What every stage must keep: `pipeline.stage_contract`. Next stop: `pipeline.engine.plan`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from pipeline.event import Event

__all__ = ["BatchStage", "Stage"]


class Stage(Protocol):
    """A synchronous operator. One instance serves all workers, so it keeps no state of an event between calls.

    A stage may also define:

    - `handles_errors = True`: it sees events that failed, too; without it such events pass it by.
    - `types: Mapping[str, type]`: of values that it consumes or produces; what is declared on both sides must fit.
    - `as_produced: tuple[str, ...]`: values that it consumes as their producer made them, before anyone rewrites them.
    - `thread_bound: tuple[str, ...]`: values that it produces in buffers of its thread, which the thread's next event
      overwrites; whoever consumes them must be fused with it.
    - `run_batch(events)`: see `BatchStage`.
    """

    @property
    def name(self) -> str:
        """Unique in a plan; the name in errors, timings and metrics."""

    @property
    def consumes(self) -> tuple[str, ...]:
        """Values it needs: inputs of the plan, or what other stages produce. Attributes of `Event`, or its `values`."""

    @property
    def produces(self) -> tuple[str, ...]:
        """Values it adds, or rewrites where it consumes them as well. Without any, it is an end of the plan."""

    def run(self, event: Event) -> None:
        """Do the work on the event in place; raise to fail it."""


@runtime_checkable
class BatchStage(Protocol):
    """A stage that does several events in one go, for less than one by one."""

    def run_batch(self, events: Sequence[Event]) -> None:
        """Do the work on events of one model, none of which has failed (unless the stage handles errors).

        What becomes of one event depends on that event alone, and is what `run` makes of it. A fault of one event is
        set as its `error`. Raising says that the whole batch failed: then each event without an error is run singly,
        so what was done to it before must be safe to do again.
        """
