"""Keys to arms: golden buckets, shares, growth, restarts, the holdout and the kill switch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import InvalidInput
from pipeline.hashing import bucket
from serving.kill import KillSwitch
from serving.rollout.assign import held_out, on_candidate
from serving.routing import ArmSpec, Endpoint, choose_arm

KEYS = [f"user:{i}" for i in range(100_000)]


def endpoint(**changes: object) -> Endpoint:
    arms = {"stable": ArmSpec(bundle="old", version=1), "candidate": ArmSpec(bundle="new", version=1)}
    return Endpoint.model_validate({"name": "ranker", "salt": "r1", **arms, **changes})


@pytest.mark.parametrize(
    ("salt", "key", "expected"),
    [
        ("r1", "712", 5333),
        ("r1", "713", 7322),
        ("r2", "712", 5405),
        ("ranker-2026", "user:42", 3282),
        ("", "x", 3925),
        ("r1", "Göttingen", 5504),
    ],
)
def test_golden_buckets(salt: str, key: str, expected: int) -> None:
    assert bucket(salt, key) == expected
    assert on_candidate(salt, key, (expected + 1) / 100)
    assert not on_candidate(salt, key, expected / 100)


@pytest.mark.parametrize("weight", [0, 0.5, 1, 5, 25, 50, 99, 100])
def test_100_000_keys_land_within_half_a_point_of_the_weight(weight: float) -> None:
    here = endpoint(weight=weight)
    share = 100 * sum(choose_arm(here, key) == "candidate" for key in KEYS) / len(KEYS)
    assert abs(share - weight) < 0.5
    assert share == weight if weight in (0, 100) else True


def test_growth_never_takes_a_key_away() -> None:
    on: set[str] = set()
    for weight in (0.1, 1, 5, 25, 50, 77.7, 100):
        here = endpoint(weight=weight, holdout=0.01)
        now = {key for key in KEYS[:20_000] if choose_arm(here, key) == "candidate"}
        assert on <= now
        on = now


def test_another_process_assigns_alike() -> None:
    code = (
        "from serving.rollout.assign import on_candidate\n"
        "print(''.join(str(int(on_candidate('r1', f'user:{i}', 37.5))) for i in range(500)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert out == "".join(str(int(on_candidate("r1", key, 37.5))) for key in KEYS[:500])


def test_the_holdout_stays_on_stable_at_any_weight() -> None:
    here = endpoint(weight=100, holdout=0.05)
    held = [key for key in KEYS if held_out("r1", key, 0.05)]
    assert abs(len(held) / len(KEYS) - 0.05) < 0.005
    assert all(choose_arm(here, key) == "stable" for key in held)
    low = sum(bucket("r1", key) < 5000 for key in held) / len(held)
    assert abs(low - 0.5) < 0.03, "the holdout is independent of the buckets"


def test_who_has_no_key_or_no_candidate_gets_stable() -> None:
    assert choose_arm(endpoint(weight=100), "") == "stable"
    assert choose_arm(endpoint(candidate=None), "user:1") == "stable"
    assert choose_arm(endpoint(weight=100, killed=True), "user:1") == "stable"
    with pytest.raises(ValueError, match="no candidate"):
        endpoint(candidate=None, weight=1)


def test_the_kill_switch_is_seen_by_whoever_looks(tmp_path: Path) -> None:
    lane, operator = KillSwitch(tmp_path), KillSwitch(tmp_path)
    assert lane.engaged() == frozenset()
    operator.engage("ranker", "too many complaints", "ada")
    assert lane.engaged() == {"ranker"}
    assert lane.why("ranker") == ("too many complaints", "ada")
    assert operator.release("ranker")
    assert not operator.release("ranker")
    assert lane.engaged() == frozenset()
    assert lane.why("ranker") is None


def test_a_kill_file_made_by_hand_works(tmp_path: Path) -> None:
    (tmp_path / "kill").mkdir()
    (tmp_path / "kill" / "ranker").touch()
    switch = KillSwitch(tmp_path)
    assert switch.engaged() == {"ranker"}
    assert switch.why("ranker") == ("kill file without a reason", "unknown")


@pytest.mark.parametrize("name", ["../x", "", ".hidden", "a/b"])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInput, match="endpoint name"):
        KillSwitch(tmp_path).engage(name, "r", "a")
