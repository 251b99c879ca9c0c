"""Nonces in the console's pages, so that a browser runs only scripts that the page itself has.

Text in a page is escaped by NiceGUI, so a `<script` in it is NiceGUI's own and gets the page's nonce. An injected script
has no nonce and does not run. The policy itself: `serving.security.headers`.
"""

from __future__ import annotations

import re
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.security.headers import POLICY_HEADER, page_policy

__all__ = ["PAGES", "Nonces"]

PAGES = re.compile(r"/(endpoints/[^/]+)?")
"""Paths of pages."""
_SCRIPT = re.compile(rb"<script(?=[\s>])")


class Nonces:
    """ASGI middleware around NiceGUI's application, inside the compression."""

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
            headers[POLICY_HEADER] = page_policy(
                f"'self' 'nonce-{nonce}' 'unsafe-eval'", Headers(scope=scope).get("host", "")
            )
            await send(begun[0])
            await send({"type": "http.response.body", "body": body})

        await self._app(scope, receive, rewritten)
