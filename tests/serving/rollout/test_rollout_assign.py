"""Keys to arms: golden buckets, shares, growth, restarts, the holdout and the kill switch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import InvalidInput
from pipeline.hashing import bucket
from serving.rollout.routing import ArmSpec, Endpoint, choose_arm, held_out, on_candidate
from serving.rollout.spec import Rollout
from serving.rollout.sqlite_store import SqliteControlStore
from serving.rollout.state import Abort, apply, begin
from serving.rollout.store import Who
from serving.state.kill import KillSwitch

WHO = Who("ada", "test", 1)
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
        "from serving.rollout.routing import on_candidate\n"
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


@pytest.mark.parametrize("salt", ["r1", "ranker", "shop-2026", "", "ü"])
@pytest.mark.parametrize("share", [0.01, 0.2])
def test_holdout_and_moved_keys_exclude_each_other_at_every_weight(salt: str, share: float) -> None:
    held = {key for key in KEYS[:30_000] if held_out(salt, key, share)}
    assert abs(len(held) / 30_000 - share) < 4 * (share * (1 - share) / 30_000) ** 0.5
    for weight in (0, 0.1, 1, 25, 50, 99.9, 100):
        here = endpoint(salt=salt, holdout=share, weight=weight)
        moved = {key for key in KEYS[:30_000] if choose_arm(here, key) == "candidate"}
        assert not held & moved
        wanted = (1 - share) * weight / 100
        assert abs(len(moved) / 30_000 - wanted) < 4 * (wanted * (1 - wanted) / 30_000) ** 0.5 + 1e-9
    assert moved == set(KEYS[:30_000]) - held, "at full weight the keys on stable are the holdout, all of it"


def test_holdouts_of_two_endpoints_know_nothing_of_each_other() -> None:
    one, two = ({key for key in KEYS if held_out(salt, key, 0.1)} for salt in ("ranker", "shop"))
    assert abs(len(one & two) / len(KEYS) - 0.01) < 0.002
    assert {key for key in KEYS[:1000] if held_out("ranker", key, 0.05)} < one, "a larger holdout only adds keys"


def test_the_holdout_stays_the_same_over_restarts_and_rollouts(tmp_path: Path) -> None:
    code = (
        "import sys; from serving.rollout.routing import held_out\n"
        "print(''.join(str(int(held_out(sys.argv[1], f'user:{i}', 0.2))) for i in range(2000)))"
    )
    store = SqliteControlStore(tmp_path / "control.db")
    store.put_endpoint(endpoint(candidate=None, salt="r1"), WHO)
    seen = []
    for candidate in ("new", "newer"):
        spec = Rollout.parse(
            f"{{endpoint: ranker, candidate: {{bundle: {candidate}}}, guards: {{}}, holdout: 0.2, "
            "steps: [{weight: 50, bias_below: 0.1}]}"
        )
        chosen = store.endpoint("ranker").model_copy(
            update={"candidate": ArmSpec(bundle=candidate), "holdout": spec.holdout}
        )
        stored = store.start_rollout(spec, begin(spec, 1, 0, 0), chosen, WHO)
        kept = store.endpoint("ranker")
        out = subprocess.run([sys.executable, "-c", code, kept.salt], capture_output=True, text=True, check=True)
        seen.append(out.stdout.strip())
        ended = apply(spec, stored.state, Abort(), 1, 0)
        store.save_rollout(stored, ended, kept, WHO, "abort")
    store.close()
    assert seen[0] == seen[1] == "".join(str(int(held_out("r1", key, 0.2))) for key in KEYS[:2000])


def test_who_has_no_key_or_no_candidate_gets_stable() -> None:
    assert choose_arm(endpoint(weight=100), "") == "stable"
    assert choose_arm(endpoint(candidate=None), "user:1") == "stable"
    assert choose_arm(endpoint(weight=100, killed=True), "user:1") == "stable"
    with pytest.raises(ValueError, match="no candidate"):
        endpoint(candidate=None, weight=1)


def test_the_kill_switch_is_seen_by_whoever_looks(tmp_path: Path) -> None:
    lane, operator = KillSwitch(tmp_path), KillSwitch(tmp_path)
    lane.prepare()
    names = {"ranker", "shop"}
    assert lane.files.engaged(names) == frozenset()
    operator.engage("ranker", "too many complaints", "ada")
    assert lane.files.engaged(names) == {"ranker"}
    assert lane.why("ranker") == ("too many complaints", "ada")
    assert operator.release("ranker")
    assert not operator.release("ranker")
    assert lane.files.engaged(names) == frozenset()
    assert lane.why("ranker") is None


def test_a_kill_file_made_by_hand_works(tmp_path: Path) -> None:
    (tmp_path / "kill").mkdir()
    (tmp_path / "kill" / "ranker").touch()
    switch = KillSwitch(tmp_path)
    assert switch.engaged("ranker")
    assert switch.why("ranker") == ("kill file without a reason", "unknown")


@pytest.mark.parametrize("name", ["../x", "", ".hidden", "a/b"])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInput, match="endpoint name"):
        KillSwitch(tmp_path).engage(name, "r", "a")
