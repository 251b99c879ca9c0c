"""Gate before the pages: what reaches NiceGUI, how often, and how many pages there are.

NiceGUI keeps the elements of every page that was asked for, of unknown paths too. So only paths that exist reach it, each
visitor makes so many pages a second, and pages are bounded: the oldest that no browser has opened a socket for gives way.
What is refused gets a small page without state and without scripts.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from html import escape
from urllib.parse import unquote

from nicegui import __version__, background_tasks
from nicegui.client import Client
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from pipeline.clock import Clock
from pipeline.errors import NotReady
from serving.config.principal import Role
from serving.http.console.nonces import PAGES
from serving.http.console.shell import STYLE
from serving.http.console.sockets import end_sockets, of_a_page
from serving.runtime.visible import visible
from serving.security.admitted import admitted
from serving.security.headers import POLICY_HEADER, page_policy
from serving.security.limits import ClientLimit, client_of_address

__all__ = ["PageGate", "plain_page"]

FILES = f"/_nicegui/{__version__}/"
"""Path of NiceGUI's scripts and styles."""
SOCKETS = "/_nicegui_ws/"
UPLOADS = re.compile(r"/_nicegui/client/([0-9a-f-]{36})/upload/[0-9]{1,9}")
"""Paths that a page sends files to; the group is its name."""
VISITOR = "baton.visitor"
"""Key of a request's scope with its visitor."""
MAX_PAGES = 64
"""Pages at once, of all visitors."""
MAX_VISITOR_PAGES = 16
PAGES_PER_S = 2.0
BURST_PAGES = 30
LOADING_S = 15.0
"""Time in which the browser of a new page opens its socket; later the page is dropped, and the browser loads it again."""
NAME_LETTERS = 80
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>{title}, Baton</title><style>{style}</style></head>
<body class="plain"><main class="signin"><h1>{title}</h1><p class="note">{text}</p><p><a href="/">Baton</a></p></main></body></html>
"""


@dataclass(frozen=True, slots=True)
class _Visitor:
    key: str
    operator: bool


_NOBODY = _Visitor("", operator=False)


class PageGate:
    """ASGI application around NiceGUI's.

    Args:
        exists: whether there is an endpoint of that name; it may raise NotReady.
    """

    def __init__(self, app: ASGIApp, exists: Callable[[str], Awaitable[bool]], clock: Clock) -> None:
        self._app, self._exists = app, exists
        self._rate = ClientLimit(PAGES_PER_S, BURST_PAGES, clock)
        self._shown: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if scope["type"] == "websocket":
            if path.startswith(SOCKETS):
                await self._app(scope, of_a_page(receive, operator=_visitor(scope).operator), send)
            else:
                await send({"type": "websocket.close", "code": 1008, "reason": "there is no such socket"})
            return
        if not path.startswith(FILES) and not _sends_file(scope, path):
            refused = await self._refused(scope, path)
            if refused is not None:
                await refused(scope, receive, send)
                return
            visitor = scope[VISITOR] = _visitor(scope)
            self._make_room(visitor)
        await self._app(scope, receive, send)

    def connected(self, client: Client) -> None:
        """Note that a page has a socket; NiceGUI drops it by itself some time after the socket has ended."""
        self._shown.add(client.id)

    def sweep(self) -> None:
        """Drop pages whose browser has not opened a socket in time. Call it every second or so."""
        self._shown &= Client.instances.keys()
        for client in list(Client.instances.values()):
            if client.id not in self._shown and time.time() - client.created > LOADING_S:
                client.delete()

    async def _refused(self, scope: Scope, path: str) -> Response | None:
        """Answer to a request that no page is made for."""
        if not PAGES.fullmatch(path):
            return plain_page(404, "Not found", "There is no such page.")
        if scope["method"] != "GET":
            return plain_page(405, "Not allowed", "Pages can only be read.", allow="GET")
        visitor = _visitor(scope)
        if (seconds := self._rate.take(visitor.key)) > 0:
            retry = str(int(seconds) + 1)
            return plain_page(
                429, "Too many pages", "You have opened too many pages. Wait a moment.", retry_after=retry
            )
        name = unquote(path.removeprefix("/endpoints/"))
        if path != "/":
            try:
                if not await self._exists(name):
                    return plain_page(404, "Not found", f"There is no endpoint {visible(name, NAME_LETTERS)!r}.")
            except NotReady as error:
                return plain_page(503, "Not ready", str(error))
        # A visitor's own pages give way to its next one, those that others look at only to an operator's.
        rivals = self._too_many(visitor)
        others = any(_owner(page).key != visitor.key for page in rivals)
        if others and not visitor.operator and all(page.has_socket_connection for page in rivals):
            return plain_page(429, "Too many pages", "Too many pages are open. Close some, or try again.")
        return None

    def _too_many(self, visitor: _Visitor) -> list[Client]:
        """Pages of which one gives way to another one of this visitor; empty: there is room."""
        pages = list(Client.instances.values())
        own = [page for page in pages if _owner(page).key == visitor.key]
        if len(own) >= MAX_VISITOR_PAGES:
            return own
        return pages if len(pages) >= MAX_PAGES else []

    def _make_room(self, visitor: _Visitor) -> None:
        while pages := self._too_many(visitor):
            page = min(pages, key=lambda page: (_weight(page), page.created))
            if page.has_socket_connection:
                background_tasks.create(end_sockets(page.id), name="console-page-gives-way")
            page.delete()


def plain_page(code: int, title: str, text: str, **headers: str) -> Response:
    """A page without state and scripts."""
    body = _PAGE.format(title=escape(title), text=escape(text), style=STYLE)
    own = {name.replace("_", "-"): value for name, value in headers.items()}
    return HTMLResponse(body, code, {POLICY_HEADER: page_policy("'none'"), "cache-control": "no-store", **own})


def _visitor(scope: Scope) -> _Visitor:
    principal = admitted.get()
    address = client_of_address(scope["client"][0]) if scope.get("client") else ""
    if principal is None:
        return _Visitor(address, operator=False)
    return _Visitor(f"{principal.role} {principal.name} {address}", operator=principal.role is Role.OPERATOR)


def _sends_file(scope: Scope, path: str) -> bool:
    """Whether an operator's page of this visitor sends a file."""
    found, visitor = UPLOADS.fullmatch(path), _visitor(scope)
    page = None if found is None else Client.instances.get(found[1])
    return page is not None and scope["method"] == "POST" and visitor.operator and _owner(page).key == visitor.key


def _owner(page: Client) -> _Visitor:
    found: _Visitor = page.request.scope.get(VISITOR, _NOBODY)
    return found


def _weight(page: Client) -> int:
    """Pages of the least weight give way first: without a socket, then of viewers, then of operators."""
    return int(page.has_socket_connection) * (2 if _owner(page).operator else 1)
