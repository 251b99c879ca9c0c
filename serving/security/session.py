"""Browser sessions: a cookie in place of a token, and a CSRF value against requests that other sites forge.

The cookie is a random id, and nobody but the browser keeps it. A session is a row under the id's SHA-256, in the home or
in the Redis that machines share (`serving.state.sessions`), so that a sign-out counts everywhere and after a restart. A
row has a MAC under its token's digest, which is in `tokens.json` alone: who reads the rows has no session, and who writes
them cannot make one. Revoking the token ends its sessions at once.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.clock import Clock
from pipeline.errors import NotReady, PermissionDenied, Unauthenticated
from serving.config.principal import Principal
from serving.security.authenticator import Authenticator, Credentials
from serving.security.tokens import LOCAL, Token

__all__ = ["CSRF_HEADER", "Session", "SessionRow", "SessionRows", "Sessions"]

CSRF_HEADER = "x-baton-csrf"
LENGTH_S = 12 * 3600
"""Length of a session, a working shift."""
SEEN_S = 0.5
"""Time for which a row that was read counts: so long may a session go on here that was signed out of elsewhere."""
AGAIN_S = 1.0
"""Pause after a look-up that failed, in which others fail at once instead of waiting for the store."""
MAX_ENDED_SESSIONS = 10_000
MAX_SEEN_SESSIONS = 10_000
_LOOK_UP_THREADS = 4
_ID_BYTES = 32
_ID = re.compile(r"[A-Za-z0-9_-]{43}")
_ROW = re.compile(r"(\S{1,64}) ([0-9]{1,15}) ([0-9a-f]{64})")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A session as it is stored. Nothing in it lets anyone in.

    Args:
        key: SHA-256 of the session's id, in hex.
        token: id of the token that it stands for.
        ends_ms: Unix milliseconds.
        mac: of the three, in hex, under the digest of the token.
    """

    key: str
    token: str
    ends_ms: int
    mac: str

    @classmethod
    def sealed(cls, key: str, token: Token, ends_ms: int) -> SessionRow:
        """The row of a new session."""
        return cls(key, token.id, ends_ms, _mac(key, token, ends_ms))

    def genuine(self, token: Token) -> bool:
        """Whether the row was made by a process that knows the token's digest."""
        return hmac.compare_digest(self.mac, _mac(self.key, token, self.ends_ms))

    def pack(self) -> str:
        """All but the key, as text."""
        return f"{self.token} {self.ends_ms} {self.mac}"

    @classmethod
    def unpack(cls, key: str, text: str) -> SessionRow | None:
        """The inverse of `pack`; None of another text."""
        parts = _ROW.fullmatch(text)
        return None if parts is None else cls(key, parts[1], int(parts[2]), parts[3])


class SessionRows(Protocol):
    """Store of sessions. Safe for several threads and processes. All methods raise NotReady."""

    def put(self, row: SessionRow, now_ms: int) -> None:
        """Store a session. Of a token's sessions and of all the newest stay, so that their number is bounded."""

    def get(self, keys: Collection[str]) -> Mapping[str, SessionRow]:
        """Those sessions that are stored, by key."""

    def remove(self, key: str) -> None:
        """Remove a session."""

    def close(self) -> None:
        """Close the store."""


@dataclass(frozen=True, slots=True)
class Session:
    """Session of a browser.

    Args:
        csrf: value that its changing requests must send in `CSRF_HEADER`.
        token: id of the token that it stands for.
    """

    principal: Principal
    csrf: str
    token: str


class Sessions:
    """Sessions of one process, whose rows all control processes of an installation share.

    While the store of rows cannot be read nobody has a session: `find`, `who` and `look` raise NotReady. Tokens go on.

    Args:
        rows: not closed here.
        secure: whether the port has TLS; the cookie is then sent over TLS only and bound to this host.
    """

    def __init__(self, authenticator: Authenticator, rows: SessionRows, clock: Clock, *, secure: bool) -> None:
        self._authenticator = authenticator
        self._rows = rows
        self._clock = clock
        self._secure = secure
        self._lookers = ThreadPoolExecutor(_LOOK_UP_THREADS, "session-look-up")
        # Guarded by `_lock`:
        self._lock = threading.Lock()
        self._seen: OrderedDict[str, tuple[SessionRow | None, float]] = OrderedDict()
        self._ended: OrderedDict[str, int] = OrderedDict()
        self._left: set[str] = set()
        self._trouble = ""
        self._again_s = 0.0
        self.cookie = "__Host-baton_session" if secure else "baton_session"
        """Name of the cookie."""

    def begin(self, caller: Credentials) -> str:
        """Begin a session for a caller with a token; returns the cookie's value.

        Raises:
            Unauthenticated, Overloaded: see `Authenticator.identify`.
            PermissionDenied: the caller has only a certificate, which comes with each request anyway.
            NotReady: the session cannot be stored.
        """
        identity = self._authenticator.require_identity(caller)
        if not identity.token:
            raise PermissionDenied("a session stands for a token; log in with one")
        token = self._authenticator.token(identity.token)
        if token is None:
            raise Unauthenticated("this token was revoked just now")
        value, now_ms = secrets.token_urlsafe(_ID_BYTES), self._clock.wall_ms()
        self._rows.put(SessionRow.sealed(_key(value), token, now_ms + 1000 * LENGTH_S), now_ms)
        return value

    def find(self, value: str) -> Session | None:
        """Session of a cookie's value; None: not valid, or ended. It may ask the store: see `look`.

        Raises:
            NotReady: the store of sessions does not answer.
        """
        if not _ID.fullmatch(value):
            return None
        key = _key(value)
        if self._open([key]):
            self._ask([key])
        with self._lock:
            row, _ = self._seen.get(key, (None, 0.0))
            if row is None or key in self._ended:
                return None
        token = self._authenticator.token(row.token)
        if token is None or not row.genuine(token) or row.ends_ms <= self._clock.wall_ms():
            return None
        csrf = hmac.digest(value.encode(), b"baton csrf", "sha256").hex()
        return Session(Principal(token.name, token.role), csrf, token.id)

    async def look(self, values: Iterable[str]) -> None:
        """Ask the store for sessions, in one call and beside the event loop; for `SEEN_S` seconds `find` needs no other.

        Raises:
            NotReady: the store of sessions does not answer.
        """
        keys = self._open([_key(value) for value in values if _ID.fullmatch(value)])
        if keys:
            await asyncio.get_running_loop().run_in_executor(self._lookers, self._ask, keys)

    def who(self, value: str) -> Principal | None:
        """Principal that a page is shown to: the session's, or LOCAL where no token is needed; None: not signed in.

        A page lives longer than the request that made it: check again at each update and before each action.

        Raises:
            NotReady: the store of sessions does not answer.
        """
        if self._authenticator.open:
            return LOCAL
        session = self.find(value)
        return None if session is None else session.principal

    def end(self, value: str) -> None:
        """Log out: at once here, and within `SEEN_S` seconds at every other process.

        While the store does not answer the session ends here alone; the row is removed as soon as it answers again.
        """
        if not _ID.fullmatch(value):
            return
        with suppress(NotReady):
            if self.find(value) is None:
                return
        key, now_ms = _key(value), self._clock.wall_ms()
        with self._lock:
            while self._ended and (
                len(self._ended) >= MAX_ENDED_SESSIONS or next(iter(self._ended.values())) <= now_ms
            ):
                self._ended.popitem(last=False)
            self._ended[key] = now_ms + 1000 * LENGTH_S
            self._seen.pop(key, None)
            self._left.add(key)
        self._remove()

    def flags(self) -> dict[str, Any]:
        """Arguments of Starlette's `Response.set_cookie` beside key, value and `max_age`, and of `delete_cookie`.

        Lax, so that a link in an alert opens a logged-in console; changing requests are never links.
        """
        return {"path": "/", "secure": self._secure, "httponly": True, "samesite": "lax"}

    def _open(self, keys: Iterable[str]) -> list[str]:
        """Those that have to be asked for."""
        now = self._clock.monotonic()
        with self._lock:
            return [
                key
                for key in dict.fromkeys(keys)
                if key not in self._ended and not (key in self._seen and now - self._seen[key][1] <= SEEN_S)
            ]

    def _ask(self, keys: Collection[str]) -> None:
        asked = self._clock.monotonic()
        with self._lock:
            if asked < self._again_s:
                raise NotReady(self._trouble)
        try:
            found = self._rows.get(keys)
        except NotReady as error:
            with self._lock:
                self._trouble = f"sessions cannot be checked, use a token until they can: {error}"
                self._again_s = self._clock.monotonic() + AGAIN_S
            raise NotReady(self._trouble) from error
        if self._left:
            self._remove()
        with self._lock:
            for key in keys:
                self._seen[key] = found.get(key), asked
                self._seen.move_to_end(key)
            while len(self._seen) > MAX_SEEN_SESSIONS:
                self._seen.popitem(last=False)

    def _remove(self) -> None:
        """Remove the rows of sessions that have ended here."""
        for key in list(self._left):
            try:
                self._rows.remove(key)
            except NotReady as error:
                log.error("a session has ended at this process alone until its row can be removed: %s", error)
                return
            self._left.discard(key)


def _key(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()


def _mac(key: str, token: Token, ends_ms: int) -> str:
    content = f"baton session\0{key}\0{token.id}\0{ends_ms}".encode()
    return hmac.digest(token.digest.encode(), content, "sha256").hex()
