"""The caller's role is looked at before anything that it sent, through REST and gRPC."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest
from doors import ROUTES
from operated import Operated, admin_port, http_port, operated

from serving.admin import VERBS
from serving.config.principal import Role
from serving.services.admin import SERVICES, verb_of

CHANGES = [name for name, verb in VERBS.items() if verb.role is Role.OPERATOR]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Operated, int, int, str]]:
    with operated(tmp_path_factory.mktemp("roles") / "home") as made:
        token = made.token(Role.VIEWER)
        with http_port(made) as http, admin_port(made) as admin:
            yield made, http, admin, token


@pytest.mark.parametrize("body", [b"{", b"", b"[]", b'{"weight": "much", "nothing": 1}', b"\xff" * 100])
def test_a_viewers_malformed_request_is_refused_for_the_role(world: tuple[Any, int, int, str], body: bytes) -> None:
    _, port, _, token = world
    for who, code in ((f"Bearer {token}", 403), ("Bearer baton_0_wrong", 401), ("", 401)):
        headers = {"content-type": "application/json", "if-match": "x" * 100, **({"authorization": who} if who else {})}
        for verb in CHANGES:
            method, path = ROUTES[verb]
            for name in ("{name}", "{bundle}"):
                path = path.replace(name, "n" * 300)
            answer = httpx.request(
                method, f"http://127.0.0.1:{port}/api/v1{path}", headers=headers, content=body, trust_env=False
            )
            assert answer.status_code == code, (verb, answer.text)


def test_a_viewers_bytes_over_grpc_are_refused_for_the_role(world: tuple[Any, int, int, str]) -> None:
    _, _, port, token = world
    codes = grpc.StatusCode
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for who, code in ((token, codes.PERMISSION_DENIED), ("baton_0_wrong", codes.UNAUTHENTICATED)):
            for service, described in SERVICES.items():
                for method in described.methods:
                    if verb_of(described.name, method.name).role is not Role.OPERATOR:
                        continue
                    for message in (b"\xff" * 50, b"", b"x" * (5 << 20)):
                        call: Any = channel.unary_unary(f"/{service}/{method.name}")
                        with pytest.raises(grpc.RpcError) as refused:
                            call(message, metadata=(("authorization", f"Bearer {who}"),), timeout=20)
                        assert refused.value.code() is code, (method.name, len(message))  # type: ignore[attr-defined]


def test_names_in_answers_are_cut(world: tuple[Any, int, int, str]) -> None:
    _, port, _, token = world
    base, headers = f"http://127.0.0.1:{port}", {"authorization": f"Bearer {token}"}
    for path in (f"/api/v1/{'n' * 20_000}", f"/api/v1/endpoints?{'f' * 20_000}=1", f"/api/v1/rollouts/{'n' * 199}"):
        answer = httpx.get(f"{base}{path}", headers=headers, trust_env=False)
        assert answer.status_code in (400, 404)
        assert len(answer.content) < 2000, path[:40]
        assert "…" in answer.json()["error"]["message"]
