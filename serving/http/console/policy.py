"""What a page of the console may do in a browser: a policy under which only the scripts that the page brought run.

What NiceGUI puts into a page is escaped, so a `<script` in it is NiceGUI's own and gets the page's nonce; one that got in
otherwise has none and does not run. Its components are templates that the browser compiles, which takes 'unsafe-eval';
styles of elements take 'unsafe-inline'. Nothing is loaded from elsewhere.
"""

from __future__ import annotations

import re
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["HEADER", "PAGES", "Nonces", "policy"]

HEADER = "content-security-policy"
PAGES = re.compile(r"/(endpoints/[^/]+)?")
"""Paths of pages."""
_SCRIPT = re.compile(rb"<script(?=[\s>])")
_HOST = re.compile(r"[A-Za-z0-9.\-:\[\]]+")


def policy(scripts: str, host: str = "") -> str:
    """A Content-Security-Policy. `host`: that was asked, for its sockets; older browsers do not count them to 'self'."""
    sockets = f" ws://{host} wss://{host}" if _HOST.fullmatch(host) else ""
    return (
        f"default-src 'none'; script-src {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        f"font-src 'self'; connect-src 'self'{sockets}; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )


class Nonces:
    """An ASGI application around NiceGUI's, inside whatever compresses."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not PAGES.fullmatch(scope["path"]):
            await self._app(scope, receive, send)
            return
        nonce = secrets.token_urlsafe(16)
        begun: list[Message] = []
        parts: list[bytes] = []

        async def rewritten(message: Message) -> None:
            if message["type"] == "http.response.start":
                begun.append(message)
                return
            parts.append(message.get("body", b""))
            if message.get("more_body", False):
                return
            body = _SCRIPT.sub(b'<script nonce="%s"' % nonce.encode(), b"".join(parts))
            headers = MutableHeaders(scope=begun[0])
            headers["content-length"] = str(len(body))
            headers[HEADER] = policy(f"'self' 'nonce-{nonce}' 'unsafe-eval'", Headers(scope=scope).get("host", ""))
            await send(begun[0])
            await send({"type": "http.response.body", "body": body})

        await self._app(scope, receive, rewritten)
