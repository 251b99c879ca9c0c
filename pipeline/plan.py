"""The plan: stages declared in any order, checked as a graph, compiled into runs that need no queue inside.

A hop between threads costs as much as a small stage, so neighbours are fused; every plan compiles to one run now. Next
stop: `pipeline.engine`, which executes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.errors import InvalidInput
from pipeline.event import Event
from pipeline.stage import Stage

__all__ = ["CompiledPlan", "Plan", "Step"]


@dataclass(frozen=True, slots=True)
class Step:
    """One stage, resolved for the hot path."""

    name: str
    run: Callable[[Event], None]
    handles_errors: bool


@dataclass(frozen=True, slots=True)
class CompiledPlan:
    """Runs in order, each a sequence of fused steps."""

    runs: tuple[tuple[Step, ...], ...]

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps in the order in which one event meets them."""
        return tuple(step for run in self.runs for step in run)


class Plan:
    """A declared graph of stages.

    Args:
        stages: in any order; an edge goes from the stage that produces a value to those that consume it.
        inputs: values that an event brings along.
        outputs: values that an answer needs.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        inputs: Sequence[str] = ("request", "model"),
        outputs: Sequence[str] = ("scores",),
    ) -> None:
        self.stages = tuple(stages)
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)

    def compile(self) -> CompiledPlan:
        """Check the graph and fuse it. Stages keep their declared order where the graph leaves it open.

        Raises:
            InvalidInput: naming the stage: a name or value given twice, a value nobody produces, a cycle, a stage whose
                values lead nowhere.
        """
        self._check_names()
        producers = self._producers()
        self._check_values(producers)
        order = self._sort(producers)
        self._check_reachable(producers)
        steps = tuple(Step(s.name, s.run, bool(getattr(s, "handles_errors", False))) for s in order)
        return CompiledPlan((steps,) if steps else ())

    def _check_names(self) -> None:
        seen: set[str] = set()
        for stage in self.stages:
            if stage.name in seen:
                raise InvalidInput(f"stage {stage.name!r} is declared twice; give each its own name", stage.name)
            seen.add(stage.name)

    def _producers(self) -> dict[str, Stage]:
        producers: dict[str, Stage] = {}
        for stage in self.stages:
            for value in stage.produces:
                if value in self.inputs:
                    raise InvalidInput(f"stage {stage.name!r} produces {value!r}, which is an input", stage.name)
                if value in producers:
                    raise InvalidInput(
                        f"stages {producers[value].name!r} and {stage.name!r} both produce {value!r}", stage.name
                    )
                producers[value] = stage
        return producers

    def _check_values(self, producers: dict[str, Stage]) -> None:
        known = sorted({*self.inputs, *producers})
        for stage in self.stages:
            for value in stage.consumes:
                if value not in producers and value not in self.inputs:
                    raise InvalidInput(
                        f"stage {stage.name!r} consumes {value!r}, which nothing produces; there are {known}",
                        stage.name,
                    )
        for value in self.outputs:
            if value not in producers and value not in self.inputs:
                raise InvalidInput(f"no stage produces the output {value!r}; there are {known}", value)

    def _sort(self, producers: dict[str, Stage]) -> list[Stage]:
        order: list[Stage] = []
        have = set(self.inputs)
        left = list(self.stages)
        while left:
            ready = next((s for s in left if have.issuperset(s.consumes)), None)
            if ready is None:
                raise InvalidInput(f"stages wait for each other in a cycle: {self._cycle(left[0], producers)}")
            order.append(ready)
            have.update(ready.produces)
            left.remove(ready)
        return order

    def _cycle(self, start: Stage, producers: dict[str, Stage]) -> str:
        # Every stage left waits for another one left, so walking backwards must meet a stage again.
        path = [start]
        while True:
            waiting = next(
                producers[v] for v in path[-1].consumes if v in producers and self._depends(producers[v], producers)
            )
            if waiting in path:
                loop = path[path.index(waiting) :]
                return " <- ".join(repr(s.name) for s in [*loop, waiting])
            path.append(waiting)

    def _depends(self, stage: Stage, producers: dict[str, Stage]) -> bool:
        """Whether a stage is in a cycle or waits for one."""
        seen: set[str] = set()
        stack = [stage]
        order: list[Stage] = []
        while stack:
            current = stack.pop()
            if current.name in seen:
                continue
            seen.add(current.name)
            order.append(current)
            stack.extend(producers[v] for v in current.consumes if v in producers)
        have = set(self.inputs)
        while any(have.issuperset(s.consumes) for s in order):
            ready = next(s for s in order if have.issuperset(s.consumes))
            have.update(ready.produces)
            order.remove(ready)
        return stage in order

    def _check_reachable(self, producers: dict[str, Stage]) -> None:
        stack = [producers[v] for v in self.outputs if v in producers]
        stack += [s for s in self.stages if not s.produces]
        used: set[str] = set()
        while stack:
            stage = stack.pop()
            if stage.name not in used:
                used.add(stage.name)
                stack.extend(producers[v] for v in stage.consumes if v in producers)
        for stage in self.stages:
            if stage.name not in used:
                raise InvalidInput(
                    f"stage {stage.name!r} is unreachable: nothing consumes {list(stage.produces)}, and the outputs are "
                    f"{list(self.outputs)}",
                    stage.name,
                )
