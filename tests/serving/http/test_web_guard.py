"""Guard of the HTTP port over a real uvicorn server: authentication, origin, sizes, rates, headers."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from installation import eventually, free_port
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from pipeline.clock import SystemClock
from pipeline.errors import NotReady, Overloaded, PermissionDenied, Unauthenticated
from serving.config import Config
from serving.config.principal import Role
from serving.http.port import HEADER_BYTES, http_server
from serving.security.admitted import admitted
from serving.security.authenticator import Authenticator, Credentials
from serving.security.session import CSRF_HEADER, SessionRows, Sessions
from serving.security.tokens import TokenStore
from serving.security.web import MAX_BODY_BYTES, MAX_FORM_BYTES
from serving.state.sessions import SqliteSessions


def _who() -> str:
    principal = admitted.get()
    return "nobody" if principal is None else f"{principal.name}/{principal.role}"


async def _answer(request: Request) -> Response:
    body = await request.body()
    return JSONResponse({"who": _who(), "bytes": len(body)})


async def _socket(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_text(_who())
    await socket.close()


PATHS = ("/healthz", "/readyz", "/metrics", "/login", "/", "/_nicegui/x.js", "/api/v1/endpoints", "/api/openapi.json")


@dataclass
class Guarded:
    """A server with a guard. Tokens: none until made."""

    port: int
    tokens: TokenStore
    sessions: Sessions
    authenticator: Authenticator
    http: httpx.Client

    def call(self, method: str, path: str, token: str = "", **more: Any) -> httpx.Response:
        headers = {**({"authorization": f"Bearer {token}"} if token else {}), **more.pop("headers", {})}
        return self.http.request(method, path, headers=headers, **more)

    def token(self, name: str, role: Role) -> str:
        return self.tokens.create(name, role, SystemClock().wall_ms())[1]

    def raw(self, data: bytes) -> bytes:
        """What comes back for these bytes, read until the server closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            connection.sendall(data)
            answer = b""
            while part := connection.recv(65536):
                answer += part
        return answer


async def _stream(request: Request) -> StreamingResponse:
    async def parts() -> AsyncIterator[bytes]:
        while True:
            yield b"x"
            await asyncio.sleep(0.01)

    return StreamingResponse(parts())


@contextlib.contextmanager
def guarded(home: Path, rows: SessionRows | None = None, **listen: Any) -> Iterator[Guarded]:
    config = Config.model_validate({"home": home, "listen": listen})
    clock = SystemClock()
    authenticator = Authenticator(config, clock)
    sessions = Sessions(authenticator, rows or SqliteSessions(config.sessions_db), clock, secure=False)
    routes = [
        Route("/metrics/stream", _stream),
        *(Route(path, _answer, methods=["GET", "POST", "PUT", "DELETE"]) for path in PATHS),
    ]
    app = Starlette(routes=[*routes, WebSocketRoute("/ws", _socket)])
    port = free_port()
    server = http_server(app, authenticator, sessions, config.listen, port=port)
    thread = threading.Thread(target=server.run, name="guarded", daemon=True)
    thread.start()
    eventually(lambda: server.started, "the server listens")
    http = httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False)
    try:
        yield Guarded(port, TokenStore(config.tokens), sessions, authenticator, http)
    finally:
        http.close()
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Guarded]:
    with guarded(tmp_path / "home") as made:
        yield made


def test_without_tokens_everyone_on_this_machine_is_an_operator(door: Guarded) -> None:
    for path in ("/", "/api/v1/endpoints", "/metrics"):
        assert door.call("GET", path).json()["who"] == "local/operator", path


def test_with_tokens_each_path_answers_whom_it_should(door: Guarded) -> None:
    ann = door.token("ann", Role.VIEWER)
    for path in PATHS:
        is_open = path in ("/healthz", "/readyz", "/login", "/_nicegui/x.js")
        stranger = door.call("GET", path)
        assert stranger.status_code == (200 if is_open else 401), path
        if not is_open:
            assert stranger.headers["www-authenticate"].startswith("Bearer")
            assert stranger.json()["error"]["kind"] == "Unauthenticated"
            assert door.call("GET", path, ann).json()["who"] == "ann/viewer"
            assert door.call("GET", path, ann + "x").status_code == 401
    assert door.call("POST", "/_nicegui/x.js").status_code == 401  # only reading is open below a prefix
    both = f"Host: localhost\r\nAuthorization: Bearer {ann}\r\nAuthorization: Bearer x\r\nConnection: close\r\n\r\n"
    assert door.raw(f"GET /metrics HTTP/1.1\r\n{both}".encode()).split()[1] == b"401"


def test_metrics_can_be_opened(tmp_path: Path) -> None:
    with guarded(tmp_path, open_metrics=True) as door:
        door.token("ann", Role.VIEWER)
        assert door.call("GET", "/metrics").status_code == 200
        assert door.call("GET", "/api/v1/endpoints").status_code == 401


@pytest.mark.parametrize(
    "path", ["//api/v1/endpoints", "/%2e/api/v1/endpoints", "/api%2fv1%2fendpoints", "/_nicegui/../api/v1/endpoints",
             "/healthz/../api/v1/endpoints", "/login/../metrics", "/API/v1/endpoints", "/healthz%00/api", "/healthz;/metrics"],
)  # fmt: skip
def test_no_spelling_of_a_path_goes_past_the_guard(door: Guarded, path: str) -> None:
    door.token("ann", Role.VIEWER)
    # Written by hand, for clients tidy paths up.
    answer = door.raw(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
    status = int(answer.split()[1])
    assert status in (400, 401, 404), answer
    assert b"who" not in answer


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "127.0.0.1.evil.example"},
        {"host": "127.0.0.1:8000@evil.example"},
        {"host": "localhost@evil.example"},
        {"host": "localhost/evil"},
        {"host": "192.168.1.5"},
        {"host": "2130706433"},
        {"host": "127.0.0.1:99999"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:1"},
        {"origin": "http://localhost.evil.example"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_what_another_sites_page_asks_is_refused(door: Guarded, headers: dict[str, str]) -> None:
    ann = door.token("ann", Role.OPERATOR)
    answer = door.call("POST", "/api/v1/endpoints", ann, headers=headers)
    assert answer.status_code == 403, headers
    assert answer.json()["error"]["kind"] == "PermissionDenied"


def test_hosts_are_one_and_there(door: Guarded) -> None:
    for head in ("", "Host: localhost\r\nHost: localhost\r\n", "Host:\r\n"):
        answer = door.raw(f"GET /api/v1/endpoints HTTP/1.1\r\n{head}Connection: close\r\n\r\n".encode())
        assert answer.split()[1] in (b"400", b"403"), (head, answer)


def test_our_own_pages_and_named_hosts_may_ask(tmp_path: Path) -> None:
    with guarded(tmp_path, allowed_hosts=["Baton.example"]) as door:
        own = f"127.0.0.1:{door.port}"
        for host, origin in (
            (own, f"http://{own}"),
            ("localhost:1", "http://localhost:1"),
            ("[::1]:7", "http://[::1]:7"),
            ("baton.example", "https://baton.example"),
            ("127.0.0.1", "https://baton.example"),  # a proxy that does not hand Host on
        ):
            answer = door.call("POST", "/api/v1/endpoints", headers={"host": host, "origin": origin})
            assert answer.status_code == 200, (host, origin)


def test_a_session_stands_for_its_token_and_needs_its_csrf_value(door: Guarded) -> None:
    ann = door.token("ann", Role.OPERATOR)
    cookie = door.sessions.begin(Credentials(f"Bearer {ann}"))
    assert len(cookie) < 200
    session = door.sessions.find(cookie)
    assert session is not None
    sent = {"cookie": f"other=1; {door.sessions.cookie}={cookie}"}
    right = {**sent, CSRF_HEADER: session.csrf}
    assert door.call("GET", "/", headers=sent).json()["who"] == "ann/operator"
    assert door.call("POST", "/api/v1/endpoints", headers=sent).status_code == 403
    assert door.call("POST", "/api/v1/endpoints", headers={**sent, CSRF_HEADER: "x"}).status_code == 403
    assert door.call("POST", "/api/v1/endpoints", headers=right).json()["who"] == "ann/operator"
    assert ann.split("_", 2)[2] not in cookie
    stored = hashlib.sha256(cookie.encode()).hexdigest()
    for wrong in (cookie[:-1], cookie + "x", "", "a.b.c", cookie[::-1], "%ff", stored, stored[:43], session.csrf[:43]):
        spoiled = {"cookie": f"{door.sessions.cookie}={wrong}"}
        assert door.call("GET", "/api/v1/endpoints", headers=spoiled).status_code == 401, wrong
    door.sessions.end(cookie)
    assert door.call("GET", "/api/v1/endpoints", headers=sent).status_code == 401
    again = {"cookie": f"{door.sessions.cookie}={door.sessions.begin(Credentials(f'Bearer {ann}'))}"}
    assert door.call("GET", "/api/v1/endpoints", headers=again).status_code == 200
    door.tokens.revoke("ann")
    door.token("bob", Role.VIEWER)
    assert door.call("GET", "/api/v1/endpoints", headers=again).status_code == 401


@pytest.mark.parametrize("by", ["session", "token", "nothing"])
def test_a_stream_ends_with_what_opened_it(door: Guarded, by: str) -> None:
    headers: dict[str, str] = {}
    if by != "nothing":
        token = door.token("ann", Role.OPERATOR)
        headers = {"authorization": f"Bearer {token}"}
    if by == "session":
        cookie = door.sessions.begin(Credentials(headers.pop("authorization")))
        headers = {"cookie": f"{door.sessions.cookie}={cookie}"}
    with door.http.stream("GET", "/metrics/stream", headers=headers) as answer:
        parts = answer.iter_raw()
        assert next(parts) == b"x"
        if by == "session":
            door.sessions.end(cookie)
        elif by == "token":
            door.tokens.revoke("ann")
        else:
            door.token("ann", Role.OPERATOR)  # from now on everyone needs one
        assert len(b"".join(parts)) < 1000  # those on their way, then the end


class _Away:
    """A store of sessions that does not answer."""

    def put(self, *_: object) -> None:
        raise NotReady("state is away")

    get = remove = put

    def close(self) -> None:
        pass


def test_a_store_of_sessions_that_is_away_stops_sessions_and_not_tokens(tmp_path: Path) -> None:
    with guarded(tmp_path / "home", rows=_Away()) as door:  # type: ignore[arg-type]
        ann = door.token("ann", Role.OPERATOR)
        cookie = {"cookie": f"{door.sessions.cookie}={'x' * 43}"}
        answer = door.call("GET", "/api/v1/endpoints", headers=cookie)
        assert (answer.status_code, answer.json()["error"]["kind"]) == (503, "NotReady")
        assert door.call("POST", "/api/v1/endpoints", headers=cookie).status_code == 503
        for path in ("/healthz", "/login"):
            assert door.call("GET", path, headers=cookie).status_code == 200, path
        for headers in ({}, cookie):  # a token counts before a cookie
            assert door.call("POST", "/api/v1/endpoints", ann, headers=headers).json()["who"] == "ann/operator"


def test_a_browser_that_is_not_logged_in_is_sent_to_the_login_page(door: Guarded) -> None:
    door.token("ann", Role.VIEWER)
    page = {"accept": "text/html,*/*"}
    answer = door.call("GET", "/", headers=page)
    assert (answer.status_code, answer.headers["location"]) == (303, "/login?next=/")
    for path in ("//evil.example/x", "/\\evil.example/x", "///evil.example/x"):
        away = door.raw(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/html\r\nConnection: close\r\n\r\n".encode()
        )
        assert b"\r\nlocation: /login?next=/evil.example/x\r\n" in away  # a path of ours, not another site
    assert door.call("GET", "/api/v1/endpoints", headers=page).status_code == 401


def test_a_socket_needs_a_principal_and_a_page_of_ours(door: Guarded) -> None:
    at, origin = f"ws://127.0.0.1:{door.port}/ws", f"http://127.0.0.1:{door.port}"
    with connect(at, origin=origin, proxy=None) as socket:  # type: ignore[arg-type]
        assert socket.recv() == "local/operator"
    ann = door.token("ann", Role.VIEWER)
    cookie = {"cookie": f"{door.sessions.cookie}={door.sessions.begin(Credentials(f'Bearer {ann}'))}"}
    with connect(at, origin=origin, additional_headers=cookie, proxy=None) as socket:  # type: ignore[arg-type]
        assert socket.recv() == "ann/viewer"
    for page, headers in ((origin, {}), ("http://evil.example", cookie), ("null", cookie)):
        with pytest.raises(InvalidStatus) as refused, connect(at, origin=page, additional_headers=headers, proxy=None):  # type: ignore[arg-type]
            pass
        assert refused.value.response.status_code == 403


def test_bodies_are_limited_whether_or_not_they_say_their_length(door: Guarded) -> None:
    path, large = "/api/v1/endpoints", b"x" * (MAX_BODY_BYTES + 1)
    assert door.call("POST", path, content=large[:-1]).json()["bytes"] == MAX_BODY_BYTES
    assert door.call("POST", path, content=large).status_code == 413
    assert door.call("POST", path, content=iter([large[:1000], large])).status_code == 413
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {MAX_BODY_BYTES + 1}\r\nConnection: close\r\n\r\n"
    )
    assert door.raw(head.encode()).split()[1] == b"413"  # before any of it was sent


def test_heads_of_requests_are_limited(door: Guarded) -> None:
    filler = "x" * (10 * HEADER_BYTES)  # more than comes with one read
    with contextlib.suppress(ConnectionError):  # it does not read to the end
        answer = door.raw(f"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: {filler}\r\n\r\n".encode())
        assert answer.split()[1] in (b"400", b"431")
    assert "server" not in door.call("GET", "/healthz").headers


def test_guesses_at_a_token_are_limited_and_hold_up_no_other_token(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with guarded(tmp_path, limits={"wrong_tokens": 0.01}) as door:
        ann, bob = door.token("ann", Role.VIEWER), door.token("bob", Role.VIEWER)
        answers = [door.call("GET", "/metrics", f"{ann[:-6]}{i:06}") for i in range(14)]
        assert [a.status_code for a in answers] == [401] * 10 + [429] * 4
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 100
        assert door.call("GET", "/metrics", f"baton_{0:08x}_x").status_code == 429, "an id makes no difference"
        assert [door.call("GET", "/metrics", token).status_code for token in (ann, bob)] == [200, 200]
        door.sessions.begin(Credentials(f"Bearer {ann}", "127.0.0.1"))  # the sign-in as well
        counters = door.authenticator.counters
        assert (counters["wrong_token"], counters["many_wrong_tokens"]) == (10, 5)
        assert len([r for r in caplog.records if "wrong tokens" in r.message]) == 1, "one warning a minute"


def test_who_has_called_too_often_can_still_stop(tmp_path: Path) -> None:
    with guarded(tmp_path, limits={"admin": 0.01, "admin_burst": 2}) as door:
        caller = Credentials(f"Bearer {door.token('ann', Role.OPERATOR)}", "127.0.0.1")
        for _ in range(2):
            door.authenticator.admit(caller)
        with pytest.raises(Overloaded):
            door.authenticator.admit(caller)
        assert door.authenticator.admit(caller, brake=True).name == "ann"


def test_roles_count_on_loopback_too(tmp_path: Path) -> None:
    tls = {"cert": tmp_path / "c", "key": tmp_path / "k", "client_ca": tmp_path / "a"}
    for how in ({"roles": {"ann": "operator"}}, {"require_client_cert": True}):
        listen = {"tls": {**tls, **how}}
        doors = Authenticator(Config.model_validate({"home": tmp_path, "listen": listen}), SystemClock())
        with pytest.raises(Unauthenticated, match=r"listen\.tls\.roles"):
            doors.admit(Credentials("", "127.0.0.1"))
        with pytest.raises(PermissionDenied, match="no role"):
            doors.admit(Credentials("", "127.0.0.1", ("stranger",)))
        with pytest.raises(Unauthenticated):
            doors.admit_override(Credentials("", "127.0.0.1"), True)
        assert not doors.open
        if "roles" in how:
            assert doors.admit(Credentials("", "127.0.0.1", ("ann",))).role is Role.OPERATOR
    doors = Authenticator(Config.model_validate({"home": tmp_path, "listen": {"tls": tls}}), SystemClock())
    assert doors.admit(Credentials("", "127.0.0.1")).role is Role.OPERATOR
    with pytest.raises(PermissionDenied, match="no role"):
        doors.admit(Credentials("", "127.0.0.1", ("stranger",)))


def test_a_token_that_is_not_known_is_refused_where_none_is_needed(door: Guarded) -> None:
    assert door.call("GET", "/metrics", "baton_00000000_wrong").status_code == 401
    assert door.call("GET", "/metrics", headers={"authorization": "Basic of-a-proxy"}).status_code == 200


def test_a_client_that_calls_too_often_is_told_when_to_come_again(tmp_path: Path) -> None:
    with guarded(tmp_path, limits={"admin": 0.5, "admin_burst": 3}) as door:
        ann, bob = door.token("ann", Role.VIEWER), door.token("bob", Role.VIEWER)
        answers = [door.call("GET", "/api/v1/endpoints", ann) for _ in range(4)]
        assert [a.status_code for a in answers] == [200, 200, 200, 429]
        assert answers[-1].headers["retry-after"] == "2"
        assert answers[-1].json()["error"]["kind"] == "Overloaded"
        assert door.call("GET", "/api/v1/endpoints", bob).status_code == 200


def test_connections_that_send_nothing_keep_nobody_out(tmp_path: Path) -> None:
    with guarded(tmp_path, limits={"connections": 5}) as door, contextlib.ExitStack() as idle:
        held = [idle.enter_context(socket.create_connection(("127.0.0.1", door.port), timeout=10)) for _ in range(40)]
        assert door.call("GET", "/metrics").status_code == 200
        assert held[0].recv(1) == b"", "the oldest has made room"
        held[-1].sendall(b"GET /metrics HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        assert held[-1].recv(12) == b"HTTP/1.1 200", "the newest stay"


def test_another_sites_page_asks_for_nothing_and_its_links_are_followed(door: Guarded) -> None:
    for site in ("cross-site", "same-site"):
        for mode, dest, code in (
            ("no-cors", "image", 403),
            ("cors", "empty", 403),
            ("navigate", "iframe", 403),
            ("navigate", "document", 200),
        ):
            headers = {"sec-fetch-site": site, "sec-fetch-mode": mode, "sec-fetch-dest": dest}
            for path in ("/", "/api/v1/endpoints", "/metrics"):
                assert door.call("GET", path, headers=headers).status_code == code, (path, headers)
            assert door.call("GET", "/healthz", headers=headers).status_code == 200
    assert door.call("GET", "/", headers={"sec-fetch-site": "same-origin"}).status_code == 200


def test_a_stranger_may_send_no_more_than_a_form(door: Guarded) -> None:
    door.token("ann", Role.VIEWER)
    assert door.call("POST", "/login", content=b"x" * MAX_FORM_BYTES).status_code == 200
    assert door.call("POST", "/login", content=b"x" * (MAX_FORM_BYTES + 1)).status_code == 413


def test_requests_of_a_session_count_for_its_token(tmp_path: Path) -> None:
    with guarded(tmp_path, limits={"admin": 0.01, "admin_burst": 3}) as door:
        ann = door.token("ann", Role.VIEWER)
        cookies = [door.sessions.begin(Credentials(f"Bearer {ann}")) for _ in range(2)]
        sent = [{"cookie": f"{door.sessions.cookie}={cookie}"} for cookie in cookies]
        codes = [door.call("GET", "/", headers=sent[number % 2]).status_code for number in range(5)]
        assert codes == [200, 200, 200, 429, 429]
        assert door.call("GET", "/_nicegui/x.js", headers=sent[0]).status_code == 200, (
            "scripts of a page are not counted"
        )
        assert door.call("GET", "/healthz", headers=sent[0]).status_code == 200


def test_a_byte_holds_no_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.http.port.HEAD_S", 0.3)
    with guarded(tmp_path) as door:
        whole = b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
        for sent in (b"", b"G", whole + b"G", b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\nx: "):
            with socket.create_connection(("127.0.0.1", door.port), timeout=10) as held:
                held.sendall(sent)
                with contextlib.suppress(ConnectionResetError):
                    while held.recv(4096):
                        pass


def test_every_answer_carries_the_headers(door: Guarded) -> None:
    page, api = door.call("GET", "/"), door.call("GET", "/api/v1/endpoints")
    door.token("ann", Role.VIEWER)
    for answer in (page, api, door.call("GET", "/"), door.call("POST", "/", headers={"origin": "null"})):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["cross-origin-opener-policy"] == "same-origin"
        assert "strict-transport-security" not in answer.headers
    for answer in (page, api, door.call("GET", "/_nicegui/nothing"), door.call("GET", "/no/such/page")):
        assert answer.headers["content-security-policy"].startswith("default-src 'none'"), "pages set their own"
    assert api.headers["cache-control"] == "no-store"
    assert json.dumps(dict(api.headers)).count("evil") == 0
