"""Browser sessions: a signed cookie in place of a token, and a CSRF value against requests that other sites forge.

Nothing is stored: the cookie holds the token's id and its own end, signed with the installation's secret, so a restart
logs nobody out. Revoking the token ends its sessions at once. A logout is kept in memory until the session would have
ended.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from typing import Any

from itsdangerous import BadSignature, URLSafeSerializer

from pipeline.clock import Clock
from pipeline.errors import PermissionDenied
from serving.config.principal import Principal
from serving.security.authenticator import Authenticator, Credentials
from serving.security.tokens import LOCAL

__all__ = ["CSRF_HEADER", "Session", "Sessions"]

CSRF_HEADER = "x-baton-csrf"
LENGTH_S = 12 * 3600
"""Length of a session, a working shift."""
MAX_ENDED_SESSIONS = 10_000


@dataclass(frozen=True, slots=True)
class Session:
    """Session of a browser. `csrf`: value that its changing requests must send in `CSRF_HEADER`."""

    principal: Principal
    csrf: str


class Sessions:
    """Sessions of one installation.

    Args:
        secret: of the installation.
        secure: whether the port has TLS; the cookie is then sent over TLS only and bound to this host.
    """

    def __init__(self, authenticator: Authenticator, secret: bytes, clock: Clock, *, secure: bool) -> None:
        self._authenticator = authenticator
        signing = {"digest_method": hashlib.sha256, "key_derivation": "hmac"}
        self._signer = URLSafeSerializer(secret, salt="baton session", signer_kwargs=signing)
        self._csrf_key = hmac.digest(secret, b"baton csrf", "sha256")
        self._clock = clock
        self._secure = secure
        self._ended: dict[str, int] = {}
        self.cookie = "__Host-baton_session" if secure else "baton_session"
        """Name of the cookie."""

    def begin(self, caller: Credentials) -> str:
        """Begin a session for a caller with a token; returns the cookie's value.

        Raises:
            Unauthenticated, Overloaded: see `Authenticator.identify`.
            PermissionDenied: the caller has only a certificate, which comes with each request anyway.
        """
        identity = self._authenticator.require_identity(caller)
        if not identity.token:
            raise PermissionDenied("a session stands for a token; log in with one")
        ends = self._clock.wall_ms() + 1000 * LENGTH_S
        value: str = self._signer.dumps([identity.token, ends, secrets.token_urlsafe(12)])
        return value

    def find(self, value: str) -> Session | None:
        """Session of a cookie's value; None: not valid, or ended."""
        content = self._content(value)
        if content is None:
            return None
        token, ends, nonce = content
        principal = self._authenticator.principal_of(token)
        if principal is None or ends <= self._clock.wall_ms() or nonce in self._ended:
            return None
        return Session(principal, hmac.new(self._csrf_key, nonce.encode(), "sha256").hexdigest())

    def who(self, value: str) -> Principal | None:
        """Principal that a page is shown to: the session's, or LOCAL where no token is needed; None: not signed in.

        A page lives longer than the request that made it: check again at each update and before each action.
        """
        if self._authenticator.open:
            return LOCAL
        session = self.find(value)
        return None if session is None else session.principal

    def end(self, value: str) -> None:
        """Log out."""
        content = self._content(value)
        if content is None:
            return
        now = self._clock.wall_ms()
        kept = sorted(((ends, nonce) for nonce, ends in self._ended.items() if ends > now), reverse=True)
        self._ended = {nonce: ends for ends, nonce in kept[: MAX_ENDED_SESSIONS - 1]}
        self._ended[content[2]] = content[1]

    def flags(self) -> dict[str, Any]:
        """Arguments of Starlette's `Response.set_cookie` beside key, value and `max_age`, and of `delete_cookie`.

        Lax, so that a link in an alert opens a logged-in console; changing requests are never links.
        """
        return {"path": "/", "secure": self._secure, "httponly": True, "samesite": "lax"}

    def _content(self, value: str) -> tuple[str, int, str] | None:
        if not value or len(value) > 500:
            return None
        try:
            token, ends, nonce = self._signer.loads(value)
        except (BadSignature, ValueError):
            return None
        return str(token), int(ends), str(nonce)
