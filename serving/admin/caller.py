"""From a request's headers or metadata to the principal that every verb takes."""

from __future__ import annotations

from pipeline.errors import InvalidInput
from serving.config.principal import Principal, PrincipalSource
from serving.security.tokens import LOCAL

__all__ = ["ACTOR", "KEY", "caller"]

ACTOR = "x-baton-actor"
"""Header that says who asks, for the audit, where nobody needs a token."""
KEY = "idempotency-key"
"""Header of the idempotency key."""


def caller(authenticator: PrincipalSource, authorization: str, actor: str) -> Principal:
    """Who calls. Without configured tokens everyone on this machine is an operator and may say his name himself.

    Raises:
        Unauthenticated: see `PrincipalSource`. InvalidInput: the name is too long.
    """
    found = authenticator.authenticate(authorization)
    if found is not LOCAL or not actor:
        return found
    if len(actor) > 200:
        raise InvalidInput(f"{ACTOR}: 200 characters at most", ACTOR)
    return Principal(actor, LOCAL.role)
