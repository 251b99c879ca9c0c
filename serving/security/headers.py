"""Security headers of every HTTP response, and the content policies of pages: they limit what a browser does.

The console's library compiles its templates in the browser, which needs 'unsafe-eval', and writes styles into elements,
which needs 'unsafe-inline'. Nothing is loaded from other sites.
"""

from __future__ import annotations

import re
from functools import lru_cache

__all__ = ["POLICY_HEADER", "page_policy", "response_headers"]

POLICY_HEADER = "content-security-policy"
_HOST = re.compile(r"[A-Za-z0-9.\-:\[\]]+")
FILES = "/_nicegui/"
"""Path of the console's scripts and styles, which a browser may keep."""
NO_PAGE = "default-src 'none'; frame-ancestors 'none'"
_ALL = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}


@lru_cache(maxsize=4)
def _headers(stored: bool, only_tls: bool) -> tuple[tuple[bytes, bytes], ...]:
    headers = {**_ALL, POLICY_HEADER: NO_PAGE}
    if not stored:
        headers["cache-control"] = "no-store"
    if only_tls:
        headers["strict-transport-security"] = "max-age=31536000"
    return tuple((name.encode(), value.encode()) for name, value in headers.items())


def response_headers(path: str, *, only_tls: bool) -> list[tuple[bytes, bytes]]:
    """Headers for a response on `path`, names in lower case; a header that the application sets itself wins.

    The policy lets a browser do nothing. Pages set one of their own: `page_policy`.

    Args:
        only_tls: tell browsers to use TLS from now on.
    """
    return list(_headers(path.startswith(FILES), only_tls))


def page_policy(scripts: str, host: str = "") -> str:
    """Content-Security-Policy of a page of the console.

    Args:
        scripts: sources of scripts.
        host: of the request, for its sockets: older browsers do not count them to 'self'.
    """
    sockets = f" ws://{host} wss://{host}" if _HOST.fullmatch(host) else ""
    return (
        f"default-src 'none'; script-src {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        f"font-src 'self'; connect-src 'self'{sockets}; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
