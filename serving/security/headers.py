"""Headers that every HTTP answer carries, so that a browser does only what our pages need."""

from __future__ import annotations

from functools import lru_cache

__all__ = ["response_headers"]

# The console's library compiles its templates in the browser and writes styles into elements; scripts come from us alone.
PAGES = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
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
def _headers(page: bool, only_tls: bool) -> tuple[tuple[bytes, bytes], ...]:
    headers = {**_ALL, "content-security-policy": PAGES if page else NO_PAGE}
    if not page:
        headers["cache-control"] = "no-store"
    if only_tls:
        headers["strict-transport-security"] = "max-age=31536000"
    return tuple((name.encode(), value.encode()) for name, value in headers.items())


def response_headers(path: str, *, only_tls: bool) -> list[tuple[bytes, bytes]]:
    """Names and values in lower case, for an answer on `path`; the application's own of the same name stand.

    Args:
        only_tls: tell browsers to come over TLS from now on.
    """
    page = not path.startswith("/api/") and path not in ("/metrics", "/healthz", "/readyz")
    return list(_headers(page, only_tls))
