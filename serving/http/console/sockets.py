"""Guard of the pages' sockets: what a socket may send, and for which page.

NiceGUI accepts an event for a page from any socket that names the page. The name is a secret of 122 random bits, so this
is a second protection: a user who learned the name of an operator's page must not press its buttons from another session.

Below the pages, Socket.IO keeps parts of binary messages without a bound and logs a stack trace for each message that it
cannot read. A page sends neither, so a socket ends with the first message that no page would send.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from http.cookies import CookieError, SimpleCookie
from inspect import isawaitable
from typing import Any
from urllib.parse import parse_qs

from nicegui import core
from socketio.exceptions import ConnectionRefusedError
from starlette.types import Message, Receive

from pipeline.clock import Clock
from serving.runtime.visible import visible
from serving.security.limits import ClientLimit

__all__ = ["end_sockets", "guard_sockets", "of_a_page"]

Handler = Callable[..., Any]

EVENTS = ("event", "javascript_response", "ack", "log")
"""Events of a page after its handshake."""
MAX_VIEWER_BYTES = 16 << 10
"""Most bytes of a message of a page without a form; the port bounds the others (`serving.http.port`)."""
LOG_LETTERS = 500
ENTRIES_PER_S = 0.1
BURST_ENTRIES = 10
"""Lines in the log that pages cause, all of them together."""
_PACKET = re.compile(r"(?:[136]|40(\{.*)?|41|42[0-9]{0,9}(\[.*)|43[0-9]{0,9}(\[.*))", re.DOTALL)
"""Packets of Engine.IO and Socket.IO: close, pong, noop; connect, disconnect, event and acknowledgement of `/`."""

log = logging.getLogger(__name__)


def of_a_page(receive: Receive, *, operator: bool) -> Receive:
    """`receive` of a socket that ends it with the first message that no page of ours sends."""

    async def checked() -> Message:
        message = await receive()
        if message["type"] != "websocket.receive" or _by_page(message, None if operator else MAX_VIEWER_BYTES):
            return message
        return {"type": "websocket.disconnect", "code": 1008}

    return checked


def _by_page(message: Message, most: int | None) -> bool:
    text = message.get("text")
    if text is None or (most is not None and len(text) > most):
        return False
    found = _PACKET.fullmatch(text)
    if found is None:
        return False
    if found.lastindex is None:
        return True
    try:
        content = json.loads(found[found.lastindex])
    except (ValueError, RecursionError):
        return False
    if text.startswith("42"):
        return (
            len(content) == 2
            and isinstance(content[0], str)
            and content[0] in ("handshake", *EVENTS)
            and isinstance(content[1], dict)
        )
    return True


def guard_sockets(cookie: str, owner: Callable[[str], str | None], clock: Clock) -> None:
    """Install the guard.

    Args:
        cookie: name of the session's cookie.
        owner: session of a page, by the page's name; None: there is no such page.
        clock: for limits.
    """
    handlers: dict[str, Handler] = core.sio.handlers["/"]
    limit = ClientLimit(ENTRIES_PER_S, BURST_ENTRIES, clock)

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
        try:
            return await _done(handshake(sid, data))
        except (TypeError, ValueError, LookupError):
            return False

    async def logged(sid: str, message: Mapping[str, Any]) -> None:
        if limit.take("") == 0:
            log.warning("a page's script says: %s", visible(str(message.get("message")), LOG_LETTERS))

    core.sio.on("connect", connected)
    core.sio.on("handshake", shaken)
    for name in EVENTS:
        core.sio.on(name, _own_only(logged if name == "log" else handlers[name], limit))


async def end_sockets(page: str) -> None:
    """Close the sockets of a page, by the page's name."""
    for sid, _ in list(core.sio.manager.get_participants("/", page)):
        await core.sio.disconnect(sid)


def _own_only(handler: Handler, logs: ClientLimit) -> Handler:
    async def checked(sid: str, message: Any) -> Any:
        # The handshake put the socket into a room of the page's name.
        if not isinstance(message, dict) or message.get("client_id") not in core.sio.rooms(sid):
            return None
        try:
            return await _done(handler(sid, message))
        except Exception as error:  # what elements do with an event is reported by NiceGUI; this is the message itself
            if logs.take("") == 0:
                log.warning("a page's message cannot be used: %s", visible(repr(error), LOG_LETTERS))
            return None

    return checked


async def _done(result: Any | Awaitable[Any]) -> Any:
    return await result if isawaitable(result) else result
