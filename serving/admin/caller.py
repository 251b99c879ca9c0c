"""Principal of a call, from its headers or metadata."""

from __future__ import annotations

from pipeline.errors import InvalidInput
from serving.config.principal import Principal, PrincipalSource
from serving.security.tokens import LOCAL

__all__ = ["ACTOR", "KEY", "caller"]

ACTOR = "x-baton-actor"
"""Header with the caller's name for the audit, where no token is needed."""
KEY = "idempotency-key"
"""Header of the idempotency key."""


def caller(authenticator: PrincipalSource, authorization: str, actor: str) -> Principal:
    """Principal of a call. Without tokens everyone on this machine is an operator and may name itself.

    Raises:
        Unauthenticated: see `PrincipalSource`. InvalidInput: the name is too long.
    """
    found = authenticator.authenticate(authorization)
    if found is not LOCAL or not actor:
        return found
    if len(actor) > 200:
        raise InvalidInput(f"{ACTOR}: 200 characters at most", ACTOR)
    return Principal(actor, LOCAL.role)
