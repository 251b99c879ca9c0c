from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engine.plan import CompiledPlan, Plan
from pipeline.errors import InvalidInput
from pipeline.event import Event


@dataclass
class Noted:
    """A stage that only has edges."""

    name: str
    consumes: tuple[str, ...] = ()
    produces: tuple[str, ...] = ()
    as_produced: tuple[str, ...] = ()
    thread_bound: tuple[str, ...] = ()
    types: dict[str, type] = field(default_factory=dict)

    def run(self, event: Event) -> None:
        event.degraded.append(self.name)


def order(*stages: Noted, outputs: tuple[str, ...] = ("scores",)) -> list[str]:
    return [s.name for s in Plan(stages, outputs=outputs).compile().steps]


def test_stages_run_in_the_order_of_their_values() -> None:
    stages = (
        Noted("record", ("scores", "features")),
        Noted("infer", ("dense", "model"), ("scores",)),
        Noted("embed", ("features", "model"), ("dense",)),
        Noted("decode", ("request",), ("features",)),
    )
    assert order(*stages) == ["decode", "embed", "infer", "record"]
    assert len(Plan(stages).compile().runs) == 1


def test_declared_order_breaks_ties() -> None:
    left, right = Noted("left", ("request",), ("a",)), Noted("right", ("request",), ("b",))
    join = Noted("join", ("a", "b"), ("scores",))
    assert order(left, right, join) == ["left", "right", "join"]
    assert order(join, right, left) == ["right", "left", "join"]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([Noted("a", (), ("scores",)), Noted("a", ("scores",))], "'a' is declared twice"),
        ([Noted("a", ("nothing",), ("scores",))], "'a' consumes 'nothing', which nothing produces"),
        ([Noted("a", (), ("scores",)), Noted("b", (), ("scores",))], "'a' and 'b' both produce 'scores'"),
        ([Noted("a", (), ("request", "scores"))], "'a' produces 'request', which is an input"),
        ([Noted("a", (), ("x",))], "no stage produces the output 'scores'"),
        ([Noted("a", (), ("scores",)), Noted("b", (), ("x",))], "'b' is unreachable"),
        ([Noted("a", ("y",), ("x", "scores")), Noted("b", ("x",), ("y",))], "cycle: 'a' <- 'b' <- 'a'"),
        (
            [Noted("c", ("x",), ("scores",)), Noted("a", ("y",), ("x",)), Noted("b", ("x",), ("y",))],
            "cycle: 'a' <- 'b' <- 'a'",
        ),
        ([Noted("a", ("scores",), ("scores",))], "'a' consumes 'scores', which nothing produces"),
    ],
)
def test_a_plan_that_does_not_hold_names_the_stage(stages: list[Noted], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Plan(stages).compile()


def shape(plan: CompiledPlan) -> list[tuple[list[str], tuple[int, ...], int]]:
    return [([step.name for step in run.steps], run.successors, run.joins) for run in plan.runs]


def test_a_fork_makes_runs_that_go_side_by_side_and_a_join_waits_for_them() -> None:
    stages = [
        Noted("decode", ("request",), ("features",)),
        Noted("embed", ("features", "model"), ("dense",)),
        Noted("infer", ("dense",), ("a",)),
        Noted("embed2", ("features",), ("dense2",)),
        Noted("infer2", ("dense2",), ("b",)),
        Noted("mix", ("a", "b", "features"), ("scores",)),
        Noted("record", ("features", "scores")),
    ]
    assert shape(Plan(stages).compile()) == [
        (["decode"], (1, 2), 0),
        (["embed", "infer"], (3,), 1),
        (["embed2", "infer2"], (3,), 1),
        (["mix", "record"], (), 2),
    ]


def test_several_first_stages_get_one_entry() -> None:
    stages = [Noted("a", ("request",), ("x",)), Noted("b", ("request",), ("y",)), Noted("c", ("x", "y"), ("scores",))]
    assert shape(Plan(stages).compile()) == [([], (1, 2), 0), (["a"], (3,), 1), (["b"], (3,), 1), (["c"], (), 2)]


def test_a_rewriter_stands_between_producer_and_consumers_in_declared_order() -> None:
    stages = [
        Noted("end", ("scores",)),
        Noted("boost", ("scores",), ("scores",)),
        Noted("spread", ("scores", "features"), ("scores",)),
        Noted("infer", ("features",), ("scores",)),
        Noted("decode", ("request",), ("features",)),
    ]
    assert order(*stages) == ["decode", "infer", "boost", "spread", "end"]
    assert len(Plan(stages).compile().runs) == 1


def test_an_input_may_be_rewritten() -> None:
    assert order(Noted("use", ("request",), ("scores",)), Noted("clean", ("request",), ("request",))) == [
        "clean",
        "use",
    ]


def test_a_stage_may_take_a_value_before_anyone_rewrites_it() -> None:
    stages = [
        Noted("infer", ("request",), ("scores",)),
        Noted("boost", ("scores",), ("scores",)),
        Noted("record", ("scores",), (), as_produced=("scores",)),
        Noted("end", ("scores",)),
    ]
    assert order(*stages) == ["infer", "record", "boost", "end"]
    assert len(Plan(stages).compile().runs) == 1


def test_types_that_are_declared_must_fit() -> None:
    infer = Noted("infer", ("request",), ("scores",), types={"scores": list})
    end = Noted("end", ("scores",), types={"scores": str})
    with pytest.raises(InvalidInput, match="'end' consumes 'scores' as str, and stage 'infer' produces list"):
        Plan([infer, end]).compile()
    end.types["scores"] = object
    assert order(infer, end) == ["infer", "end"]


def test_a_value_in_buffers_of_a_thread_may_not_leave_its_run() -> None:
    embed = Noted("embed", ("request",), ("dense",), thread_bound=("dense",))
    infer = Noted("infer", ("dense",), ("scores",))
    assert order(embed, infer) == ["embed", "infer"]
    with pytest.raises(InvalidInput, match="'infer' consumes 'dense', which stage 'embed' keeps in buffers"):
        Plan([embed, infer, Noted("other", ("dense",))]).compile()


@st.composite
def graphs(draw: st.DrawFn) -> list[Noted]:
    """Stages s0, s1, ... of which each consumes what some earlier ones produce, declared in any order."""
    count = draw(st.integers(1, 9))
    stages = []
    for i in range(count):
        earlier = draw(st.sets(st.integers(0, i - 1), max_size=3)) if i else set()
        rewrites = {j for j in earlier if draw(st.integers(0, 5)) == 0}
        consumes = tuple(f"v{j}" for j in sorted(earlier)) or ("request",)
        stages.append(Noted(f"s{i}", consumes, (f"v{i}", *(f"v{j}" for j in sorted(rewrites)))))
    return draw(st.permutations(stages))


def writers_of(stages: list[Noted], value: str) -> list[str]:
    made = [s.name for s in stages if value in s.produces and value not in s.consumes]
    return made + [s.name for s in stages if value in s.produces and value in s.consumes]


@given(graphs())
def test_any_graph_runs_in_a_legal_order_and_joins_wait_for_all(stages: list[Noted]) -> None:
    values = sorted({value for stage in stages for value in stage.produces})
    plan = Plan(stages, outputs=values)
    try:
        compiled = plan.compile()
    except InvalidInput:
        assert any(set(s.consumes) & set(s.produces) for s in stages)  # only a rewriter can close a cycle here
        with pytest.raises(InvalidInput, match="cycle"):
            plan.compile()
        return
    runs = compiled.runs
    assert [step.index for step in compiled.steps] == list(range(len(stages)))
    assert sorted(step.name for step in compiled.steps) == sorted(s.name for s in stages)
    assert [run.joins for run in runs] == [sum(at in other.successors for other in runs) for at in range(len(runs))]
    assert [at for at, run in enumerate(runs) if not run.joins] == [0]
    place = {step.name: (at, i) for at, run in enumerate(runs) for i, step in enumerate(run.steps)}
    after: list[set[int]] = [set() for _ in runs]
    for at in reversed(range(len(runs))):
        for successor in runs[at].successors:
            assert successor > at
            after[at] |= {successor} | after[successor]

    def precedes(first: str, second: str) -> bool:
        (a, i), (b, j) = place[first], place[second]
        return b in after[a] or (a == b and i < j)

    for stage in stages:
        for value in stage.consumes:
            writers = writers_of(stages, value)
            if stage.name in writers:
                writers = writers[: writers.index(stage.name)]
            assert all(precedes(writer, stage.name) for writer in writers)
    for at, run in enumerate(runs):  # nothing is left that could be fused, and no edge says what others say already
        if run.steps and len(run.successors) == 1:
            assert runs[run.successors[0]].joins > 1
        assert not any(s in after[other] for s in run.successors for other in run.successors), at
