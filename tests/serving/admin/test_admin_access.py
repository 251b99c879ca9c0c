"""Access to every admin verb through REST and gRPC: without a token, with a wrong, an expired and each role's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from doors import METHODS, ROUTES, Grpc, Refused, Rest
from operated import Operated, admin_port, http_port, operated, rollout_file

from serving.admin import VERBS
from serving.config.principal import Role
from serving.rollout.store import ControlStore

SHOP = {"name": "shop", "stable": {"bundle": "teacher"}}
# In an order in which an operator may do nearly all of it; what is left is refused for another reason than who asks.
REQUESTS: dict[str, dict[str, Any]] = {
    "endpoints.list": {},
    "endpoints.get": {"name": "ranker"},
    "endpoints.set": SHOP,
    "models.list": {},
    "models.load": {"bundle": "student"},
    "models.warm": {"bundle": "student"},
    "models.unload": {"bundle": "student"},
    "rollouts.start": {"file": rollout_file()},
    "rollouts.list": {},
    "rollouts.get": {"name": "ranker"},
    "rollouts.watch": {"name": "ranker"},
    "rollouts.pause": {"name": "ranker"},
    "rollouts.resume": {"name": "ranker"},
    "rollouts.promote": {"name": "ranker"},
    "rollouts.set_weight": {"name": "ranker", "weight": 5},
    "metrics.get": {"endpoint": "ranker"},
    "metrics.processes": {},
    "rollouts.abort": {"name": "ranker"},
    "rollouts.undo": {"name": "ranker"},
    "endpoints.kill": {"name": "ranker"},
    "endpoints.release": {"name": "ranker"},
    "audit.list": {},
    "audit.explain": {"seq": 1},
    "cache.stats": {},
    "cache.warm": {"name": "ranker"},
    "log.forget": {"routing_key": "u1"},
    "worker.status": {},
}
OTHERWISE = {
    "rollouts.undo": "Conflict",  # an aborted one is not undone
    "cache.warm": "Conflict",  # there is no Redis
    "models.unload": "Conflict",  # an arm of an endpoint
}
CALLERS = ("no token", "bad token", "expired token", "viewer", "operator")


@dataclass
class Ports:
    world: Operated
    http: int
    grpc: int
    tokens: dict[str, str]

    def door(self, name: str, caller: str) -> Rest | Grpc:
        token = self.tokens[caller]
        return Rest(self.http, token=token) if name == "REST" else Grpc(self.grpc, token=token)


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ports]:
    with operated(tmp_path_factory.mktemp("access") / "home") as world:
        now = world.clock.wall_ms()
        expired = world.tokens.create("was", Role.OPERATOR, now, now + 1)[1]
        world.clock.now += 1
        tokens = {
            "no token": "",
            "bad token": "baton_00000000_wrong",
            "expired token": expired,
            "viewer": world.token(Role.VIEWER),
            "operator": world.token(Role.OPERATOR),
        }
        with http_port(world) as http, admin_port(world) as grpc:
            yield Ports(world, http, grpc, tokens)


def test_the_table_is_whole() -> None:
    assert set(REQUESTS) == set(VERBS) == set(ROUTES) == set(METHODS)
    assert {name for name, verb in VERBS.items() if verb.mutating} == {
        name for name, verb in VERBS.items() if verb.role is Role.OPERATOR
    }


def test_rest_has_each_verb_once_and_nothing_else(ports: Ports) -> None:
    document = httpx.get(f"http://127.0.0.1:{ports.http}/api/openapi.json").json()
    found = [
        (method.upper(), path)
        for path, methods in document["paths"].items()
        for method in methods
        if path.startswith("/api/v1")
    ]
    assert sorted(found) == sorted((method, f"/api/v1{path}") for method, path in ROUTES.values())


@pytest.mark.parametrize("door", ["REST", "gRPC"])
@pytest.mark.parametrize("caller", CALLERS)
def test_every_verb_is_for_those_alone_who_may(ports: Ports, door: str, caller: str) -> None:
    way = ports.door(door, caller)
    before = _state(ports.world.made.store)
    wrong: list[str] = []
    for name, fields in REQUESTS.items():
        wanted = _expected(name, caller)
        try:
            way.do(name, **fields)
            got = "done"
        except Refused as error:
            got = error.kind
        if got != wanted:
            wrong.append(f"{name}: {got}, not {wanted}")
    way.close()
    assert not wrong
    assert (_state(ports.world.made.store) == before) is (caller != "operator")


def _expected(verb: str, caller: str) -> str:
    if caller in ("no token", "bad token", "expired token"):
        return "Unauthenticated"
    if caller == "viewer" and VERBS[verb].role is Role.OPERATOR:
        return "PermissionDenied"
    if caller == "operator":
        return OTHERWISE.get(verb, "done")
    # A viewer sees what there is; before an operator has come there is no rollout to see.
    return "NotFound" if verb in ("rollouts.get", "rollouts.watch", "metrics.get") else "done"


def _state(store: ControlStore) -> Any:
    return store.endpoints(), [(r.id, r.state) for r in store.rollouts()], [e.seq for e in store.audit()]
