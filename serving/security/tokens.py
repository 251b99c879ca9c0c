"""Bearer tokens of one installation: a file in its home, written by `baton token`, read by every process.

A token is `baton_<id>_<secret>`. The id is public and finds the entry. Only the SHA-256 of the secret (256 random bits) is
kept; a slow hash would only help guessable passwords. The file is replaced as a whole, so a reader sees one state or the
next; a read of an unchanged file costs one `stat`. Once the file exists, tokens are required: after revoking the last one
nobody is admitted.
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

__all__ = ["LOCAL", "Token", "TokenAuthenticator", "TokenStore", "is_token"]

LOCAL = Principal("local", Role.OPERATOR)
"""Everyone on this machine, where no tokens or roles are configured and other machines cannot reach it."""
PREFIX = "baton"
MAX_TOKENS = 1000
"""Tokens of one installation."""
_NOBODY = hashlib.sha256(b"").hexdigest()


class Token(BaseModel):
    """Entry of the file: all of a token except its secret. Times are Unix milliseconds; 0: never expires."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    name: str
    role: Role
    digest: str
    """SHA-256 of the secret, in hex."""
    created_ms: int
    expires_ms: int = 0

    def expired(self, now_ms: int) -> bool:
        """Whether the token has expired."""
        return 0 < self.expires_ms <= now_ms


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True, slots=True)
class _Seen:
    """Content of the file; `mark`: its inode, time and size."""

    mark: tuple[int, ...]
    tokens: dict[str, Token]


class TokenStore:
    """Store of tokens in a file. Safe for several processes; each sees the changes of the others.

    Args:
        path: of the file; created with the first token, readable by its owner only.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: _Seen | None = None

    def tokens(self) -> dict[str, Token] | None:
        """All tokens by id, expired ones included, revoked ones not; None: no token was ever created.

        Raises:
            InvalidInput: the file cannot be read or is not a file of tokens.
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
        """Add a token; returns its entry and the whole token, which is shown only this once.

        Raises:
            InvalidInput: the name cannot be used, or the token has expired already.
            Conflict: there are too many tokens.
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
        """Remove the token with that id, or else all of that name; returns the removed tokens.

        Raises:
            NotFound: no token has that id or name.
        """
        with self._change() as tokens:
            gone = [tokens[which]] if which in tokens else [t for t in tokens.values() if t.name == which]
            if not gone:
                raise NotFound(f"no token has the id or name {which!r}")
            for token in gone:
                del tokens[token.id]
        return gone

    def find(self, authorization: str, now_ms: int) -> Token | None:
        """Token of an `authorization` value; None: it is not valid, or expired.

        The comparison takes constant time, also where no token has that id.

        Raises:
            InvalidInput: see `tokens`.
        """
        number, secret = _parts(authorization)
        token = (self.tokens() or {}).get(number)
        right = hmac.compare_digest(_digest(secret), token.digest if token is not None else _NOBODY)
        return None if token is None or not right or token.expired(now_ms) else token

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
        """The tokens, to be changed in a `with` block under a lock; written when the block succeeds."""
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
    """Authenticator by token. See `serving.config.principal.PrincipalSource`.

    Args:
        store: of the installation.
        clock: for expiry.
        loopback: whether only this machine can reach the ports, and certificates do not say who calls; without tokens
            everyone on it is then an operator.
    """

    def __init__(self, store: TokenStore, clock: Clock, *, loopback: bool) -> None:
        self._store = store
        self._clock = clock
        self._needed = not loopback

    def open(self) -> bool:
        """Whether no token is needed.

        Raises:
            InvalidInput: the file of tokens is damaged.
        """
        if not self._needed:
            # Permanent: a file that disappears while the process runs must not open the ports again.
            self._needed = self._store.tokens() is not None
        return not self._needed

    def authenticate(self, authorization: str) -> Principal:
        """Principal of an `authorization` header or metadata value (empty: none was sent).

        Raises:
            Unauthenticated: no, a wrong, an expired or a revoked token where one is needed.
        """
        try:
            if self.open():
                return LOCAL
        except InvalidInput:
            pass  # `find` raises it
        token = self.find(authorization)
        return Principal(token.name, token.role)

    def find(self, authorization: str) -> Token:
        """Token of an `authorization` value.

        Raises:
            Unauthenticated: no token, or one that is not valid.
        """
        try:
            token = self._store.find(authorization, self._clock.wall_ms())
        except InvalidInput:
            # `baton doctor` names the cause; strangers need not know it.
            raise Unauthenticated("tokens cannot be read at present; `baton doctor` says why") from None
        if token is None:
            why = "this token is not known, was revoked or has expired" if authorization else "this takes a token"
            raise Unauthenticated(f"{why}; make one with `baton token create` and send `authorization: Bearer TOKEN`")
        return token

    def names(self) -> set[str]:
        """Names of all tokens; none while their file cannot be read."""
        try:
            return {token.name for token in (self._store.tokens() or {}).values()}
        except InvalidInput:
            return set()

    def valid(self, number: str) -> Token | None:
        """Token by id, None once it is revoked or expired; for sessions, which outlive the call with the secret."""
        try:
            token = (self._store.tokens() or {}).get(number)
        except InvalidInput:
            return None
        return None if token is None or token.expired(self._clock.wall_ms()) else token


def is_token(authorization: str) -> bool:
    """Whether an `authorization` value has the form of a token of ours."""
    return _parts(authorization) != ("", "")


def _parts(authorization: str) -> tuple[str, str]:
    """Id and secret of `Bearer baton_<id>_<secret>`; empty where the value has another form."""
    scheme, _, value = authorization.partition(" ")
    prefix, _, rest = value.strip().partition("_")
    number, _, secret = rest.partition("_")
    return (number, secret) if scheme.lower() == "bearer" and prefix == PREFIX else ("", "")


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()
