"""The admin API is whole: each verb has one route, one RPC and a role, and REST has nothing else."""

from __future__ import annotations

from pathlib import Path

from doors import METHODS, ROUTES
from operated import operated

from serving.admin import VERBS
from serving.config.principal import Role


def test_each_verb_is_everywhere_and_those_that_change_something_are_the_operators() -> None:
    assert set(VERBS) == set(ROUTES) == set(METHODS)
    assert {name for name, verb in VERBS.items() if verb.mutating} == {
        name for name, verb in VERBS.items() if verb.role is Role.OPERATOR
    }


def test_rest_has_each_verb_once_and_nothing_else(tmp_path: Path) -> None:
    with operated(tmp_path / "home") as world:
        document = world.app().openapi()
    found = [
        (method.upper(), path)
        for path, methods in document["paths"].items()
        for method in methods
        if path.startswith("/api/v1")
    ]
    assert sorted(found) == sorted((method, f"/api/v1{path}") for method, path in ROUTES.values())
