"""Who looks at a page: asked anew at every update and act, so that a session that ended or a revoked token sees no more."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from pipeline.errors import BatonError, PermissionDenied, Unauthenticated
from serving.config.principal import Principal, Role
from serving.security.authenticator import Authenticator, Credentials
from serving.security.session import Sessions

__all__ = ["Visitor", "Visitors"]


class Visitors:
    """Of one installation. The port has let them in already; a page outlives the request that was let in."""

    def __init__(self, authenticator: Authenticator, sessions: Sessions) -> None:
        self.authenticator, self.sessions = authenticator, sessions

    def of(self, request: Request) -> Visitor:
        """Who asks for a page."""
        cookie = request.cookies.get(self.sessions.cookie, "")
        names = request.scope.get("extensions", {}).get("baton.names", ())
        address = request.client.host if request.client else ""
        return Visitor(self, cookie, Credentials(request.headers.get("authorization", ""), address, names))


@dataclass(frozen=True, slots=True)
class Visitor:
    """Somebody with a page open: by a session's cookie, or as every request of his says (a client certificate)."""

    visitors: Visitors
    cookie: str
    caller: Credentials

    def principal(self) -> Principal:
        """Who it is now.

        Raises:
            Unauthenticated: nobody any more. PermissionDenied: a certificate without a role.
        """
        found = self.visitors.sessions.who(self.cookie)
        if found is not None:
            return found
        if not (self.caller.authorization or self.caller.certificate):
            raise Unauthenticated("your session has ended; sign in again")
        known = self.visitors.authenticator.known(self.caller)
        if known.role is None:
            raise PermissionDenied(f"certificate {known.names[0]} has no role")
        return Principal(known.names[0], known.role)

    @property
    def operator(self) -> bool:
        """Whether he may act, as of now."""
        try:
            return self.principal().role is Role.OPERATOR
        except BatonError:
            return False

    @property
    def csrf(self) -> str:
        """What his requests that change something have to send; empty without a session."""
        session = self.visitors.sessions.find(self.cookie)
        return session.csrf if session is not None else ""

    @property
    def signed_in(self) -> bool:
        """Whether there is a session to sign out of."""
        return bool(self.csrf) and not self.visitors.authenticator.open

    def leave(self) -> None:
        """Sign out."""
        self.visitors.sessions.end(self.cookie)
