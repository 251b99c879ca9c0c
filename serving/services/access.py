"""Who may do what on the data plane.

What a method needs is settled once, when its handler is made: where everyone may rank, there is nothing to ask for a
request and nothing is asked.
"""

from __future__ import annotations

from collections.abc import Callable

from serving.config import Config
from serving.config.principal import Role
from serving.security.authenticator import Authenticator
from serving.services.rpc import Call

__all__ = ["Access"]


class Access:
    """Of one lane.

    Attributes:
        rank: asked before a ranking request is read; None: everyone may rank.
        label: asked before feedback is read; None: everyone may send it.
    """

    def __init__(self, config: Config, authenticator: Authenticator) -> None:
        self._authenticator = authenticator
        self._overrides = {name: endpoint.overrides for name, endpoint in config.endpoints.items()}
        listen = config.listen
        self.rank: Callable[[Call], None] | None = self._identify if listen.ranking == "identified" else None
        self.label: Callable[[Call], None] | None = self._labeller if listen.identified_feedback else None

    def operate(self, call: Call) -> None:
        """Asked before the repository is changed.

        Raises:
            Unauthenticated, PermissionDenied, Overloaded: the caller is no operator.
        """
        self._authenticator.admit(call.caller).require(Role.OPERATOR)

    def override(self, endpoint: str, call: Call) -> None:
        """Asked when a caller chooses the arm of an endpoint that lets callers do so.

        Raises:
            Unauthenticated, PermissionDenied, Overloaded: it may not.
        """
        self._authenticator.admit_override(call.caller, self._overrides.get(endpoint, False))

    def labels(self, call: Call, predictions: int) -> None:
        """Count what a caller sends, where it had to say who it is.

        Raises:
            Overloaded: it is too much.
        """
        if call.identity is not None:
            self._authenticator.count_labels(call.identity, predictions)

    def _identify(self, call: Call) -> None:
        self._authenticator.require_identity(call.caller)

    def _labeller(self, call: Call) -> None:
        call.identity = self._authenticator.admit_feedback(call.caller)
