"""Connections of redis-py that leave a server which is no longer the right one.

After a fail-over the old primary keeps its connections and becomes a replica: it answers reads and refuses writes, for
ever. So each connection is held against the kind of its server (`server`) when it is made, and asked again from time to
time before it is used; and a refusal that means "another server" (READONLY, MOVED, CLUSTERDOWN, MASTERDOWN, LOADING)
closes all connections of the pool. What was refused so was not carried out, and is sent once more on a new connection, for
which the name is looked up anew. `RedisAddress.client` makes the pools.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.connection import ConnectionInterface, UnixDomainSocketConnection
from redis.exceptions import AskError, BusyLoadingError, ClusterDownError, InvalidResponse, TryAgainError
from redis.retry import Retry

from pipeline.errors import NotReady
from pipeline.redis.foreign import ODD, cause_of
from pipeline.redis.server import ReadOnlyServer, RedisServer, WrongServer

__all__ = ["PrimaryPool", "asking"]

ASK_EVERY_S = 1.0
"""Seconds after which a connection is asked again, before it is used, whether its server may be written to."""
MOST_REPLY_BYTES = 256 << 20
"""Most bytes of one reply; those to Baton's own reads have a few MiB."""
REPLY_TIMEOUTS_COUNT = 4
"""Timeouts of the client from the first to the last byte of one reply; each single read has one."""
_ELSEWHERE = (redis.ReadOnlyError, AskError, ClusterDownError, TryAgainError, BusyLoadingError, ReadOnlyServer)


@contextmanager
def asking(what: str) -> Iterator[None]:
    """Raise NotReady for a Redis that cannot be reached or refuses. `what`: its name in the message."""
    try:
        yield
    except redis.RedisError as error:
        raise NotReady(f"{what}: {error}") from error


class _Bounded:
    """Socket that reads no more than `MOST_REPLY_BYTES` and for no longer than `seconds` for one reply."""

    def __init__(self, made: Any, seconds: float) -> None:
        self._made, self._seconds = made, seconds
        self.begin()

    def begin(self) -> None:
        """Begin to count for another reply."""
        self._left_bytes = MOST_REPLY_BYTES
        self._until: float | None = None

    def recv(self, *args: Any) -> bytes:
        data: bytes = self._made.recv(*args)
        self._count(len(data))
        return data

    def recv_into(self, *args: Any) -> int:
        size: int = self._made.recv_into(*args)
        self._count(size)
        return size

    def _count(self, size: int) -> None:
        self._left_bytes -= size
        if self._until is None:
            self._until = time.monotonic() + self._seconds
        elif time.monotonic() > self._until:
            raise redis.TimeoutError(f"a reply is not whole after {self._seconds:g} s")
        if self._left_bytes < 0:
            raise redis.ConnectionError(f"a reply has more than {MOST_REPLY_BYTES >> 20} MiB, which is none to Baton")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._made, name)


class _Watching:
    """Part of a connection: what its server is, and whether it refused something because another one is right."""

    asked = 0.0  # monotonic seconds of the last look at its server
    elsewhere = False
    bounded: _Bounded | None = None

    def _connect(self) -> Any:
        seconds = REPLY_TIMEOUTS_COUNT * self.socket_timeout  # type: ignore[attr-defined]
        self.bounded = _Bounded(super()._connect(), seconds)  # type: ignore[misc]
        return self.bounded

    def read_response(self, *args: Any, **options: Any) -> Any:
        if self.bounded is not None:
            self.bounded.begin()
        try:
            return super().read_response(*args, **options)  # type: ignore[misc]
        except _ELSEWHERE:
            self.elsewhere = True
            raise
        except redis.ResponseError as error:
            # An older Redis wraps what a script was refused; UNBLOCKED is told to who waited while the role changed.
            if "-READONLY " in str(error) or str(error).startswith("UNBLOCKED"):
                self.elsewhere = True
                raise redis.ReadOnlyError(str(error)) from error
            raise
        except ODD as error:  # of a parser that meets no Redis
            self.disconnect()  # type: ignore[attr-defined]
            raise InvalidResponse(f"a reply is none ({cause_of(error)})") from error


class _Tcp(_Watching, redis.Connection):
    pass


class _Tls(_Watching, redis.SSLConnection):
    pass


class _Unix(_Watching, UnixDomainSocketConnection):
    pass


_CLASSES: dict[Any, Any] = {redis.Connection: _Tcp, redis.SSLConnection: _Tls, UnixDomainSocketConnection: _Unix}


class PrimaryPool(redis.ConnectionPool):
    """Pool of connections to the primary behind an address. Errors are those of redis-py, `WrongServer` and
    `ReadOnlyServer` among them."""

    def __init__(self, connection_class: Any = redis.Connection, **options: Any) -> None:
        super().__init__(
            connection_class=_CLASSES[connection_class],
            redis_connect_func=_greet,
            retry=Retry(
                NoBackoff(), 1, supported_errors=_ELSEWHERE
            ),  # of other failures callers retry in their own way
            **options,
        )

    def get_connection(self, *args: Any, **options: Any) -> Any:
        connection: Any = super().get_connection(*args, **options)
        if time.monotonic() - connection.asked <= ASK_EVERY_S:
            return connection
        try:
            _ask(connection, "replication")
        except redis.RedisError as error:
            self._leave(connection)
            if isinstance(error, redis.TimeoutError):  # it would not answer a new connection either
                self.release(connection)
                raise
            try:
                connection.connect()
            except BaseException:
                self.release(connection)
                raise
        return connection

    def release(self, connection: ConnectionInterface) -> None:
        if getattr(connection, "elsewhere", False):
            self._leave(connection)
        super().release(connection)  # type: ignore[arg-type]

    def _leave(self, connection: Any) -> None:
        """Close a connection and all that are idle. Those in use meet the same refusal."""
        connection.elsewhere = False
        connection.disconnect()
        self.disconnect(inuse_connections=False)


def _greet(connection: Any) -> None:
    """Log in, then look what the server is."""
    try:
        connection.on_connect()
        _ask(connection)
    except InvalidResponse as error:
        raise WrongServer(f"{_where(connection)} is no Redis: {error}") from error


def _ask(connection: Any, *section: str) -> None:
    connection.send_command("INFO", *section, check_health=False)
    try:
        info = connection.read_response(disable_decoding=True)
    except redis.ResponseError:
        pass  # its user may not ask; then refusals alone tell
    else:
        if not isinstance(info, bytes):
            raise WrongServer(f"{_where(connection)} is no Redis: it answered INFO with {type(info).__name__}")
        RedisServer.parse(info).check(_where(connection))
    connection.asked = time.monotonic()


def _where(connection: Any) -> str:
    return getattr(connection, "path", "") or f"{connection.host}:{connection.port}"
