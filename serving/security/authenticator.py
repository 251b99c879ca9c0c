"""Authenticator of callers at every port: by token, by client certificate, or anyone on a machine without tokens.

The three servers pass the `Credentials` of a call and its connection; the authenticator returns a `Principal` or refuses.
It knows neither gRPC nor HTTP.
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
from serving.security.access_memory import AccessMemory
from serving.security.limits import ClientLimit, client_of_address
from serving.security.tokens import LOCAL, Token, TokenAuthenticator, TokenStore, is_token

__all__ = ["CALLER_REASONS", "Authenticator", "Credentials", "Identity"]

log = logging.getLogger(__name__)

NAMELESS = (
    "this takes a token or a client certificate; make one with `baton token create` and send "
    "`authorization: Bearer TOKEN`"
)
CERTIFIED = ". listen.tls verifies client certificates here: one that listen.tls.roles names will do too"
CALLER_REASONS = ("nameless", "wrong_token", "many_wrong_tokens", "many_admin_calls", "many_labels")
"""See `Authenticator.counters`."""
WARN_EVERY_S = 60.0
"""Time between two warnings of wrong tokens in the log, so that who sends them does not fill it."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Credentials of a call, not yet checked.

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
    """Identity of a caller whose credentials are good.

    Args:
        names: that settings may name it by; the audit has the first.
        role: None: a certificate that `listen.tls.roles` does not name.
        client: key of its limits.
        token: id of its token; empty: it used a certificate.
    """

    names: tuple[str, ...]
    role: Role | None
    client: str
    token: str = ""

    def among(self, names: Collection[str]) -> bool:
        """Whether a setting names this caller."""
        return any(name in names for name in self.names)


class Authenticator:
    """Authenticator of one process.

    Args:
        config: of the installation.
        clock: for expiry and limits.

    Attributes:
        counters: refused calls by reason.
    """

    def __init__(self, config: Config, clock: Clock) -> None:
        listen, limits = config.listen, config.listen.limits
        self._certified = listen.certified
        limited = AccessMemory(config.access_memory, config.tokens).limited
        self._tokens = TokenAuthenticator(
            TokenStore(config.tokens), clock, loopback=listen.loopback and not listen.certified and not limited
        )
        self._roles = listen.tls.roles if listen.tls is not None else {}
        self._feedback_from: Collection[str] = frozenset(listen.feedback_from)
        self._wrong = ClientLimit(limits.wrong_tokens, limits.wrong_tokens_burst, clock)
        self._calls = ClientLimit(limits.admin, limits.admin_burst, clock)
        self._brakes = ClientLimit(limits.admin, limits.admin_burst, clock)
        self._labels = ClientLimit(limits.feedback, limits.feedback_burst, clock)
        self._warnings = ClientLimit(1 / WARN_EVERY_S, 1, clock)
        self.counters: Counter[str] = Counter()

    @property
    def open(self) -> bool:
        """Whether everyone on the machine is an operator: no tokens or roles of certificates are configured."""
        try:
            return self._tokens.open()
        except InvalidInput:
            return False

    def names(self) -> list[str]:
        """Names of callers that are known before they call: of tokens, and of certificates that settings name."""
        return sorted({*self._tokens.names(), *self._roles, *self._feedback_from})

    def token(self, number: str) -> Token | None:
        """Token by its id, None once it is revoked or expired; for sessions, which outlive the call."""
        return self._tokens.valid(number)

    def identify(self, caller: Credentials) -> Identity | None:
        """Identity of a caller; None for an anonymous one.

        Raises:
            Unauthenticated: its token is wrong.
            Overloaded: its token is wrong, and so were too many others from its address.
        """
        if caller.authorization:
            return self._by_token(caller)
        if caller.certificate:
            role = next((self._roles[name] for name in caller.certificate if name in self._roles), None)
            return Identity(caller.certificate, role, f"certificate {caller.certificate[0]}")
        return None

    def require_identity(self, caller: Credentials) -> Identity:
        """Identity of a caller that must not be anonymous.

        Raises:
            Unauthenticated, Overloaded: see `identify`.
        """
        found = self.identify(caller)
        if found is None:
            self.counters["nameless"] += 1
            raise Unauthenticated(NAMELESS + (CERTIFIED if self._certified else ""))
        return found

    def admit(self, caller: Credentials, *, brake: bool = False) -> Principal:
        """Principal of an admin call; the verb checks its role.

        Args:
            brake: whether the call is one that stops a candidate. Such calls have a limit of their own, so that a client
                that has used up the other one can still stop.

        Raises:
            Unauthenticated: it is anonymous, or its token is wrong.
            PermissionDenied: its certificate has no role.
            Overloaded: it calls too often.
        """
        if self._everyone(caller):
            return LOCAL
        identity = self.require_identity(caller)
        self._count(self._brakes if brake else self._calls, identity, 1, "admin calls")
        if identity.role is None:
            raise PermissionDenied(f"certificate {identity.names[0]} has no role; listen.tls.roles gives one")
        return Principal(identity.names[0], identity.role)

    def count_session(self, token: str, name: str, *, brake: bool = False) -> None:
        """Count a request of a browser's session against the limit of its token.

        Args:
            token: id of the session's token.
            name: of the token.

        Raises:
            Overloaded: the token is used too often.
        """
        identity = Identity((name,), None, f"token {token}", token)
        self._count(self._brakes if brake else self._calls, identity, 1, "admin calls")

    def admit_override(self, caller: Credentials, allowed: bool | Collection[str]) -> None:
        """Check that a caller may choose the arm; `allowed`: the endpoint's setting `overrides`.

        Raises:
            Unauthenticated, PermissionDenied, Overloaded: it may not.
        """
        if self._everyone(caller):
            return
        identity = self.require_identity(caller)
        if identity.role is not Role.OPERATOR and (isinstance(allowed, bool) or not identity.among(allowed)):
            raise PermissionDenied(
                f"{identity.names[0]} may not choose the arm; the endpoint's setting `overrides` says who"
            )

    def admit_feedback(self, caller: Credentials) -> Identity:
        """Identity of a caller that sends feedback.

        Raises:
            Unauthenticated, PermissionDenied, Overloaded: its labels are refused.
        """
        identity = self.require_identity(caller)
        if self._feedback_from and not identity.among(self._feedback_from):
            raise PermissionDenied(f"labels of {identity.names[0]} are not taken; listen.feedback_from says whose are")
        return identity

    def count_labels(self, identity: Identity, predictions: int) -> None:
        """Count feedback against the caller's limit.

        Raises:
            Overloaded: this client has sent too much.
        """
        self._count(self._labels, identity, max(1, predictions), "labels")

    def _everyone(self, caller: Credentials) -> bool:
        # Who shows a token of ours or a certificate wants it to count: a wrong one is refused on an open machine too.
        return self.open and not caller.certificate and not is_token(caller.authorization)

    def _by_token(self, caller: Credentials) -> Identity:
        # The secret is looked at first, which costs one hash: a right one passes whatever others sent from its address.
        try:
            token = self._tokens.find(caller.authorization)
        except Unauthenticated:
            self._count_wrong(caller.address)
            raise
        return Identity((token.name,), token.role, f"token {token.id}", token.id)

    def _count_wrong(self, address: str) -> None:
        seconds = self._wrong.take(client_of_address(address))
        if seconds == 0:
            self.counters["wrong_token"] += 1
            return
        self.counters["many_wrong_tokens"] += 1
        if self._warnings.take("") == 0:
            log.warning(
                "many wrong tokens, the last from %s; baton_callers_refused_total counts them",
                address or "this machine",
            )
        raise Overloaded("too many wrong tokens came from this address; try again later", seconds)

    def _count(self, limit: ClientLimit, identity: Identity, cost: int, what: str) -> None:
        if (seconds := limit.take(identity.client, cost)) > 0:
            self.counters[f"many_{what.replace(' ', '_')}"] += 1
            raise Overloaded(
                f"too many {what} of {identity.names[0]}; listen.limits says how many there may be", seconds
            )
