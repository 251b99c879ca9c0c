from __future__ import annotations

from dataclasses import dataclass

import pytest

from pipeline.errors import InvalidInput
from pipeline.event import Event
from pipeline.plan import Plan


@dataclass
class Noted:
    """A stage that only has edges."""

    name: str
    consumes: tuple[str, ...] = ()
    produces: tuple[str, ...] = ()

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
