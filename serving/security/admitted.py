"""Principal of the running call: the port sets it before the handler runs, the handler reads it."""

from __future__ import annotations

from contextvars import ContextVar

from pipeline.errors import Unauthenticated
from serving.config.principal import Principal

__all__ = ["Admitted", "admitted"]

admitted: ContextVar[Principal | None] = ContextVar("admitted", default=None)
"""Principal of the running call; None: an anonymous call where none is needed."""


class Admitted:
    """The `PrincipalSource` behind a guarded port, which has checked token, certificate or session already."""

    def authenticate(self, authorization: str) -> Principal:
        """The principal that the port admitted.

        Raises:
            Unauthenticated: the call is anonymous.
        """
        found = admitted.get()
        if found is None:
            raise Unauthenticated("this takes a token; make one with `baton token create`")
        return found
