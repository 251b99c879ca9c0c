"""Whom the port has let in: set before a call's handler runs, read by whoever asks who calls."""

from __future__ import annotations

from contextvars import ContextVar

from pipeline.errors import Unauthenticated
from serving.config.principal import Principal

__all__ = ["Admitted", "admitted"]

admitted: ContextVar[Principal | None] = ContextVar("admitted", default=None)
"""The principal of the call that runs; None: it did not say who it is, and need not have."""


class Admitted:
    """The `PrincipalSource` behind a guarded port: it has been asked already, by token, certificate or session."""

    def authenticate(self, authorization: str) -> Principal:
        """The principal that was let in.

        Raises:
            Unauthenticated: nobody was.
        """
        found = admitted.get()
        if found is None:
            raise Unauthenticated("this takes a token; make one with `baton token create`")
        return found
