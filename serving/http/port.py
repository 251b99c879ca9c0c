"""HTTP port: the application behind its guard, in a server with limits on size and time.

uvicorn does not pass the connection's certificate to the application. The protocols in this file add the names of a
verified client certificate (`extensions["baton.names"]`) and end connections without a request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, ClassVar

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from serving.config import ListenConfig
from serving.runtime.process import connections_within
from serving.security.authenticator import Authenticator
from serving.security.certificates import Certificates
from serving.security.session import Sessions
from serving.security.web import Application, Receive, Scope, Send, WebGuard

__all__ = ["http_server"]

HEADER_BYTES = 32 << 10
SOCKET_BYTES = 1 << 20
"""Most bytes of one message of a page's socket."""
FIRST_REQUEST_S = 20.0
"""Seconds until a new connection has sent the head of its first request."""
GRACE_S = 3
PORTS = 2
"""Ports of the control process that share its file descriptors: HTTP, and gRPC admin."""


class _Socket(WebSocketsSansIOProtocol):
    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.app = _named(self.app, transport)


class _Http(H11Protocol):
    most: ClassVar[int]
    """Connections at once."""
    silent: ClassVar[dict[_Http, None]]
    """Connections without a request yet, the oldest first."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.silent[self] = None
        if len(self.connections) > self.most:
            self._make_room()
        self.app = _named(self.app, transport)
        self._silence = self.loop.call_later(FIRST_REQUEST_S, self._end_silence)

    def connection_lost(self, exc: Exception | None) -> None:
        self.silent.pop(self, None)
        self._silence.cancel()
        super().connection_lost(exc)

    def _make_room(self) -> None:
        # A connection that sends nothing needs no work and holds a descriptor: it must not keep an operator out.
        for held in list(self.silent):
            del self.silent[held]
            if held.scope is None:
                held._end()  # type: ignore[unreachable]  # it is None until the first request
                return
        self._end()

    def _end(self) -> None:
        self.connections.discard(self)  # now, not when the loop comes round: the next request counts them
        self.transport.abort()

    def _end_silence(self) -> None:
        if self.scope is None:
            self.transport.close()  # type: ignore[unreachable]  # as above


def http_server(
    app: Application,
    authenticator: Authenticator,
    sessions: Sessions,
    listen: ListenConfig,
    certificates: Certificates | None = None,
    *,
    port: int | None = None,
) -> uvicorn.Server:
    """Server of the application, not started. `port`: instead of the configured one."""

    class Http(_Http):
        most = connections_within(listen.limits.connections, PORTS)
        silent: ClassVar[dict[_Http, None]] = {}

    config = uvicorn.Config(
        WebGuard(app, authenticator, sessions, listen),
        host=listen.host,
        port=listen.http_port if port is None else port,
        http=Http,
        ws=_Socket,
        ws_max_size=SOCKET_BYTES,
        h11_max_incomplete_event_size=HEADER_BYTES,
        limit_concurrency=Http.most + 1,
        # A header must not name the caller's address; behind a proxy, the proxy's own limits count addresses.
        proxy_headers=False,
        server_header=False,
        ssl_context_factory=None if certificates is None else lambda *_: certificates.ssl_context(),
        log_config=None,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=GRACE_S,
    )
    return uvicorn.Server(config)


def _named(app: Any, transport: asyncio.BaseTransport) -> Any:
    """The application with the names in the connection's client certificate, if there is one."""
    connection = transport.get_extra_info("ssl_object")
    names = () if connection is None else _names(connection.getpeercert() or {})
    if not names:
        return app

    async def named(scope: Scope, receive: Receive, send: Send) -> None:
        scope["extensions"] = {**scope.get("extensions", {}), "baton.names": names}
        await app(scope, receive, send)

    return named


def _names(certificate: Mapping[str, Any]) -> tuple[str, ...]:
    """Common name first, then alternative names; as gRPC's own (`serving.security.interceptor`)."""
    common = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    return (*common, *(value for _, value in certificate.get("subjectAltName", ())))
