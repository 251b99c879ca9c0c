"""Guard of the pages' sockets: a page accepts events only from a socket of the session that it was made for.

NiceGUI accepts an event for a page from any socket that names the page. The name is a secret of 122 random bits, so this
is a second protection: a user who learned the name of an operator's page must not press its buttons from another session.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from http.cookies import CookieError, SimpleCookie
from inspect import isawaitable
from typing import Any
from urllib.parse import parse_qs

from nicegui import core
from socketio.exceptions import ConnectionRefusedError

__all__ = ["end_sockets", "guard_sockets"]

Handler = Callable[..., Any]


def guard_sockets(cookie: str, owner: Callable[[str], str | None]) -> None:
    """Install the guard.

    Args:
        cookie: name of the session's cookie.
        owner: session of a page, by the page's name; None: there is no such page.
    """
    handlers: dict[str, Handler] = core.sio.handlers["/"]

    def shown(environ: Mapping[str, Any]) -> str:
        try:
            found = SimpleCookie(environ.get("HTTP_COOKIE", "")).get(cookie)
        except CookieError:
            return ""
        return found.value if found is not None else ""

    def others(page: str, environ: Mapping[str, Any]) -> bool:
        whose = owner(page)
        return whose is not None and whose != shown(environ)

    connect, handshake = handlers["connect"], handlers["handshake"]

    async def connected(sid: str, environ: Mapping[str, Any], auth: object = None) -> Any:
        page = parse_qs(environ.get("QUERY_STRING", "")).get("client_id", [""])[0]
        if others(page, environ):
            raise ConnectionRefusedError("Implicit handshake failed")  # the browser then loads the page again
        return await _done(connect(sid, environ, auth))

    async def shaken(sid: str, data: Mapping[str, Any]) -> Any:
        if others(str(data.get("client_id")), core.sio.get_environ(sid) or {}):
            return False
        return await _done(handshake(sid, data))

    core.sio.on("connect", connected)
    core.sio.on("handshake", shaken)
    for name in ("event", "javascript_response", "ack", "log"):
        core.sio.on(name, _own_only(handlers[name]))


async def end_sockets(page: str) -> None:
    """Close the sockets of a page, by the page's name."""
    for sid, _ in list(core.sio.manager.get_participants("/", page)):
        await core.sio.disconnect(sid)


def _own_only(handler: Handler) -> Handler:
    async def checked(sid: str, message: Any) -> Any:
        # The handshake put the socket into a room of the page's name.
        if isinstance(message, dict) and message.get("client_id") in core.sio.rooms(sid):
            return await _done(handler(sid, message))
        return None

    return checked


async def _done(result: Any | Awaitable[Any]) -> Any:
    return await result if isawaitable(result) else result
