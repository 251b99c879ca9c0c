"""What a stage of the pipeline is: a step that reads some values of an event and adds others."""

from __future__ import annotations

from typing import Protocol

from pipeline.event import Event

__all__ = ["Stage"]


class Stage(Protocol):
    """A synchronous operator. One instance serves all workers, so it keeps no state of an event between calls.

    A stage that must also see events that failed sets `handles_errors = True`; without it such events pass it by.
    """

    @property
    def name(self) -> str:
        """Unique in a plan; the name in errors, timings and metrics."""

    @property
    def consumes(self) -> tuple[str, ...]:
        """Values it needs: inputs of the plan, or what other stages produce. By habit, attributes of `Event`."""

    @property
    def produces(self) -> tuple[str, ...]:
        """Values it adds. A stage without any is an end of the plan, there for what it does elsewhere."""

    def run(self, event: Event) -> None:
        """Do the work on the event in place; raise to fail it."""
