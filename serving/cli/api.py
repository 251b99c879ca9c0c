"""The command line's way to a running server: the REST admin API of the control process."""

from __future__ import annotations

import getpass
import os
from typing import Any

import httpx

from pipeline.errors import BatonError, InvalidInput, NotReady

__all__ = ["DEFAULT_SERVER", "AdminClient", "user"]

DEFAULT_SERVER = "http://127.0.0.1:8000"


def user() -> str:
    """Who runs this, for the audit; a container's user may have no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


class AdminClient:
    """Calls `/api/v1` of one server; errors come back as exceptions with the server's own message."""

    def __init__(self, server: str = DEFAULT_SERVER, *, token: str = "", actor: str = "") -> None:
        headers = {"x-baton-actor": actor or os.environ.get("BATON_ACTOR") or user()}
        if token:
            headers["authorization"] = f"Bearer {token}"
        self._server = server.rstrip("/")
        try:
            self._http = httpx.Client(base_url=self._server, headers=headers, timeout=10.0, trust_env=False)
        except httpx.InvalidURL as error:
            raise InvalidInput(
                f"server {server!r} is not a URL ({error}); write http://HOST:PORT, an IPv6 address in brackets",
                "server",
            ) from None

    def get(self, path: str, **query: Any) -> Any:
        """GET /api/v1`path`."""
        return self._call("GET", path, params={k: v for k, v in query.items() if v is not None})

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """POST /api/v1`path`."""
        return self._call("POST", path, json=body)

    def put(self, path: str, body: dict[str, Any]) -> Any:
        """PUT /api/v1`path`."""
        return self._call("PUT", path, json=body)

    def ready(self) -> bool:
        """Whether the server says that it can answer traffic."""
        try:
            return self._http.get("/readyz").status_code == 200
        except httpx.HTTPError:
            return False

    def _call(self, method: str, path: str, **arguments: Any) -> Any:
        try:
            response = self._http.request(method, f"/api/v1{path}", **arguments)
        except httpx.HTTPError as error:
            raise NotReady(
                f"no control process answers at {self._server} ({error}); start one with `baton serve`, "
                "or name it with --server or BATON_SERVER"
            ) from None
        if response.is_error:
            try:
                message = response.json()["error"]["message"]
            except (ValueError, KeyError, TypeError):
                message = f"{response.status_code} {response.reason_phrase}"
            raise BatonError(message)
        return response.json()
