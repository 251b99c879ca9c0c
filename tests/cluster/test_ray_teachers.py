"""Teachers on a real Ray cluster: processes killed, a node added and another lost, and each row comes back once."""

from __future__ import annotations

from typing import Any

import pytest
from apart import told_by

LIMIT = 300.0
"""Seconds for the scenario, which the first test waits for."""
pytestmark = [pytest.mark.long, pytest.mark.timeout(LIMIT + 30)]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the scenario says; it runs once for all tests here."""
    return told_by("teachers_scenario.py", tmp_path_factory.mktemp("teachers"), LIMIT)


def test_every_row_comes_back_once_with_the_score_of_the_local_teacher(told: dict[str, Any]) -> None:
    assert told["fed"] == told["returned"] == told["rows"]
    assert told["equal"]


def test_members_that_die_are_replaced_and_a_new_node_brings_more(told: dict[str, Any]) -> None:
    assert told["members"] == [2, 2, 4, 2]
    assert told["lost"] >= 3
    assert told["put_back"] >= told["lost"]
    assert told["joined"] >= 2 + told["lost"]


def test_teachers_that_cannot_be_loaded_or_placed_are_told_at_once(told: dict[str, Any]) -> None:
    unloadable, unplaceable = told["refused"]
    assert unloadable.endswith("is not a bundle: it has no manifest.json")
    assert "\n" not in unloadable
    assert "each needs 64 CPUs" in unplaceable
