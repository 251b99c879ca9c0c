"""Traffic log compared with a plain dictionary, under any order of predictions, feedback, joins and restarts."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from traffic_machine import TrafficMachine
from traffic_places import Place

EXAMPLES = {"local": 100, "redis": 80}


def check(place: Place, examples: int) -> None:
    rules = settings(
        max_examples=examples,
        stateful_step_count=40,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
    run_state_machine_as_test(lambda: TrafficMachine(place), settings=rules)  # type: ignore[arg-type,no-untyped-call]


def test_any_interleaving_gives_what_a_dictionary_would(place: Place) -> None:
    check(place, EXAMPLES[place.kind])


@pytest.mark.long
def test_many_interleavings_give_what_a_dictionary_would(place: Place) -> None:
    check(place, 2 * EXAMPLES[place.kind])
