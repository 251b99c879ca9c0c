"""Address and credentials of a Redis, and connections to it."""

from __future__ import annotations

import socket
import ssl
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import redis
from redis.connection import parse_url

from pipeline.errors import InvalidInput, NotReady
from pipeline.redis.connections import PrimaryPool
from pipeline.redis.replies import CheckedRedis
from pipeline.redis.server import RedisServer

__all__ = ["RedisAddress", "Unusable"]

_MOST_BYTES = 1 << 20


class Unusable(NotReady):
    """Redis refused, closed the connection or sent an invalid reply."""


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """Address and credentials of a Redis.

    Args:
        url: `redis://HOST:PORT/DB`, `rediss://` for TLS, `unix:///PATH?db=DB`; without a password and other options, which
            could name another host or take checks away.
        username, password: of an ACL user, or a password alone.
        ca: file of certificates to trust; None: the machine's.

    Raises:
        InvalidInput: the URL is invalid, or holds credentials or options.
    """

    url: str
    username: str = ""
    password: str = field(default="", repr=False)
    ca: Path | None = None

    def __post_init__(self) -> None:
        parts = self._parts()
        if "password" in parts or "username" in parts:
            raise InvalidInput("the redis url must hold no user or password; name them apart from it", "url")
        if more := sorted(set(parse_qs(urlsplit(self.url).query, keep_blank_values=True)) - {"db"}):
            raise InvalidInput(f"redis url {self.url!r}: it has the option {more[0]!r}; only `db` is one", "url")

    @property
    def host(self) -> str:
        """Host that it names; empty: a Unix socket."""
        parts = self._parts()
        return "" if "path" in parts else str(parts.get("host") or "localhost")

    @property
    def tls(self) -> bool:
        """Whether connections to it are encrypted and its certificate is checked."""
        return self._parts().get("connection_class") is redis.SSLConnection

    def client(self, timeout: float) -> redis.Redis:
        """A redis-py client, each call of which ends after `timeout` seconds of silence; not for the request path.

        Its connections stay with the primary (`PrimaryPool`).
        """
        more: dict[str, Any] = {"ssl_ca_certs": str(self.ca)} if self.ca else {}
        pool = PrimaryPool.from_url(
            self.url,
            username=self.username or None,
            password=self.password or None,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            protocol=2,
            **more,
        )
        return CheckedRedis.from_pool(pool)

    def connect(self, timeout: float) -> socket.socket:
        """An authenticated connection to a primary, on which PING was answered, each step within `timeout` seconds.

        Raises:
            OSError: no server listens, or TLS fails. Unusable: the server refuses the connection, or is of another kind.
        """
        parts = self._parts()
        if "path" in parts:
            made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        else:
            host, port = parts.get("host", "localhost"), parts.get("port", 6379)
            made = socket.create_connection((host, port), timeout)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            made.settimeout(timeout)
            if "path" in parts:
                made.connect(parts["path"])
            elif parts.get("connection_class") is redis.SSLConnection:
                context = ssl.create_default_context(cafile=str(self.ca) if self.ca else None)
                made = context.wrap_socket(made, server_hostname=host)
            if self.password:
                _command(made, b"+OK\r\n", "AUTH", *([self.username] if self.username else []), self.password)
            if parts.get("db"):
                _command(made, b"+OK\r\n", "SELECT", str(parts["db"]))
            _command(made, b"+PONG\r\n", "PING")
            _inspect(made, self.url)
        except BaseException:
            made.close()
            raise
        return made

    def _parts(self) -> dict[str, Any]:
        try:
            parts: dict[str, Any] = parse_url(self.url)  # type: ignore[no-untyped-call]
        except ValueError as error:
            raise InvalidInput(f"redis url {self.url!r}: {error}", "url") from None
        return parts


def _command(made: socket.socket, wanted: bytes, *words: str) -> None:
    answer = _ask(made, *words)
    if answer != wanted:
        raise Unusable(f"redis answered {answer[:200]!r} to {words[0]}")


def _inspect(made: socket.socket, url: str) -> None:
    """Check that the server is of the right kind, and no replica."""
    info = _ask(made, "INFO")
    if info[:1] == b"-":
        return  # its user may not ask
    head, _, text = info.partition(b"\r\n")
    size = int(head[1:]) if info[:1] == b"$" and head[1:].isdigit() else 0
    until = _until(made)
    while len(text) < min(size, _MOST_BYTES) + 2:
        piece = made.recv(1 << 16)
        if not piece or time.monotonic() > until:
            raise Unusable("redis closed the connection at INFO, or sends it too slowly")
        text += piece
    try:
        RedisServer.parse(text).check(url)
    except redis.ConnectionError as error:
        raise Unusable(str(error)) from None


def _until(made: socket.socket) -> float:
    """When a step has taken twice as long as one read may."""
    return time.monotonic() + 2 * (made.gettimeout() or 0.0)


def _ask(made: socket.socket, *words: str) -> bytes:
    """Send a command; the answer up to the end of a line."""
    raw = [word.encode() for word in words]
    made.sendall(b"*%d\r\n" % len(raw) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in raw))
    answer, until = b"", _until(made)
    while not answer.endswith(b"\r\n"):
        piece = made.recv(1 << 16)
        if not piece or len(answer) > _MOST_BYTES or time.monotonic() > until:
            raise Unusable(f"redis closed the connection, or sent an invalid or slow reply, at {words[0]}")
        answer += piece
        if answer[:1] not in b"+-$":
            raise Unusable(f"what listens there is no Redis: it answered {answer[:100]!r} to {words[0]}")
    return answer
