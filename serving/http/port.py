"""HTTP port: the application behind its guard, in a server with limits on size and time.

uvicorn does not pass the connection's certificate to the application. The protocols in this file add the names of a
verified client certificate (`extensions["baton.names"]`) and count themselves among the port's `connections`.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import sys
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from serving.config import ListenConfig
from serving.http.connections import Connections, Listener
from serving.http.verbs import is_brake
from serving.runtime.process import connections_within
from serving.security.authenticator import Authenticator
from serving.security.certificates import Certificates
from serving.security.session import Sessions
from serving.security.web import ADMITTED, Application, Receive, Scope, Send, WebGuard

__all__ = ["http_server"]

log = logging.getLogger(__name__)

HEADER_BYTES = 32 << 10
SOCKET_BYTES = 1 << 20
"""Most bytes of one message of a page's socket."""
HEAD_S = 20.0
"""Time in which a connection has sent the head of a request, its first one or the next."""
STALLED_S = 20.0
"""Time in which a client takes some of an answer."""
BACKLOG_CONNECTIONS = 128
"""Connections that the kernel keeps until they are accepted; so many may come before an ended one is closed."""
GRACE_S = 3
PORTS = 2
"""Ports of the control process that share its file descriptors: HTTP, and gRPC admin."""


class _Counted:
    """Part of a protocol: it counts itself among the port's connections, and knows since when the client reads nothing."""

    held: ClassVar[Connections]
    transport: Any
    loop: asyncio.AbstractEventLoop
    app: Any
    _admitted = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)  # type: ignore[misc]
        self._stalled_s = float("inf")
        self.app = _with_extensions(self.app, transport, self._admit)
        self.held.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.held.remove(self)
        super().connection_lost(exc)  # type: ignore[misc]

    def pause_writing(self) -> None:
        self._stalled_s = self.loop.time()
        super().pause_writing()  # type: ignore[misc]

    def resume_writing(self) -> None:
        self._stalled_s = float("inf")
        super().resume_writing()  # type: ignore[misc]

    @property
    def busy(self) -> bool:
        """See `Connection`."""
        return self._admitted

    @property
    def closing(self) -> bool:
        """See `Connection`."""
        return bool(self.transport.is_closing())

    def abort(self) -> None:
        """See `Connection`."""
        self.transport.abort()

    def overdue(self, now_s: float) -> bool:
        """See `Connection`."""
        return now_s - self._stalled_s > STALLED_S

    def _admit(self) -> None:
        self._admitted = True


class _Socket(_Counted, WebSocketsSansIOProtocol):
    """A page's socket. One that answers no pings is ended by uvicorn."""


class _Http(_Counted, H11Protocol):
    """A connection with requests. A slow body is ended by the guard."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._head_s = self.loop.time()  # since when the head of a request is awaited

    def handle_events(self) -> None:
        before = self.scope
        super().handle_events()
        if self.scope is not before:
            self.held.heard(self)

    def handle_websocket_upgrade(self, event: Any) -> None:
        self.held.remove(self)  # the socket's protocol counts itself
        super().handle_websocket_upgrade(event)

    def on_response_complete(self) -> None:
        self._head_s, self._admitted = self.loop.time(), False
        super().on_response_complete()

    @property
    def busy(self) -> bool:
        """See `Connection`."""
        return self._admitted and self._answering

    def overdue(self, now_s: float) -> bool:
        """See `Connection`."""
        return super().overdue(now_s) or (not self._answering and now_s - self._head_s > HEAD_S)

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete


class _Server(uvicorn.Server):
    """uvicorn's server with a listener of ours."""

    def __init__(self, config: uvicorn.Config, connections: Connections, context: ssl.SSLContext | None) -> None:
        super().__init__(config)
        self._connections, self._context = connections, context

    async def startup(self, sockets: Any = None) -> None:
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(STARTUP_FAILURE)
        config = self.config

        def make() -> asyncio.Protocol:
            protocol: Any = config.http_protocol_class
            made: asyncio.Protocol = protocol(
                config=config, server_state=self.server_state, app_state=self.lifespan.state
            )
            return made

        listener = Listener(self._connections, make, self._context)
        try:
            await listener.listen(str(config.host), config.port, config.backlog)
        except OSError as error:
            log.error("HTTP cannot listen on %s:%s: %s", config.host, config.port, error)
            await self.lifespan.shutdown()
            sys.exit(STARTUP_FAILURE)
        self.servers: list[Any] = [listener]
        self.started = True


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
    connections = Connections(connections_within(listen.limits.connections, PORTS))

    class Socket(_Socket):
        held = connections

    class Http(_Http):
        held = connections

    config = uvicorn.Config(
        WebGuard(app, authenticator, sessions, listen, is_brake),
        host=listen.host,
        port=listen.http_port if port is None else port,
        http=Http,
        ws=Socket,
        ws_max_size=SOCKET_BYTES,
        h11_max_incomplete_event_size=HEADER_BYTES,
        backlog=BACKLOG_CONNECTIONS,
        # A header must not name the caller's address; behind a proxy, the proxy's own limits count addresses.
        proxy_headers=False,
        server_header=False,
        log_config=None,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=GRACE_S,
    )
    return _Server(config, connections, None if certificates is None else certificates.ssl_context())


def _with_extensions(app: Any, transport: asyncio.BaseTransport, admit: Callable[[], None]) -> Any:
    """The application, which also gets the names in the connection's client certificate and says whom it has admitted."""
    connection = transport.get_extra_info("ssl_object")
    names = () if connection is None else _names(connection.getpeercert() or {})
    own = {ADMITTED: admit, **({"baton.names": names} if names else {})}

    async def extended(scope: Scope, receive: Receive, send: Send) -> None:
        scope["extensions"] = {**scope.get("extensions", {}), **own}
        await app(scope, receive, send)

    return extended


def _names(certificate: Mapping[str, Any]) -> tuple[str, ...]:
    """Common name first, then alternative names; as gRPC's own (`serving.security.interceptor`)."""
    common = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    return (*common, *(value for _, value in certificate.get("subjectAltName", ())))
