"""Exceptions that callers may see, as one tree.

A class names *what* is wrong, not how it is reported: the table from class to gRPC code and HTTP status is in
`serving.wire.errors`. Every message names the field, file or argument at fault and what to change.
"""

from __future__ import annotations

__all__ = [
    "BatonError",
    "BundleError",
    "Conflict",
    "Damaged",
    "DataError",
    "DeadlineExceeded",
    "Diverged",
    "InvalidInput",
    "LogFull",
    "NotFinite",
    "NotFound",
    "NotReady",
    "Overloaded",
    "PermissionDenied",
    "RemoteFault",
    "RemoteTimeout",
    "RemoteUnavailable",
    "StaleVersion",
    "Unauthenticated",
]


class BatonError(Exception):
    """Root of everything that Baton raises on purpose."""


class InvalidInput(BatonError):
    """A request, file or argument breaks its contract.

    Args:
        message: what is wrong and what to change.
        field: the field, input or column at fault, where there is one.
    """

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class BundleError(InvalidInput):
    """A bundle is damaged, unsafe or of another schema than it must be."""


class DataError(InvalidInput):
    """A data set descriptor or the files that it names cannot be used."""


class Damaged(InvalidInput):
    """Bytes on disk are not those that were written."""


class Diverged(InvalidInput):
    """A model in training has logits that are not finite, or far too large."""


class NotFinite(BatonError):
    """A model's score of a request is NaN or infinite, so it has no answer to it."""


class NotFound(BatonError):
    """No endpoint, model, version or prediction has that name."""


class NotReady(BatonError):
    """Nothing can answer yet, or no longer; another replica may."""


class LogFull(NotReady):
    """The traffic log takes no more, so that others have room in its store."""


class RemoteUnavailable(NotReady):
    """The server of a remote arm cannot be reached, is overloaded, or is not asked since it failed before."""


class Overloaded(BatonError):
    """A bounded queue or quota is full. `retry_after` is in seconds."""

    def __init__(self, message: str, retry_after: float = 0.1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineExceeded(BatonError):
    """The caller's deadline passed, in a queue or during the work."""


class RemoteTimeout(DeadlineExceeded):
    """The server of a remote arm did not answer within its time limit or the caller's deadline."""


class RemoteFault(BatonError):
    """The server of a remote arm refuses the request, or its answer cannot be used."""


class Conflict(BatonError):
    """The state that exists does not allow this change."""


class StaleVersion(BatonError):
    """The writer's resource version is older than the stored one."""


class Unauthenticated(BatonError):
    """No token, or an unknown one."""


class PermissionDenied(BatonError):
    """A known caller that lacks the required role."""
