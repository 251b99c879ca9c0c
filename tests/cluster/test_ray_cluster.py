"""Replicas on a real Ray cluster under constant load: what is lost when one dies, and that planned changes lose nothing."""

from __future__ import annotations

from typing import Any

import pytest
from apart import told_by

LIMIT = 600.0
"""Seconds for the scenario, which the first test waits for."""
pytestmark = [pytest.mark.long, pytest.mark.timeout(LIMIT + 30)]

IN_FLIGHT = 8
"""Calls of the load at once: what a replica may have had when it died."""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the scenario says; it runs once for all tests here."""
    return told_by("scenario.py", tmp_path_factory.mktemp("cluster"), LIMIT)


def failures(phase: dict[str, Any]) -> int:
    return sum(count for kind, count in phase["seen"].items() if kind not in ("right", "wrong"))


def test_replicas_are_on_different_nodes(told: dict[str, Any]) -> None:
    assert told["start"]["nodes"] == 2


def test_no_answer_is_wrong(told: dict[str, Any]) -> None:
    assert told["all"].get("wrong", 0) == 0
    assert told["all"]["right"] > 1000


@pytest.mark.parametrize("name", ["killed", "node_removed"])
def test_a_loss_costs_what_was_in_flight_there_at_most(told: dict[str, Any], name: str) -> None:
    assert failures(told[name]) <= IN_FLIGHT, told["errors"]
    assert told[name]["seen"]["right"] > 100


@pytest.mark.parametrize("name", ["upgraded", "scaled_down", "scaled_up", "weighted", "scaled_back"])
def test_planned_changes_cost_nothing(told: dict[str, Any], name: str) -> None:
    assert failures(told[name]) == 0, told["errors"]
    assert told[name]["seen"]["right"] > 20


def test_all_replicas_follow_a_weight_within_two_seconds(told: dict[str, Any]) -> None:
    assert told["weights"]["candidate"]
    assert told["weights"]["last_of_stable"] < 2.0
