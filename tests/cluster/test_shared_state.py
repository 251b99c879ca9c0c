"""Two replicas on a real Ray cluster and two control processes over one real Redis, under constant load: the Redis is
restarted and crashes, the control process that leads is killed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from apart import told_by

LIMIT = 300.0
"""Seconds for the scenario, which the first test waits for."""
pytestmark = [pytest.mark.long, pytest.mark.timeout(LIMIT + 30)]

PHASES = ("restarted", "crashed", "leader_killed", "endpoint_killed")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the scenario says; it runs once for all tests here."""
    return told_by("state_scenario.py", tmp_path_factory.mktemp("state"), LIMIT)


@pytest.mark.parametrize("name", PHASES)
def test_no_answer_is_wrong_and_no_call_fails(told: dict[str, Any], name: str) -> None:
    assert set(told[name]["seen"]) == {"right"}, told["errors"]
    assert told[name]["seen"]["right"] > 100


def test_every_answer_is_in_the_traffic_log(told: dict[str, Any]) -> None:
    assert told["recorded"] == sum(told["all"].values())


@pytest.mark.parametrize("name", PHASES)
def test_a_weight_stands_and_one_given_afterwards_is_everywhere_within_two_seconds(
    told: dict[str, Any], name: str
) -> None:
    assert told[name]["weight_stood"]
    for replica in told[name]["replicas"]:
        assert replica["left"] < 2.0 < replica["taken"]


def test_a_lead_that_lapsed_is_taken_with_a_higher_token(told: dict[str, Any]) -> None:
    for name in ("crashed", "leader_killed"):
        before, after = told[name]["tokens"]
        assert after > before


def test_there_are_never_two_leaders(told: dict[str, Any]) -> None:
    claims, holders = told["leaders"]["claims"], told["leaders"]["holders"]
    tokens = [token for _, token in claims]
    assert len(set(tokens)) == len(tokens), "who has claimed the lead again under a token has not been interrupted"
    assert tokens == sorted(tokens)
    assert {(token, name) for name, token in claims} <= {tuple(holder) for holder in holders}
    assert len({token for token, _ in holders}) == len(holders) >= 3


def test_every_change_is_audited_once_and_none_that_was_refused(told: dict[str, Any]) -> None:
    assert [seq for seq, *_ in told["audit"]] == list(range(1, len(told["audit"]) + 1))
    by_hand = Counter(reason for _, _, actor, reason in told["audit"] if actor == "operator")
    assert by_hand == Counter(told["given"])
    by_itself = [(verb, why) for _, verb, actor, why in told["audit"] if actor == "controller"]
    assert [verb for verb, _ in by_itself if not verb.endswith("_stable")] == ["abort"], by_itself
    assert "state redis://" in told["refused"]
