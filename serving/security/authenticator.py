"""Who may come in, at every port: by token, by client certificate, or as anyone on a machine without tokens.

The three servers tell it what a call and its connection say (`Credentials`); it answers with a `Principal` or refuses. It
knows neither gRPC nor HTTP.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from pipeline.clock import Clock
from pipeline.errors import InvalidInput, Overloaded, PermissionDenied, Unauthenticated
from serving.config import Config
from serving.config.principal import Principal, Role
from serving.security.limits import ClientLimit, client_of_address
from serving.security.tokens import LOCAL, TokenAuthenticator, TokenStore

__all__ = ["Authenticator", "Credentials", "Identity"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a call says of itself.

    Args:
        authorization: header or metadata value; empty: none was sent.
        address: IP address of the connection; empty: a local socket.
        certificate: names in the client certificate that TLS has verified, common name first.
    """

    authorization: str = ""
    address: str = ""
    certificate: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller that said who it is.

    Args:
        names: what settings may call it by; the audit says the first.
        role: None: a certificate that `listen.tls.roles` does not name.
        client: what limits count by.
        token: id of the token that it showed, if it did.
    """

    names: tuple[str, ...]
    role: Role | None
    client: str
    token: str = ""

    def among(self, names: Collection[str]) -> bool:
        """Whether a setting names it."""
        return any(name in names for name in self.names)


class Authenticator:
    """Of one process.

    Args:
        config: of the installation.
        clock: of expiry and limits.

    Attributes:
        counters: calls refused, by reason.
    """

    def __init__(self, config: Config, clock: Clock) -> None:
        listen, limits = config.listen, config.listen.limits
        self._tokens = TokenAuthenticator(TokenStore(config.tokens), clock, loopback=listen.loopback)
        self._roles = listen.tls.roles if listen.tls is not None else {}
        self._feedback_from: Collection[str] = frozenset(listen.feedback_from)
        self._wrong = ClientLimit(limits.wrong_tokens, limits.wrong_tokens_burst, clock)
        self._calls = ClientLimit(limits.admin, limits.admin_burst, clock)
        self._labels = ClientLimit(limits.feedback, limits.feedback_burst, clock)
        self.counters: Counter[str] = Counter()

    @property
    def open(self) -> bool:
        """Whether this machine has no tokens and everyone on it is an operator."""
        try:
            return self._tokens.open()
        except InvalidInput:
            return False

    def good(self, token: str) -> Principal | None:
        """The principal of a token's id while that is good; for sessions, which outlive the call that showed it."""
        found = self._tokens.good(token)
        return None if found is None else Principal(found.name, found.role)

    def identify(self, caller: Credentials) -> Identity | None:
        """Who calls; None when it did not say.

        Raises:
            Unauthenticated: it showed a token that is none.
            Overloaded: so many wrong ones came from there that no more are looked at for a while.
        """
        if caller.authorization:
            return self._by_token(caller)
        if caller.certificate:
            role = next((self._roles[name] for name in caller.certificate if name in self._roles), None)
            return Identity(caller.certificate, role, f"certificate {caller.certificate[0]}")
        return None

    def known(self, caller: Credentials) -> Identity:
        """Who calls, where one has to say.

        Raises:
            Unauthenticated, Overloaded: see `identify`.
        """
        found = self.identify(caller)
        if found is None:
            self.counters["nameless"] += 1
            raise Unauthenticated(
                "this takes a token or a client certificate; make one with `baton token create` and send "
                "`authorization: Bearer TOKEN`"
            )
        return found

    def admit(self, caller: Credentials) -> Principal:
        """The principal of an admin call, which still has to have the verb's role.

        Raises:
            Unauthenticated: it does not say who it is, or wrongly.
            PermissionDenied: its certificate has no role.
            Overloaded: it calls too often.
        """
        if self.open:
            return LOCAL
        known = self.known(caller)
        self._count(self._calls, known, 1, "admin calls")
        if known.role is None:
            raise PermissionDenied(f"certificate {known.names[0]} has no role; listen.tls.roles gives one")
        return Principal(known.names[0], known.role)

    def override(self, caller: Credentials, allowed: bool | Collection[str]) -> None:
        """Let a caller choose the arm, if the endpoint's setting `overrides` is `allowed`.

        Raises:
            Unauthenticated, PermissionDenied, Overloaded: it may not.
        """
        if self.open:
            return
        known = self.known(caller)
        if known.role is not Role.OPERATOR and (isinstance(allowed, bool) or not known.among(allowed)):
            raise PermissionDenied(
                f"{known.names[0]} may not choose the arm; the endpoint's setting `overrides` says who"
            )

    def labeller(self, caller: Credentials) -> Identity:
        """Who sends feedback.

        Raises:
            Unauthenticated, PermissionDenied, Overloaded: its labels are not taken.
        """
        known = self.known(caller)
        if self._feedback_from and not known.among(self._feedback_from):
            raise PermissionDenied(f"labels of {known.names[0]} are not taken; listen.feedback_from says whose are")
        return known

    def labels(self, known: Identity, predictions: int) -> None:
        """Count feedback for so many predictions.

        Raises:
            Overloaded: this client has sent too much.
        """
        self._count(self._labels, known, max(1, predictions), "labels")

    def _by_token(self, caller: Credentials) -> Identity:
        # Guesses at one token must not lock out others behind the same address, so each has its own count; what is no
        # token's id has one together.
        key = f"{client_of_address(caller.address)} {self._tokens.id_of(caller.authorization)}"
        if (seconds := self._wrong.wait(key)) > 0:
            self.counters["many_wrong_tokens"] += 1
            raise Overloaded("too many wrong tokens came from this address; try again later", seconds)
        try:
            token = self._tokens.find(caller.authorization)
        except Unauthenticated:
            self.counters["wrong_token"] += 1
            self._wrong.take(key)
            if self._wrong.wait(key) > 0:
                log.warning(
                    "too many wrong tokens from %s; more are not looked at for a while", caller.address or "here"
                )
            raise
        return Identity((token.name,), token.role, f"token {token.id}", token.id)

    def _count(self, limit: ClientLimit, known: Identity, cost: int, what: str) -> None:
        if (seconds := limit.take(known.client, cost)) > 0:
            self.counters[f"many_{what.replace(' ', '_')}"] += 1
            raise Overloaded(f"too many {what} of {known.names[0]}; listen.limits says how many there may be", seconds)
