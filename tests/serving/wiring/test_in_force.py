"""Settings that the state has decided otherwise are named, with what counts and how they are changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from installation import Installation
from operated import operated, rollout_file
from typer.testing import CliRunner

from pipeline.errors import InvalidInput
from serving.admin import requests as r
from serving.cli.main import app
from serving.config import Config
from serving.security.tokens import LOCAL
from serving.wiring.in_force import not_in_force

STABLE = {"bundle": "teacher"}
CANDIDATE = {"bundle": "student"}


def lines(made: Installation, **endpoints: object) -> list[str]:
    return not_in_force(Config.model_validate({"home": made.home, "endpoints": endpoints}))


def test_a_home_that_has_never_run_differs_in_nothing(tmp_path: Path) -> None:
    assert not_in_force(Config(home=tmp_path / "new")) == []


def test_endpoints_that_differ_from_the_state(tmp_path: Path) -> None:
    made = Installation(tmp_path)
    assert not_in_force(made.config) == []
    assert lines(made) == [], "endpoints that only verbs have made"
    assert lines(made, ranker={"stable": STABLE, "candidate": CANDIDATE, "salt": "ranker"}) == []
    for wanted, command in (
        ({"stable": CANDIDATE, "candidate": STABLE}, "--stable student --candidate teacher"),
        ({"stable": STABLE}, "--stable teacher"),
        ({"stable": {**STABLE, "version": "1"}, "candidate": CANDIDATE}, "--stable teacher:1 --candidate student"),
        ({"stable": STABLE, "candidate": CANDIDATE, "salt": "s2"}, "--stable teacher --candidate student --salt s2"),
    ):
        (line,) = lines(made, ranker=wanted)
        assert "the state counts and not the configuration: it has stable teacher, candidate student" in line
        assert line.endswith(f"baton endpoint set ranker {command} --reason '...'")
    (line,) = lines(made, other={"stable": STABLE})
    assert line.startswith("endpoint ranker is in the state and not in the configuration")
    made.store.close()


def test_doctor_says_it(tmp_path: Path) -> None:
    made = Installation(tmp_path / "home")
    (tmp_path / "baton.yaml").write_text("home: home\nendpoints: {ranker: {stable: {bundle: student}}}\n")
    said = CliRunner().invoke(app, ["doctor", "--config", str(tmp_path / "baton.yaml"), "-o", "json"]).output
    assert "baton endpoint set ranker --stable student" in said
    made.store.close()


def test_the_window_of_a_rollout_is_that_of_the_log_or_it_is_named(tmp_path: Path) -> None:
    with operated(tmp_path, traffic={"attribution_window": 40}) as world:
        for window in ("3s", "30m"):
            file = r.RolloutFile(
                file=rollout_file(analysis={"attribution_window": window}), reason="try", name="r.yaml"
            )
            with pytest.raises(InvalidInput, match=r"r\.yaml:\d+: analysis\.attribution_window: .* of the log is 40 s"):
                world.admin.rollouts.start(file, LOCAL)
        begun = world.admin.rollouts.start(r.RolloutFile(file=rollout_file(), reason="try"), LOCAL)
        config = world.made.config
        assert not_in_force(config) == []
        changed = config.model_copy(update={"traffic": config.traffic.model_copy(update={"attribution_window": 50.0})})
        (line,) = not_in_force(changed)
        assert begun.id in line
        assert "of the rollout is 40 s, traffic.attribution_window of the log is 50 s" in line
