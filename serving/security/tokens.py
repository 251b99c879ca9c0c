"""Bearer tokens of one installation: a file in its home, written by `baton token`, read by every process.

A token is `baton_<id>_<secret>`. The id is public and finds the entry; of the secret (256 random bits) only the SHA-256
is kept: a slow hash protects guessable passwords, and this is not one. The file is replaced as a whole, so a reader
sees one state or the next; each look costs one `stat`. Once there was a file, tokens are needed: revoking the last one
lets nobody in rather than everybody.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.clock import Clock
from pipeline.disk import replacing
from pipeline.errors import Conflict, InvalidInput, NotFound, Unauthenticated
from serving.config.principal import Principal, Role

__all__ = ["LOCAL", "Token", "TokenAuthenticator", "TokenStore"]

LOCAL = Principal("local", Role.OPERATOR)
"""Everyone on this machine, where no tokens are configured and nothing is served off it."""
PREFIX = "baton"
MAX_TOKENS = 1000
"""Tokens of one installation."""
_NOBODY = hashlib.sha256(b"").hexdigest()


class Token(BaseModel):
    """An entry of the file: everything about a token but its secret. Times are Unix milliseconds; 0: never expires."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    name: str
    role: Role
    digest: str
    """SHA-256 of the secret, in hex."""
    created_ms: int
    expires_ms: int = 0

    def expired(self, now_ms: int) -> bool:
        """Whether its time is over."""
        return 0 < self.expires_ms <= now_ms


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the file held when it last looked like `mark`."""

    mark: tuple[int, ...]
    tokens: dict[str, Token]


class TokenStore:
    """The file of tokens. Safe for several processes; each notices what another wrote.

    Args:
        path: of the file; made, readable by its owner alone, with the first token.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: _Seen | None = None

    def tokens(self) -> dict[str, Token] | None:
        """All tokens by id, revoked ones left out and expired ones not; None: none was ever made.

        Raises:
            InvalidInput: the file cannot be read or is not what `baton token` wrote.
        """
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            return None
        mark = (found.st_ino, found.st_mtime_ns, found.st_size)
        if self._seen is None or self._seen.mark != mark:
            self._seen = self._read()
        return self._seen.tokens if self._seen is not None else None

    def create(self, name: str, role: Role, now_ms: int, expires_ms: int = 0) -> tuple[Token, str]:
        """Add a token; returns its entry and the whole token, which is told this once.

        Raises:
            InvalidInput: the name cannot be used, or the time is over already.
            Conflict: there are too many.
        """
        if not name or len(name) > 64 or not name.isprintable() or any(c.isspace() for c in name):
            raise InvalidInput(f"name {name!r}: 1 to 64 printable characters without spaces", "name")
        if expires_ms and expires_ms <= now_ms:
            raise InvalidInput("the token would have expired already", "expires")
        secret = secrets.token_urlsafe(32)
        with self._change() as tokens:
            if len(tokens) >= MAX_TOKENS:
                raise Conflict(f"there are {len(tokens)} tokens, the most that one installation keeps; revoke some")
            token = Token(
                id=secrets.token_hex(4),
                name=name,
                role=role,
                digest=_digest(secret),
                created_ms=now_ms,
                expires_ms=expires_ms,
            )
            tokens[token.id] = token
        return token, f"{PREFIX}_{token.id}_{secret}"

    def revoke(self, which: str) -> list[Token]:
        """Remove the token with that id, or else all of that name; returns what was removed.

        Raises:
            NotFound: there is none.
        """
        with self._change() as tokens:
            gone = [tokens[which]] if which in tokens else [t for t in tokens.values() if t.name == which]
            if not gone:
                raise NotFound(f"no token has the id or name {which!r}")
            for token in gone:
                del tokens[token.id]
        return gone

    def find(self, authorization: str, now_ms: int) -> Token | None:
        """The token whose `authorization` value this is; None: it is none of ours, or expired.

        What is compared is compared in constant time, whether or not there is a token of that id.

        Raises:
            InvalidInput: see `tokens`.
        """
        number, secret = _parts(authorization)
        token = (self.tokens() or {}).get(number)
        right = hmac.compare_digest(_digest(secret), token.digest if token is not None else _NOBODY)
        return None if token is None or not right or token.expired(now_ms) else token

    def id_of(self, authorization: str) -> str:
        """The id that an `authorization` value names, if there is a token of that id, right or not; else empty."""
        number, _ = _parts(authorization)
        return number if number in (self.tokens() or {}) else ""

    def _read(self) -> _Seen | None:
        try:
            with open(self.path, "rb") as file:
                found = os.fstat(file.fileno())
                content = _File.model_validate_json(file.read())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InvalidInput(f"{self.path} cannot be read: {error.strerror}", "tokens") from None
        except ValidationError as error:
            # Without pydantic's rendering of the input: it would carry digests into logs.
            where = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise InvalidInput(f"{self.path} is not a file of tokens (at {where or 'its start'})", "tokens") from None
        return _Seen((found.st_ino, found.st_mtime_ns, found.st_size), {t.id: t for t in content.tokens})

    @contextmanager
    def _change(self) -> Iterator[dict[str, Token]]:
        """The tokens, to be changed; written when the block ends well, while nobody else writes."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600), "r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            seen = self._read()
            tokens = dict(seen.tokens) if seen is not None else {}
            yield tokens
            with replacing(self.path, durable=True) as staging:
                staging.touch(mode=0o600, exist_ok=False)
                staging.write_text(_File(tokens=tuple(tokens.values())).model_dump_json(indent=1) + "\n")


class TokenAuthenticator:
    """Tells by its token who calls. See `serving.config.principal.PrincipalSource`.

    Args:
        store: of the installation.
        clock: of expiry.
        loopback: whether only this machine can reach us; without configured tokens everyone is then an operator.
    """

    def __init__(self, store: TokenStore, clock: Clock, *, loopback: bool) -> None:
        self._store = store
        self._clock = clock
        self._loopback = loopback
        self._needed = not loopback

    def open(self) -> bool:
        """Whether nobody needs a token.

        Raises:
            InvalidInput: the file of tokens is damaged.
        """
        if not self._needed:
            # For good: a file that goes away while we run must not open what was shut.
            self._needed = self._store.tokens() is not None
        return not self._needed

    def authenticate(self, authorization: str) -> Principal:
        """The caller whose `authorization` header or metadata this is (empty: none was sent).

        Raises:
            Unauthenticated: no, a wrong, an expired or a revoked token where one is needed.
        """
        try:
            if self.open():
                return LOCAL
        except InvalidInput:
            pass  # `find` says so
        token = self.find(authorization)
        return Principal(token.name, token.role)

    def find(self, authorization: str) -> Token:
        """The token behind an `authorization` value.

        Raises:
            Unauthenticated: there is none, or it is none of ours.
        """
        try:
            token = self._store.find(authorization, self._clock.wall_ms())
        except InvalidInput:
            # What is the matter stands in `baton doctor`; strangers need not know.
            raise Unauthenticated("tokens cannot be read at present; `baton doctor` says why") from None
        if token is None:
            said = "this token is not known, was revoked or has expired" if authorization else "this takes a token"
            raise Unauthenticated(f"{said}; make one with `baton token create` and send `authorization: Bearer TOKEN`")
        return token

    def good(self, number: str) -> Token | None:
        """The token of an id while it is good; for sessions, which outlive the call that showed the secret."""
        try:
            token = (self._store.tokens() or {}).get(number)
        except InvalidInput:
            return None
        return None if token is None or token.expired(self._clock.wall_ms()) else token

    def id_of(self, authorization: str) -> str:
        """See `TokenStore.id_of`; empty, too, while tokens cannot be read."""
        try:
            return self._store.id_of(authorization)
        except InvalidInput:
            return ""


def _parts(authorization: str) -> tuple[str, str]:
    """Id and secret of `Bearer baton_<id>_<secret>`; empty where it is nothing of that form."""
    scheme, _, value = authorization.partition(" ")
    prefix, _, rest = value.strip().partition("_")
    number, _, secret = rest.partition("_")
    return (number, secret) if scheme.lower() == "bearer" and prefix == PREFIX else ("", "")


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()
