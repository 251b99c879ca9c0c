"""Permissions on the data plane.

The checks of a method are chosen once, when its handler is made: where everyone may rank, a request is not checked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline.errors import BatonError
from pipeline.traffic.log import ACCEPTED, FeedbackReply
from serving.config import Config
from serving.config.principal import Role
from serving.security.authenticator import Authenticator
from serving.services.rpc import Call

__all__ = ["Access"]


class Access:
    """Permissions of one lane.

    Attributes:
        rank: check before a ranking request is read; None: everyone may rank.
        label: check before feedback is read; None: everyone may send it.
    """

    def __init__(self, config: Config, authenticator: Authenticator) -> None:
        self._authenticator = authenticator
        self._overrides = {name: endpoint.overrides for name, endpoint in config.endpoints.items()}
        self._observe = frozenset(name for name, endpoint in config.endpoints.items() if endpoint.observe)
        listen = config.listen
        self.rank: Callable[[Call], None] | None = self._identify if listen.ranking == "identified" else None
        self.label: Callable[[Call], None] | None = self._labeller if listen.identified_feedback else None

    def operate(self, call: Call) -> None:
        """Check before a change of the repository.

        Raises:
            Unauthenticated, PermissionDenied, Overloaded: the caller is no operator.
        """
        self._authenticator.admit(call.caller).require(Role.OPERATOR)

    def override(self, endpoint: str, call: Call) -> None:
        """Check of a caller that chooses the arm of an endpoint.

        Raises:
            Unauthenticated, PermissionDenied, Overloaded: the caller may not.
        """
        self._authenticator.admit_override(call.caller, self._overrides.get(endpoint, False))

    def may_tell(self, endpoint: str) -> bool:
        """Whether predictions may be told for arms of an endpoint that are served here."""
        return endpoint in self._observe

    def labels(self, call: Call, predictions: int) -> None:
        """Count the labels of an identified caller.

        Raises:
            Overloaded: the caller sends too many.
        """
        if call.identity is not None:
            self._authenticator.count_labels(call.identity, predictions)

    def caller(self, call: Call, replies: Sequence[FeedbackReply] | None = None) -> str:
        """Name of a caller whose request failed, "" where it has not said who it is.

        Args:
            replies: to its labels; one whose labels were all accepted is not looked up.
        """
        identity = call.identity
        if identity is None:
            if replies is not None and all(s == ACCEPTED for r in replies for s in (*r.exposed, *r.outcomes)):
                return ""
            try:
                identity = self._authenticator.identify(call.caller)
            except BatonError:  # a wrong token, which is counted where tokens are
                return ""
        return "" if identity is None else identity.names[0]

    def _identify(self, call: Call) -> None:
        call.identity = self._authenticator.require_identity(call.caller)

    def _labeller(self, call: Call) -> None:
        call.identity = self._authenticator.admit_feedback(call.caller)
