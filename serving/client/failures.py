"""Failed calls read: the exception by the error table, and whether the server may have processed the call."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from pipeline import errors
from pipeline.errors import BatonError, InvalidInput, Overloaded
from serving.wire.errors import DETAILS_KEY, DOMAIN, ERRORS, INTERNAL

__all__ = ["FailedCall", "Fate", "error_of", "failed_call"]

_KINDS = {codes.code: kind for kind, codes in ERRORS.items() if codes.code is not INTERNAL.code}
"""By gRPC's code. Faults of the server have INTERNAL, too; the reason tells them apart."""
_UNSENT = (
    "failed to connect to all addresses",
    "connections to all backends failing",
    "DNS resolution failed",
    "empty address list",
)
"""Beginnings of gRPC's messages for a call that never had a connection. They may change with its releases; an unknown
message counts as lost, which is repeated less."""


class Fate(Enum):
    """What became of a call that failed."""

    UNSENT = "unsent"
    """It was never sent."""
    REFUSED = "refused"
    """The server refuses it; another server may take it."""
    BUSY = "busy"
    """The server is overloaded and names the time of the next attempt."""
    LOST = "lost"
    """The connection broke; the server may have processed it or not."""
    LATE = "late"
    """No answer came until the deadline: the server may hang. There is no time for another attempt."""
    FINAL = "final"
    """Another attempt would fail in the same way."""


@dataclass(frozen=True, slots=True)
class FailedCall:
    """A failed call: its exception, and what is known of the request."""

    error: BatonError
    fate: Fate


def error_of(error: Any) -> BatonError:
    """The exception of a failed call (`grpc.RpcError`, sync or async)."""
    return failed_call(error).error


def failed_call(error: Any) -> FailedCall:
    """Exception and fate of a failed call (`grpc.RpcError`, sync or async)."""
    code, text = error.code(), error.details() or str(error.code())
    details = _Details(error)
    kind = _KINDS.get(code, BatonError)
    named = getattr(errors, details.reason, None)
    if isinstance(named, type) and issubclass(named, kind):
        kind = named  # a class below the code's
    if issubclass(kind, InvalidInput):
        return FailedCall(kind(text, details.field), Fate.FINAL)
    if issubclass(kind, Overloaded):
        if details.retry_after is None:  # gRPC's own limits: a message too large is no smaller the next time
            return FailedCall(kind(text), Fate.FINAL)
        return FailedCall(kind(text, details.retry_after), Fate.BUSY)
    if code is grpc.StatusCode.UNAVAILABLE:
        fate = Fate.REFUSED if details.ours else Fate.UNSENT if text.startswith(_UNSENT) else Fate.LOST
        return FailedCall(kind(text), fate)
    if code is grpc.StatusCode.CANCELLED and not details.ours:
        return FailedCall(kind(text), Fate.REFUSED)  # by a server that ends: no handler has seen it
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and not details.ours:
        return FailedCall(kind(text), Fate.LATE)
    return FailedCall(kind(text), Fate.FINAL)


class _Details:
    """Rich details of a failed call, where it has any."""

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
