"""Client of the REST admin API for the command line."""

from __future__ import annotations

import getpass
import json
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import httpx

from pipeline.errors import BatonError, InvalidInput, NotReady
from serving.runtime.loopback import is_loopback_host

if TYPE_CHECKING:
    from serving.client import Options

__all__ = ["CLEAR_TOKEN", "DEFAULT_SERVER", "AdminClient", "lane_options", "user"]

DEFAULT_SERVER = "http://127.0.0.1:8000"
CLEAR_TOKEN = "BATON_CLEAR_TOKEN"
"""Environment variable that lets a token go to another machine without TLS."""
PAGE_ENTRIES = 1000
BULK_TIMEOUT_S = 600.0
"""Longest silence of a server that makes an export or a backup."""
ALIVE_S = 4.0
"""Time in which a control process that does not hang has said that it lives."""
MAX_ANSWER_BYTES = 64 << 20
"""Most bytes of an answer; a page of entries has a few MiB."""


def user() -> str:
    """Name of the user that runs the command, for the audit; a container's user may have none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def lane_options(token: str) -> Options:
    """Options of a call to a lane: the token and TLS of the command line or the environment."""
    from serving.client import Options, Tls

    ca, cert, key = (Path(file) if file else None for file in _files())
    tls = Tls(ca, cert, key) if ca or cert else None
    return Options(token=token or None, tls=tls, clear_token=_clear())


def _files() -> tuple[str | None, str | None, str | None]:
    ca, cert, key = (os.environ.get(f"BATON_{name}") or None for name in ("CA", "CERT", "KEY"))
    return ca, cert, key


def _clear() -> bool:
    return os.environ.get(CLEAR_TOKEN, "").lower() in ("1", "true", "yes", "on")


def _check_token(token: str, server: httpx.URL) -> None:
    """Refuse to send a token, or a password in the URL, where others can read it on the way."""
    if token and server.userinfo:
        raise InvalidInput(
            f"the server's URL names a user before {server.host}; leave that out beside a token", "server"
        )
    if not token.isascii() or not token.isprintable():
        raise InvalidInput("the token has characters that no token has; look for a line end or a space in it", "token")
    if server.scheme != "https" and not is_loopback_host(server.host) and not _clear():
        raise InvalidInput(
            f"the token would go to {server.host} unencrypted: name the server with https://, or give --clear-token before "
            "the command where something else encrypts",
            "token",
        )


def _trust(server: str) -> ssl.SSLContext | bool:
    """TLS settings from `baton --ca --cert --key` or the environment: trusted roots and client certificate."""
    ca, cert, key = _files()
    if not server.startswith("https:") or not (ca or cert):
        return True
    if (cert is None) != (key is None):
        raise InvalidInput("a client certificate and its key go together: give both --cert and --key", "cert")
    try:
        context = ssl.create_default_context(cafile=ca)
        if cert is not None:
            context.load_cert_chain(cert, key)
    except OSError as error:
        files = ", ".join(file for file in (ca, cert, key) if file)
        raise InvalidInput(f"{files}: cannot be read, or is not PEM that fits together ({error})", "ca") from None
    return context


class AdminClient:
    """Client of `/api/v1` of one server; errors are exceptions with the server's own message.

    Args:
        server: its URL. token: bearer token. timeout: of a call, in seconds.
        actor: name for the audit of a server without tokens; empty: the user that runs the command.

    Raises:
        InvalidInput: the server is no URL, or the token would go to another machine unencrypted.
    """

    def __init__(
        self, server: str = DEFAULT_SERVER, *, token: str = "", actor: str = "", timeout: float = 10.0
    ) -> None:
        headers = {"x-baton-actor": actor or os.environ.get("BATON_ACTOR") or user()}
        if token:
            headers["authorization"] = f"Bearer {token}"
        self._server = server.rstrip("/")
        try:
            url = httpx.URL(self._server)
            if token or url.userinfo:
                _check_token(token, url)
            # Neither another address nor a proxy of the environment is given what is for this server.
            self._http = httpx.Client(
                base_url=self._server,
                headers=headers,
                timeout=timeout,
                trust_env=False,
                follow_redirects=False,
                verify=_trust(self._server),
            )
        except httpx.InvalidURL as error:
            raise InvalidInput(
                f"server {server!r} is not a URL ({error}); write http://HOST:PORT, an IPv6 address in brackets",
                "server",
            ) from None

    def get(self, path: str, **query: Any) -> Any:
        """GET /api/v1`path`."""
        return self._call("GET", path, params=_given(query))

    def list(self, path: str, name: str, *, most: int | None = None, **query: Any) -> list[Any]:
        """All entries of a list, page by page. `name`: field that holds them; `most`: limit of their number."""
        found: list[Any] = []
        token = ""
        while True:
            size = PAGE_ENTRIES if most is None else min(PAGE_ENTRIES, most - len(found))
            page = self.get(path, **query, page_size=size, page_token=token or None)
            found += page[name]
            token = page["next_page_token"]
            if not token or (most is not None and len(found) >= most):
                return found

    def post(self, path: str, body: dict[str, Any], *, timeout: float | None = None) -> Any:
        """POST /api/v1`path`; fails when the answer takes longer than `timeout` seconds (10 by default)."""
        return self._call("POST", path, json=_given(body), **({} if timeout is None else {"timeout": timeout}))

    def put(self, path: str, body: dict[str, Any]) -> Any:
        """PUT /api/v1`path`."""
        return self._call("PUT", path, json=_given(body))

    def lines(self, path: str, **query: Any) -> Iterator[Any]:
        """The objects of a stream, as they arrive.

        Raises:
            NotReady: the server went away. BatonError: with the server's message.
        """
        try:
            with self._http.stream("GET", f"/api/v1{path}", params=_given(query), timeout=httpx.Timeout(10, read=None)) as answer:  # fmt: skip
                if not answer.is_success:
                    raise BatonError(_message(answer, self._whole(answer)))
                for line in answer.iter_lines():
                    entry = self._parsed(line)
                    if "error" in entry:
                        raise BatonError(str(entry["error"]["message"]))
                    yield entry
        except httpx.HTTPError as error:
            raise self._away(error) from None

    @contextmanager
    def download(self, path: str, body: dict[str, Any]) -> Iterator[IO[bytes]]:
        """The file that answers POST /api/v1`path`, as a stream to read from.

        Raises:
            NotReady: the server went away, or cut the file off. BatonError: with the server's message.
        """
        try:
            with self._http.stream("POST", f"/api/v1{path}", json=_given(body), timeout=BULK_TIMEOUT_S) as answer:
                if not answer.is_success:
                    raise BatonError(_message(answer, self._whole(answer)))
                yield cast("IO[bytes]", _Reader(answer.iter_bytes()))
        except httpx.ConnectError as error:
            raise self._away(error) from None
        except httpx.HTTPError as error:
            raise NotReady(f"{self._server} has cut the file off ({error}): its log says why; try again") from None

    def ready(self) -> bool:
        """Whether the server reports that it can answer traffic."""
        try:
            return self._http.get("/readyz").status_code == 200
        except httpx.HTTPError:
            return False

    def check_alive(self) -> None:
        """Whether the control process answers at all, which a hung one does not. Raises: NotReady: it does not."""
        try:
            self._http.get("/healthz", timeout=ALIVE_S)
        except httpx.HTTPError as error:
            raise self._away(error) from None

    def _call(self, method: str, path: str, **arguments: Any) -> Any:
        try:
            with self._http.stream(method, f"/api/v1{path}", **arguments) as response:
                body = self._whole(response)
        except httpx.HTTPError as error:
            raise self._away(error) from None
        if not response.is_success:
            # A part of the server that does not answer is another matter than a refusal.
            raise (NotReady if response.status_code == HTTPStatus.SERVICE_UNAVAILABLE else BatonError)(
                _message(response, body)
            )
        return self._parsed(body)

    def _parsed(self, text: str | bytes) -> dict[str, Any]:
        try:
            found = json.loads(text, object_hook=self._object)
        except (ValueError, RecursionError):
            raise self._stranger("is not JSON") from None
        if not isinstance(found, dict):
            raise self._stranger("is no object")
        return found

    def _whole(self, response: httpx.Response) -> bytes:
        body = bytearray()
        for part in response.iter_bytes():
            body += part
            if len(body) > MAX_ANSWER_BYTES:
                raise self._stranger(f"has more than {MAX_ANSWER_BYTES} bytes")
        return bytes(body)

    def _object(self, fields: dict[str, Any]) -> _Object:
        found = _Object(fields)
        found.server = self._server
        return found

    def _stranger(self, why: str) -> BatonError:
        return BatonError(f"what answers at {self._server} is no control process of this version: its answer {why}")

    def _away(self, error: httpx.HTTPError) -> NotReady:
        from serving.cli.unanswered import unanswered  # reads the claims of this machine, which no answer needs

        return NotReady(unanswered(self._server, error))


class _Reader:
    """A file's bytes as they come."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts, self._left = parts, b""

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, all that is left by default; empty at the end."""
        taken = bytearray()
        while size < 0 or len(taken) < size:
            if not self._left:
                self._left = next(self._parts, b"")
                if not self._left:
                    break
            end = len(self._left) if size < 0 else size - len(taken)
            taken += self._left[:end]
            self._left = self._left[end:]
        return bytes(taken)


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


class _Object(dict[str, Any]):
    """An object of an answer. One without a field that a command shows came from another version, or from a stranger."""

    server = ""

    def __missing__(self, name: str) -> Any:
        raise BatonError(
            f"what answers at {self.server} is no control process of this version: its answer has no {name!r}"
        )


def _message(response: httpx.Response, body: bytes) -> str:
    if response.is_redirect:
        return (
            f"{response.url.copy_with(path='/', query=None)} leads to {response.headers['location']}, which is not followed; "
            "name that server with --server if it is yours"
        )
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"{response.status_code} {response.reason_phrase}"
