"""Connections of the HTTP port, counted from their acceptance on, before TLS and before the first byte.

There are so many at once. A new one always gets in: the one that has been silent longest gives way, counted since its last
whole request, and never one with a request or socket of an admitted caller in progress. What hangs is ended in time: a
handshake, a head, an answer that nobody reads, a close that the other side does not follow.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

__all__ = ["Connection", "Connections", "Listener"]

log = logging.getLogger(__name__)

SPARE_CONNECTIONS = 16
"""Further ones while all are busy with requests of admitted callers."""
SWEEP_EVERY_S = 1.0
HANDSHAKE_S = 10.0
"""Time for the handshake of TLS."""
NO_DESCRIPTOR_S = 0.1
CLOSING_S = 5.0
"""Time for the end of a connection; later it is cut."""


class Connection(Protocol):
    """A connection as its bound sees it."""

    @property
    def busy(self) -> bool:
        """Whether a request or socket of an admitted caller is in progress."""

    @property
    def closing(self) -> bool:
        """Whether it is being closed."""

    def overdue(self, now_s: float) -> bool:
        """Whether it hangs, by the time of the event loop."""

    def abort(self) -> None:
        """End it without waiting for the other side."""


class Connections:
    """Bound of one port's connections. For one event loop.

    Args:
        most: at once.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._held: dict[Connection, float] = {}
        """The longest silent first, with the time since when they close, infinite while they do not."""
        self._sweeping: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._held)

    def add(self, connection: Connection) -> None:
        """Count a new connection; another one, or else this one, is ended if there are too many."""
        self._held[connection] = float("inf")
        if len(self._held) > self.most:
            self.make_room(connection)
        if self._sweeping is None:
            self._sweeping = asyncio.get_running_loop().call_later(SWEEP_EVERY_S, self._sweep)

    def heard(self, connection: Connection) -> None:
        """Note that a whole request came."""
        if connection in self._held:
            self._held[connection] = self._held.pop(connection)

    def remove(self, connection: Connection) -> None:
        """Forget a connection that has ended or is another object now."""
        self._held.pop(connection, None)

    def make_room(self, new: Connection | None = None) -> None:
        """End the connection that has been silent longest, or else `new`."""
        silent = next((held for held in self._held if held is not new and not held.busy), None)
        if silent is not None:
            self._end(silent)
        elif new is not None and len(self._held) > self.most + SPARE_CONNECTIONS:
            self._end(new)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        for held, since_s in list(self._held.items()):
            if held.closing:
                self._held[held] = min(since_s, now_s)
                if now_s - since_s > CLOSING_S:
                    self._end(held)
            elif held.overdue(now_s):
                self._end(held)
        self._sweeping = loop.call_later(SWEEP_EVERY_S, self._sweep) if self._held else None

    def _end(self, connection: Connection) -> None:
        self.remove(connection)
        connection.abort()


class Listener:
    """Listening sockets of a port. In place of the event loop's own server, which tells of a connection with TLS after its
    handshake only.

    Args:
        make: protocol of a connection; it counts itself among `connections`.
        context: of TLS; None: none.
    """

    def __init__(
        self, connections: Connections, make: Callable[[], asyncio.Protocol], context: ssl.SSLContext | None
    ) -> None:
        self._connections, self._make, self._context = connections, make, context
        self.sockets: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._opening: set[asyncio.Task[None]] = set()

    async def listen(self, host: str, port: int, backlog: int) -> None:
        """Listen on all addresses of a host. Raises: OSError."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        try:
            for family, kind, number, _, address in dict.fromkeys(found):
                made = socket.socket(family, kind, number)
                self.sockets.append(made)
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                made.bind(address)
                made.listen(backlog)
                made.setblocking(False)
        except OSError:
            for made in self.sockets:
                made.close()
            raise
        self._accepting = [loop.create_task(self._accept(made), name="http-accept") for made in self.sockets]

    def close(self) -> None:
        """Accept no more. Connections go on."""
        for task in self._accepting:
            task.cancel()

    async def wait_closed(self) -> None:
        """Wait until the sockets are closed."""
        await asyncio.gather(*self._accepting, *self._opening, return_exceptions=True)
        for made in self.sockets:
            made.close()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(listening)
            except OSError as error:  # no descriptor is left, or the other side went away
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    log.warning("a connection cannot be accepted: %s", error.strerror)
                    self._connections.make_room()
                    await asyncio.sleep(NO_DESCRIPTOR_S)
                continue
            task = loop.create_task(self._open(accepted), name="http-open")
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)
            await asyncio.sleep(0)  # those that gave way are closed before the next comes

    async def _open(self, accepted: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        # Whatever a stranger sends, or that it goes away, is no fault of ours.
        with suppress(OSError, EOFError):
            with suppress(OSError):
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._context is None:
                await loop.connect_accepted_socket(self._make, accepted)
                return
            handshake = _Handshake(accepted)
            self._connections.add(handshake)
            try:
                await loop.connect_accepted_socket(
                    self._make,
                    accepted,
                    ssl=self._context,
                    ssl_handshake_timeout=HANDSHAKE_S,
                    ssl_shutdown_timeout=CLOSING_S,
                )
            finally:
                self._connections.remove(handshake)


class _Handshake:
    """Connection during the handshake of TLS, which has a time limit of its own."""

    busy = closing = False

    def __init__(self, accepted: socket.socket) -> None:
        self._accepted = accepted

    def overdue(self, now_s: float) -> bool:
        """See `Connection`."""
        return False

    def abort(self) -> None:
        """See `Connection`. The handshake finds that its connection has ended, and closes it."""
        with suppress(OSError):
            self._accepted.shutdown(socket.SHUT_RDWR)
