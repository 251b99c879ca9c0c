"""Visitors of the pages. The principal is checked at every update and action, so an ended session sees nothing more."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from pipeline.errors import BatonError, NotReady, PermissionDenied, Unauthenticated
from serving.config.principal import Principal, Role
from serving.security.authenticator import Authenticator, Credentials
from serving.security.session import Sessions

__all__ = ["Visitor", "Visitors"]


class Visitors:
    """Visitors of one installation. The port has admitted the request already, but a page outlives its request."""

    def __init__(self, authenticator: Authenticator, sessions: Sessions) -> None:
        self.authenticator, self.sessions = authenticator, sessions

    def of(self, request: Request) -> Visitor:
        """Visitor of a page request."""
        cookie = request.cookies.get(self.sessions.cookie, "")
        names = request.scope.get("extensions", {}).get("baton.names", ())
        address = request.client.host if request.client else ""
        return Visitor(self, cookie, Credentials(request.headers.get("authorization", ""), address, names))


@dataclass(frozen=True, slots=True)
class Visitor:
    """User with an open page: known by a session's cookie, or by the credentials of the request (a client certificate)."""

    visitors: Visitors
    cookie: str
    caller: Credentials

    def principal(self) -> Principal:
        """Principal of the visitor now.

        Raises:
            Unauthenticated: the session has ended. PermissionDenied: a certificate without a role.
            NotReady: the store of sessions does not answer.
        """
        found = self.visitors.sessions.who(self.cookie)
        if found is not None:
            return found
        if not (self.caller.authorization or self.caller.certificate):
            raise Unauthenticated("your session has ended; sign in again")
        identity = self.visitors.authenticator.require_identity(self.caller)
        if identity.role is None:
            raise PermissionDenied(f"certificate {identity.names[0]} has no role")
        return Principal(identity.names[0], identity.role)

    @property
    def operator(self) -> bool:
        """Whether the visitor is an operator now."""
        try:
            return self.principal().role is Role.OPERATOR
        except BatonError:
            return False

    @property
    def csrf(self) -> str:
        """CSRF value that changing requests must send; empty without a session."""
        try:
            session = self.visitors.sessions.find(self.cookie)
        except NotReady:
            return ""
        return session.csrf if session is not None else ""

    @property
    def signed_in(self) -> bool:
        """Whether the visitor has a session to sign out of."""
        return bool(self.csrf) and not self.visitors.authenticator.open

    def leave(self) -> None:
        """Sign out."""
        self.visitors.sessions.end(self.cookie)
