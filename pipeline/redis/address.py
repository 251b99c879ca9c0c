"""Address and credentials of a Redis, and connections to it."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.retry import Retry

from pipeline.errors import InvalidInput, NotReady

__all__ = ["RedisAddress", "Unusable"]


class Unusable(NotReady):
    """Redis refused, closed the connection or sent an invalid reply."""


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """Address and credentials of a Redis.

    Args:
        url: `redis://HOST:PORT/DB`, `rediss://` for TLS, `unix:///PATH?db=DB`; without a password.
        username, password: of an ACL user, or a password alone.
        ca: file of certificates to trust; None: the machine's.

    Raises:
        InvalidInput: the URL is invalid or holds credentials.
    """

    url: str
    username: str = ""
    password: str = field(default="", repr=False)
    ca: Path | None = None

    def __post_init__(self) -> None:
        parts = self._parts()
        if "password" in parts or "username" in parts:
            raise InvalidInput("the redis url must hold no user or password; name them apart from it", "url")

    def client(self, timeout: float) -> redis.Redis:
        """A redis-py client, each call of which ends after `timeout` seconds of silence; not for the request path."""
        more: dict[str, Any] = {"ssl_ca_certs": str(self.ca)} if self.ca else {}
        return redis.Redis.from_url(
            self.url,
            username=self.username or None,
            password=self.password or None,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            protocol=2,
            retry=Retry(NoBackoff(), 0),  # callers retry in their own way
            **more,
        )

    def connect(self, timeout: float) -> socket.socket:
        """An authenticated connection on which PING was answered, each step within `timeout` seconds.

        Raises:
            OSError: no server listens, or TLS fails. Unusable: the server refuses the connection.
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
    raw = [word.encode() for word in words]
    made.sendall(b"*%d\r\n" % len(raw) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in raw))
    answer = b""
    while not answer.endswith(b"\r\n"):
        piece = made.recv(4096)
        if not piece or len(answer) > 4096:
            raise Unusable(f"redis closed the connection, or sent an invalid reply, at {words[0]}")
        answer += piece
    if answer != wanted:
        raise Unusable(f"redis answered {answer[:200]!r} to {words[0]}")
