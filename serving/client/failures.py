"""What a failed call means: the exception it stands for, and whether the server can have taken it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from pipeline import errors
from pipeline.errors import BatonError, InvalidInput, Overloaded
from serving.wire.errors import CODES, DETAILS_KEY, DOMAIN

__all__ = ["Failure", "Fate", "error_of", "failure_of"]

_KINDS = {code: kind for kind, code in CODES.items()}
_UNSENT = (
    "failed to connect to all addresses",
    "connections to all backends failing",
    "DNS resolution failed",
    "empty address list",
)
"""How gRPC's client begins to say that it never had a connection. Words may change with its releases; what is not
recognised counts as lost, which is repeated less."""


class Fate(Enum):
    """What became of a call that failed."""

    UNSENT = "unsent"
    """It never left."""
    REFUSED = "refused"
    """The server says that it cannot take it, and another may."""
    BUSY = "busy"
    """The server says when to come again."""
    LOST = "lost"
    """The connection broke; the server may have taken it or not."""
    FINAL = "final"
    """Again would be no better."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed call."""

    error: BatonError
    fate: Fate


def error_of(error: Any) -> BatonError:
    """The exception that a failed call stands for."""
    return failure_of(error).error


def failure_of(error: Any) -> Failure:
    """A failed call (`grpc.RpcError`, sync or async), read."""
    code, text = error.code(), error.details() or str(error.code())
    told = _Told(error)
    kind = _KINDS.get(code, BatonError)
    named = getattr(errors, told.reason, None)
    if isinstance(named, type) and issubclass(named, kind):
        kind = named  # a class below the code's
    if issubclass(kind, InvalidInput):
        return Failure(kind(text, told.field), Fate.FINAL)
    if issubclass(kind, Overloaded):
        if told.retry_after is None:  # gRPC's own limits: a message too large is no smaller the next time
            return Failure(kind(text), Fate.FINAL)
        return Failure(kind(text, told.retry_after), Fate.BUSY)
    if code is grpc.StatusCode.UNAVAILABLE:
        fate = Fate.REFUSED if told.ours else Fate.UNSENT if text.startswith(_UNSENT) else Fate.LOST
        return Failure(kind(text), fate)
    return Failure(kind(text), Fate.FINAL)


class _Told:
    """The rich details of a failed call, where it brought any."""

    def __init__(self, error: Any) -> None:
        self.reason = self.field = ""
        self.retry_after: float | None = None
        self.ours = False
        for key, value in error.trailing_metadata() or ():
            if key == DETAILS_KEY:
                self._read(value)

    def _read(self, data: bytes) -> None:
        try:
            details = status_pb2.Status.FromString(data).details
        except DecodeError:
            return
        for detail in details:
            if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
                info = error_details_pb2.ErrorInfo.FromString(detail.value)
                self.ours, self.reason = info.domain == DOMAIN, info.reason
            elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
                violations = error_details_pb2.BadRequest.FromString(detail.value).field_violations
                self.field = violations[0].field if violations else ""
            elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
                delay = error_details_pb2.RetryInfo.FromString(detail.value).retry_delay
                self.retry_after = delay.ToNanoseconds() / 1e9
