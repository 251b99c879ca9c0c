"""Guard of the HTTP port, around the whole application: authentication, origin of the page, size and rate of requests.

All paths except `OPEN` need a principal: a token, a client certificate with a role, or a browser's session; a browser
without one is sent to the login page. A request from another site's page is refused by its Host or Origin, and a
session's changing requests need the session's CSRF value too. Handlers get the principal from `Admitted`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import math
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import quote, urlsplit

from pipeline.clock import Clock, SystemClock
from pipeline.errors import BatonError, NotReady, Overloaded, PermissionDenied, Unauthenticated
from serving.config import ListenConfig
from serving.config.principal import Principal
from serving.security.admitted import admitted
from serving.security.authenticator import Authenticator, Credentials
from serving.security.headers import response_headers
from serving.security.in_progress import InProgress
from serving.security.limits import ClientLimit, client_of_address
from serving.security.session import CSRF_HEADER, Session, Sessions
from serving.security.tokens import LOCAL

__all__ = ["ADMITTED", "LOGIN", "OPEN", "WebGuard"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

ADMITTED = "baton.admitted"
"""Extension of a scope: a function that is called once the caller is admitted."""
LOGIN = "/login"
OPEN = ("/healthz", "/readyz", LOGIN, "/_nicegui/")
"""Paths without authentication; a name that ends in / allows reading everything below it (the console's scripts, styles)."""
PROBES = ("/healthz", "/readyz")
"""Paths that are answered whatever else goes on."""
SAFE = ("GET", "HEAD", "OPTIONS")
MAX_BODY_BYTES = 2 << 20
"""Most bytes of a request; the largest is a rollout file."""
MAX_FORM_BYTES = 16 << 10
"""Most bytes of a request of a stranger; the largest is the sign-in form."""
BODY_S = 30.0
"""Time for the whole body of a request."""
MAX_CLIENT_REQUESTS = 64
"""Requests of one client at once, those that stop a candidate left out. Streams have a limit of their own."""
WATCH = "/watch"
MAX_SOCKETS = 128
MAX_CLIENT_SOCKETS = 32
MESSAGES_PER_S = 50.0
"""Messages of one socket."""
BURST_MESSAGES = 500


class WebGuard:
    """ASGI middleware that admits or refuses each request.

    Args:
        app: gets the admitted requests.
        sessions: of browsers.
        brakes: whether a method and path are of a verb that stops a candidate; such requests have a limit of their own.
        open_paths: see `OPEN`.
    """

    def __init__(
        self,
        app: Application,
        authenticator: Authenticator,
        sessions: Sessions,
        listen: ListenConfig,
        brakes: Callable[[str, str], bool] = lambda method, path: False,
        open_paths: Collection[str] = OPEN,
    ) -> None:
        self._app = app
        self._authenticator = authenticator
        self._sessions = sessions
        self._listen = listen
        self._open = (*open_paths, "/metrics") if listen.open_metrics else tuple(open_paths)
        self._hosts = frozenset(name.lower() for name in listen.allowed_hosts)
        self._brakes = brakes
        self._clock: Clock = SystemClock()
        self._requests = InProgress("requests", listen.limits.connections, MAX_CLIENT_REQUESTS)
        self._sockets = InProgress("sockets", MAX_SOCKETS, MAX_CLIENT_SOCKETS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))
        # Browsers would keep it for every port of a loopback name, so it is not sent there.
        only_tls = scope["scheme"] in ("https", "wss") and not self._listen.loopback
        answer = _Answer(scope, send, response_headers(scope["path"], only_tls=only_tls))
        brake = scope["type"] == "http" and self._brakes(scope["method"], scope["path"])
        with contextlib.ExitStack() as held:
            try:
                self._same_site(scope, headers)
                principal = await self._admit(scope, headers, brake=brake)
                if scope["type"] == "websocket":
                    held.enter_context(self._sockets.one(_client_of(scope, principal)))
                    receive = self._paced(receive)
                else:
                    # Not those of strangers: by their limit one would keep others out who share the address.
                    if principal is not None and not brake and not scope["path"].endswith(WATCH):
                        held.enter_context(self._requests.one(_client_of(scope, principal)))
                    receive = _limited(
                        headers, receive, answer, MAX_FORM_BYTES if principal is None else MAX_BODY_BYTES
                    )
            except BatonError as error:
                await self._refuse(scope, headers, answer, error)
                return
            except _TooLarge as error:
                await answer.refuse(413, "InvalidInput", str(error))
                return
            if principal is not None:
                scope.get("extensions", {}).get(ADMITTED, _nothing)()
                answer.ended = lambda: self._ended(scope, headers)
            token = admitted.set(principal)
            try:
                await self._app(scope, receive, answer.send)
            except _Ended:
                pass
            except _TooLarge as error:
                if not answer.started:
                    await answer.refuse(413, "InvalidInput", str(error))
            finally:
                admitted.reset(token)

    def _same_site(self, scope: Scope, headers: dict[str, list[str]]) -> None:
        """Refuse requests from pages of other sites.

        A foreign name that resolves to this server (DNS rebinding) is visible in Host. A plain address cannot be rebound,
        so off loopback every address is accepted. Browsers send the page's site in Origin, with every changing request
        and every socket.
        """
        host = headers.get("host", [])
        if len(host) != 1 or not self._host(host[0]):
            raise PermissionDenied("Host names another site; listen.allowed_hosts lets more names in")
        for origin in headers.get("origin", []):
            parts = _split(origin)
            if parts is None or not (parts[1].lower() == host[0].lower() or parts[0] in self._hosts):
                raise PermissionDenied("only pages of this server may ask; Origin is another site")
        foreign = any(site in ("cross-site", "same-site") for site in headers.get("sec-fetch-site", []))
        if foreign and scope["path"] not in PROBES and not _followed_link(scope, headers):
            raise PermissionDenied("only pages of this server may ask; Sec-Fetch-Site is another site")

    def _host(self, netloc: str) -> bool:
        parts = _split(f"//{netloc}")
        if parts is None:
            return False
        name = parts[0]
        if name == "localhost" or name in self._hosts:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or not self._listen.loopback

    async def _admit(self, scope: Scope, headers: dict[str, list[str]], *, brake: bool) -> Principal | None:
        caller, cookie = _credentials(scope, headers), _cookie(headers, self._sessions.cookie)
        if cookie and not caller.authorization and not self._authenticator.open:
            session = await self._session(cookie, needed=not (caller.certificate or self._is_open(scope)))
            if session is not None:
                if scope["path"] != LOGIN:  # it begins another session, so there is none to forge a request in
                    self._not_forged(scope, headers, session.csrf)
                if not self._is_open(scope):
                    self._authenticator.count_session(session.token, session.principal.name, brake=brake)
                return session.principal
        return None if self._is_open(scope) else self._authenticator.admit(caller, brake=brake)

    async def _session(self, cookie: str, *, needed: bool) -> Session | None:
        """Session of a cookie. Where their store does not answer: NotReady if one is `needed`, else none."""
        try:
            await self._sessions.look([cookie])
            return self._sessions.find(cookie)
        except NotReady:
            if needed:
                raise
            return None

    async def _ended(self, scope: Scope, headers: dict[str, list[str]]) -> bool:
        """Whether who asked has no access any more: signed out, revoked, expired. A stream outlives its admission otherwise."""
        if self._authenticator.open:
            return False
        caller, cookie = _credentials(scope, headers), _cookie(headers, self._sessions.cookie)
        try:
            if cookie and not caller.authorization and await self._session(cookie, needed=not caller.certificate):
                return False
            return self._authenticator.identify(caller) is None
        except BatonError:
            return True

    def _is_open(self, scope: Scope) -> bool:
        path, reads = scope["path"], scope["type"] == "http" and scope["method"] in SAFE
        return any(reads and path.startswith(name) if name.endswith("/") else path == name for name in self._open)

    def _not_forged(self, scope: Scope, headers: dict[str, list[str]], csrf: str) -> None:
        if scope["type"] == "http" and scope["method"] not in SAFE and headers.get(CSRF_HEADER) != [csrf]:
            raise PermissionDenied(f"{CSRF_HEADER} is missing or is not this session's")

    def _paced(self, receive: Receive) -> Receive:
        """`receive` of a socket, with a limit on the messages of one."""
        limit = ClientLimit(MESSAGES_PER_S, BURST_MESSAGES, self._clock)

        async def paced() -> Message:
            message = await receive()
            # Waiting holds the client back: while nobody receives, nothing more is read from its connection.
            while message["type"] == "websocket.receive" and (seconds := limit.take("")) > 0:
                await asyncio.sleep(seconds)
            return message

        return paced

    async def _refuse(self, scope: Scope, headers: dict[str, list[str]], answer: _Answer, error: BatonError) -> None:
        if isinstance(error, Unauthenticated):
            page = scope["type"] == "http" and scope["method"] == "GET" and not scope["path"].startswith("/api/")
            if page and "text/html" in ",".join(headers.get("accept", [])):
                back = "/" + scope["path"].lstrip("/\\")  # two slashes would be another site's name
                await answer.redirect(f"{LOGIN}?next={quote(back)}")
                return
            await answer.refuse(401, "Unauthenticated", str(error), ("www-authenticate", 'Bearer realm="baton"'))
        elif isinstance(error, Overloaded):
            seconds = str(math.ceil(error.retry_after))
            await answer.refuse(429, "Overloaded", str(error), ("retry-after", seconds))
        elif isinstance(error, NotReady):
            await answer.refuse(503, "NotReady", str(error))
        else:
            await answer.refuse(403, "PermissionDenied", str(error))


class _TooLarge(Exception):
    """A body goes on after the most bytes that it may have."""

    def __init__(self, most: int) -> None:
        super().__init__(f"a request has {most} bytes at most")
        self.most = most


class _Ended(Exception):
    """Who asked lost access while the answer was sent."""


class _Answer:
    """Response: the application's answer with the security headers, or a refusal."""

    def __init__(self, scope: Scope, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        self._websocket = scope["type"] == "websocket"
        self._send = send
        self._headers = headers
        self.too_large: _TooLarge | None = None
        self.started = False
        self.ended: Callable[[], Awaitable[bool]] | None = None
        """Asked before each part of a stream; None: nothing ends it."""

    async def send(self, message: Message) -> None:
        """Send a message of the application."""
        if message["type"] in ("http.response.start", "websocket.accept"):
            if self.too_large is not None:
                raise self.too_large  # whatever the application answers to the cut-off input, this was the cause
            self.started = True
            given = {name.lower() for name, _ in message.get("headers", ())}
            extra = [(name, value) for name, value in self._headers if name not in given]
            message = {**message, "headers": [*message.get("headers", ()), *extra]}
            if b"content-length" in given:
                self.ended = None  # it has an end, and must come to it
        if message["type"] == "http.response.body" and message.get("more_body") and self.ended and await self.ended():
            await self._send({"type": "http.response.body", "body": b""})
            raise _Ended
        await self._send(message)

    async def refuse(self, code: int, kind: str, message: str, *headers: tuple[str, str]) -> None:
        """Send an error in the form of the REST API."""
        if self._websocket:
            await self._send({"type": "websocket.close", "code": 1008, "reason": message[:120]})
            return
        body = json.dumps({"error": {"kind": kind, "message": message, "field": "", "request_id": ""}}).encode()
        await self._end(code, body, ("content-type", "application/json"), *headers)

    async def redirect(self, where: str) -> None:
        """Redirect to a page of this server."""
        await self._end(303, b"", ("location", where))

    async def _end(self, code: int, body: bytes, *headers: tuple[str, str]) -> None:
        own = [(name.encode(), value.encode()) for name, value in (*headers, ("content-length", str(len(body))))]
        await self._send({"type": "http.response.start", "status": code, "headers": [*own, *self._headers]})
        await self._send({"type": "http.response.body", "body": body})


def _credentials(scope: Scope, headers: dict[str, list[str]]) -> Credentials:
    """Credentials of a request beside its cookie."""
    client = scope.get("client")
    return Credentials(
        ", ".join(headers.get("authorization", [])),
        client[0] if client else "",
        scope.get("extensions", {}).get("baton.names", ()),
    )


def _limited(headers: dict[str, list[str]], receive: Receive, answer: _Answer, most: int) -> Receive:
    """`receive` with limits on the size, in bytes, and the time of the body.

    Raises:
        _TooLarge: the Content-Length is over the limit.
    """
    length = headers.get("content-length", ["0"])[0]
    if length.isdecimal() and int(length[:20]) > most:
        raise _TooLarge(most)
    left, whole = most, False
    until = asyncio.get_running_loop().time() + BODY_S

    async def limited() -> Message:
        nonlocal left, whole
        if whole:
            return await receive()  # waits until the client disconnects, without a limit
        try:
            async with asyncio.timeout_at(until):
                message = await receive()
        except TimeoutError:
            return {"type": "http.disconnect"}
        left -= len(message.get("body", b""))
        whole = not message.get("more_body", False)
        if left < 0:
            answer.too_large = _TooLarge(most)
            raise answer.too_large
        return message

    return limited


def _followed_link(scope: Scope, headers: dict[str, list[str]]) -> bool:
    """Whether a person followed a link of another site, as opposed to that site's page asking by itself, or in a frame."""
    return (
        scope["type"] == "http"
        and scope["method"] in SAFE
        and headers.get("sec-fetch-mode") == ["navigate"]
        and headers.get("sec-fetch-dest", ["document"]) == ["document"]
    )


def _nothing() -> None:
    pass


def _client_of(scope: Scope, principal: Principal | None) -> str:
    """Key of what is in progress: a name, or where nobody has one an address."""
    if principal is not None and principal is not LOCAL:
        return f"{principal.role} {principal.name}"
    return client_of_address(scope["client"][0]) if scope.get("client") else ""


def _split(url: str) -> tuple[str, str] | None:
    """Host in lower case and host:port of a URL; None: it has no host, or more parts than these."""
    try:
        parts = urlsplit(url)
        found = parts.hostname, parts.netloc
        _ = parts.port
    except ValueError:
        return None
    if not found[0] or "@" in found[1] or parts.path or parts.query or parts.fragment:
        return None
    return found[0], found[1]


def _cookie(headers: dict[str, list[str]], name: str) -> str:
    """Value of a cookie, empty when there is none."""
    try:
        found = SimpleCookie("; ".join(headers.get("cookie", []))).get(name)
    except CookieError:
        return ""
    return "" if found is None else found.value
