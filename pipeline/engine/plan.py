"""Plan: stages declared in any order, checked as a graph, compiled into runs with a queue between them.

The values define the edges. Redundant edges are removed (transitive reduction), and neighbours that have only each other
are fused into one run, since a hop between threads costs as much as a small stage: a linear plan is one run. Where the
graph forks, the branches are separate runs that may run in parallel; where it joins, a run waits for all of them. All
edges into a run share its one queue (JIZHI, arXiv 2106.01674, section 3: a processor is an operator and one channel).
Next stop: `pipeline.engine.engine`, which executes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.errors import InvalidInput
from pipeline.event import Event
from pipeline.stage import BatchStage, Stage

__all__ = ["CompiledPlan", "Plan", "Run", "Step"]


@dataclass(frozen=True, slots=True)
class Step:
    """Stage, resolved for the hot path. `index` counts over the whole plan, in topological order."""

    index: int
    name: str
    run: Callable[[Event], None]
    run_batch: Callable[[Sequence[Event]], None] | None
    handles_errors: bool


@dataclass(frozen=True, slots=True)
class Run:
    """Fused steps, executed by one thread without a queue between them.

    Args:
        steps: in order; none in a run that only passes events on to several others.
        successors: indexes of the runs that wait for this one.
        joins: number of runs that this one waits for; 0: events enter here.
    """

    steps: tuple[Step, ...]
    successors: tuple[int, ...]
    joins: int

    @property
    def batched(self) -> bool:
        """Whether several events at once cost less than one by one."""
        return any(step.run_batch is not None for step in self.steps)


@dataclass(frozen=True, slots=True)
class CompiledPlan:
    """Runs in topological order; events enter at the first and leave when all are done."""

    runs: tuple[Run, ...]

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps, in the order in which one thread runs them."""
        return tuple(step for run in self.runs for step in run.steps)


class Plan:
    """Declared graph of stages.

    An edge goes from the stage that produces a value to those that consume it. A stage that consumes and produces the
    same value rewrites it: it comes after the producer and before the value's other consumers, several rewriters in
    declared order.

    Args:
        stages: in any order.
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
            InvalidInput: naming the stage: a name given twice, a value with two producers or none, types that do not
                fit, a cycle, a stage whose values lead nowhere, a value bound to a thread that must leave it.
        """
        self._check_names()
        writers = self._writers()
        self._check_values(writers)
        needs = self._needs(writers)
        order = _sort(self.stages, needs)
        self._check_reachable(writers, needs)
        direct = _reduce(order, needs)
        chains = _fuse(order, direct)
        _check_thread_bound(chains, writers)
        return _number(chains, direct)

    def _check_names(self) -> None:
        seen: set[str] = set()
        for stage in self.stages:
            if stage.name in seen:
                raise InvalidInput(f"stage {stage.name!r} is declared twice; give each its own name", stage.name)
            seen.add(stage.name)
            for value in getattr(stage, "as_produced", ()):
                if value not in stage.consumes or value in stage.produces:
                    raise InvalidInput(
                        f"stage {stage.name!r} takes {value!r} as produced, so it must consume and not rewrite it",
                        stage.name,
                    )

    def _writers(self) -> dict[str, list[Stage]]:
        """By value: its producer, unless it is an input, then its rewriters in declared order."""
        writers: dict[str, list[Stage]] = {}
        for stage in self.stages:
            for value in stage.produces:
                if value in stage.consumes:
                    continue
                if value in self.inputs:
                    raise InvalidInput(
                        f"stage {stage.name!r} produces {value!r}, which is an input; consume it as well to rewrite it",
                        stage.name,
                    )
                if value in writers:
                    raise InvalidInput(
                        f"stages {writers[value][0].name!r} and {stage.name!r} both produce {value!r}; the one that "
                        "consumes it as well would rewrite it",
                        stage.name,
                    )
                writers[value] = [stage]
        for stage in self.stages:
            for value in stage.produces:
                if value in stage.consumes and (value in writers or value in self.inputs):
                    writers.setdefault(value, []).append(stage)
        return writers

    def _check_values(self, writers: Mapping[str, Sequence[Stage]]) -> None:
        known = sorted({*self.inputs, *writers})
        for stage in self.stages:
            for value in stage.consumes:
                if value not in writers and value not in self.inputs:
                    raise InvalidInput(
                        f"stage {stage.name!r} consumes {value!r}, which nothing produces; there are {known}",
                        stage.name,
                    )
                for writer in writers.get(value, ()):
                    _check_type(value, writer, stage)
        for value in self.outputs:
            if value not in writers and value not in self.inputs:
                raise InvalidInput(f"no stage produces the output {value!r}; there are {known}", value)

    def _needs(self, writers: Mapping[str, Sequence[Stage]]) -> dict[str, list[Stage]]:
        """By stage name: the stages that must run before it."""
        needs: dict[str, list[Stage]] = {stage.name: [] for stage in self.stages}
        for stage in self.stages:
            early = getattr(stage, "as_produced", ())
            for value in stage.consumes:
                chain = list(writers.get(value, ()))
                if value in stage.produces:
                    needs[stage.name] += chain[: chain.index(stage)][-1:]
                elif value not in early:
                    needs[stage.name] += chain[-1:]
                else:
                    made = 0 if value in self.inputs else 1
                    needs[stage.name] += chain[:made]
                    for rewriter in chain[made : made + 1]:
                        needs[rewriter.name].append(stage)
        return needs

    def _check_reachable(self, writers: Mapping[str, Sequence[Stage]], needs: Mapping[str, Sequence[Stage]]) -> None:
        stack = [s for value in self.outputs for s in writers.get(value, ())]
        stack += [s for s in self.stages if not s.produces]
        used: set[str] = set()
        while stack:
            stage = stack.pop()
            if stage.name not in used:
                used.add(stage.name)
                stack.extend(needs[stage.name])
        for stage in self.stages:
            if stage.name not in used:
                raise InvalidInput(
                    f"stage {stage.name!r} is unreachable: nothing consumes {list(stage.produces)}, and the outputs are "
                    f"{list(self.outputs)}",
                    stage.name,
                )


def _check_type(value: str, writer: Stage, reader: Stage) -> None:
    made, wanted = (getattr(stage, "types", {}).get(value) for stage in (writer, reader))
    if made is not None and wanted is not None and not issubclass(made, wanted):
        raise InvalidInput(
            f"stage {reader.name!r} consumes {value!r} as {wanted.__name__}, and stage {writer.name!r} produces "
            f"{made.__name__}",
            reader.name,
        )


def _sort(stages: Iterable[Stage], needs: Mapping[str, Sequence[Stage]]) -> list[Stage]:
    order: list[Stage] = []
    done: set[str] = set()
    left = list(stages)
    while left:
        ready = next((s for s in left if all(n.name in done for n in needs[s.name])), None)
        if ready is None:
            raise InvalidInput(f"stages wait for each other in a cycle: {_cycle(left, needs)}")
        order.append(ready)
        done.add(ready.name)
        left.remove(ready)
    return order


def _cycle(left: Sequence[Stage], needs: Mapping[str, Sequence[Stage]]) -> str:
    # Every remaining stage waits for another one, so walking backwards must reach a stage twice.
    names = {stage.name for stage in left}
    path = [left[0].name]
    while True:
        waiting = next(n.name for n in needs[path[-1]] if n.name in names)
        if waiting in path:
            return " <- ".join(repr(name) for name in [*path[path.index(waiting) :], waiting])
        path.append(waiting)


def _reduce(order: Sequence[Stage], needs: Mapping[str, Sequence[Stage]]) -> dict[str, set[str]]:
    """By stage name: its direct predecessors; those that another predecessor waits for are removed."""
    before: dict[str, set[str]] = {}
    direct: dict[str, set[str]] = {}
    for stage in order:
        names = {n.name for n in needs[stage.name]}
        direct[stage.name] = {n for n in names if not any(n in before[other] for other in names)}
        before[stage.name] = names.union(*(before[n] for n in names))
    return direct


def _fuse(order: Sequence[Stage], direct: Mapping[str, set[str]]) -> list[list[Stage]]:
    """Chains of stages. Events enter at the first chain, which is empty where several chains have no predecessor."""
    followers: dict[str, int] = {stage.name: 0 for stage in order}
    for names in direct.values():
        for name in names:
            followers[name] += 1
    chain_of: dict[str, list[Stage]] = {}
    chains: list[list[Stage]] = []
    for stage in order:
        names = direct[stage.name]
        last = next(iter(names)) if len(names) == 1 else ""
        if last and followers[last] == 1:
            chain = chain_of[last]
        else:
            chain = []
            chains.append(chain)
        chain.append(stage)
        chain_of[stage.name] = chain
    starts = [chain for chain in chains if not direct[chain[0].name]]
    return chains if len(starts) == 1 else [[], *chains]


def _check_thread_bound(chains: Sequence[Sequence[Stage]], writers: Mapping[str, Sequence[Stage]]) -> None:
    place = {stage.name: at for at, chain in enumerate(chains) for stage in chain}
    for chain in chains:
        for stage in chain:
            for value in stage.consumes:
                for writer in writers.get(value, ()):
                    if value in getattr(writer, "thread_bound", ()) and place[writer.name] != place[stage.name]:
                        raise InvalidInput(
                            f"stage {stage.name!r} consumes {value!r}, which stage {writer.name!r} keeps in buffers of "
                            "its thread; nothing may fork or join between them",
                            stage.name,
                        )


def _number(chains: Sequence[Sequence[Stage]], direct: Mapping[str, set[str]]) -> CompiledPlan:
    place = {stage.name: at for at, chain in enumerate(chains) for stage in chain}
    waits = [sorted({place[name] for name in direct[chain[0].name]}) if chain else [] for chain in chains]
    if chains and not chains[0]:  # an entry of its own: all that wait for nothing wait for it
        waits = [wait if wait or at == 0 else [0] for at, wait in enumerate(waits)]
    runs: list[Run] = []
    index = 0
    for at, chain in enumerate(chains):
        steps = tuple(_step(index + offset, stage) for offset, stage in enumerate(chain))
        index += len(steps)
        successors = tuple(other for other, wait in enumerate(waits) if at in wait)
        runs.append(Run(steps, successors, len(waits[at])))
    return CompiledPlan(tuple(runs))


def _step(index: int, stage: Stage) -> Step:
    run_batch = stage.run_batch if isinstance(stage, BatchStage) else None
    return Step(index, stage.name, stage.run, run_batch, bool(getattr(stage, "handles_errors", False)))
