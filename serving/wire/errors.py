"""The error table: class of exception to gRPC code and HTTP status. And a gRPC error with rich details, made from it.

Details travel as `google.rpc.Status` in `grpc-status-details-bin`: the field at fault, when to try again, and the class of
the error as a reason for programs. An exception that is not in the table is a fault of this server: the caller gets a
request id only, and the log has the rest under it.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import NamedTuple

import grpc
from google.rpc import error_details_pb2, status_pb2

from pipeline.errors import (
    BatonError,
    Conflict,
    DeadlineExceeded,
    InvalidInput,
    NotFinite,
    NotFound,
    NotReady,
    Overloaded,
    PermissionDenied,
    RemoteFault,
    StaleVersion,
    Unauthenticated,
)

__all__ = [
    "DETAILS_KEY",
    "DOMAIN",
    "ERRORS",
    "INTERNAL",
    "Codes",
    "Failure",
    "code_of",
    "codes_of",
    "cut",
    "failure_of",
]

log = logging.getLogger(__name__)

MESSAGE_BYTES = 1000
"""Most of a message, in UTF-8: with its details it must fit into the 8 KiB of metadata that clients of gRPC take."""
LONG_LETTERS = 160
NAME_LETTERS = 80
"""What is shown of a word or quoted name of more than `LONG_LETTERS`."""
_LONG = re.compile(rf"'[^'\n]{{{LONG_LETTERS},}}'|\"[^\"\n]{{{LONG_LETTERS},}}\"|\S{{{LONG_LETTERS},}}")
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code not in (9, 10)}
DOMAIN = "baton"
DETAILS_KEY = "grpc-status-details-bin"


class Codes(NamedTuple):
    """How one class of exception is reported; its kind (gRPC's reason, HTTP's `kind`) is the name of the class."""

    code: grpc.StatusCode
    status: int


# The first class that an exception is an instance of counts, so a subclass would go before its parent.
ERRORS: dict[type[BatonError], Codes] = {
    InvalidInput: Codes(grpc.StatusCode.INVALID_ARGUMENT, 400),
    Unauthenticated: Codes(grpc.StatusCode.UNAUTHENTICATED, 401),
    PermissionDenied: Codes(grpc.StatusCode.PERMISSION_DENIED, 403),
    NotFound: Codes(grpc.StatusCode.NOT_FOUND, 404),
    Conflict: Codes(grpc.StatusCode.FAILED_PRECONDITION, 409),
    StaleVersion: Codes(grpc.StatusCode.ABORTED, 412),
    Overloaded: Codes(grpc.StatusCode.RESOURCE_EXHAUSTED, 429),
    NotReady: Codes(grpc.StatusCode.UNAVAILABLE, 503),
    DeadlineExceeded: Codes(grpc.StatusCode.DEADLINE_EXCEEDED, 504),
    NotFinite: Codes(grpc.StatusCode.INTERNAL, 500),
    RemoteFault: Codes(grpc.StatusCode.INTERNAL, 502),
}
INTERNAL = Codes(grpc.StatusCode.INTERNAL, 500)
"""Of every other exception; its kind is `Internal`."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed call as gRPC carries it. `details` is a serialized `google.rpc.Status`."""

    code: grpc.StatusCode
    message: str
    details: bytes

    @property
    def metadata(self) -> tuple[tuple[str, bytes], ...]:
        """Trailing metadata that carries the details."""
        return ((DETAILS_KEY, self.details),)


def codes_of(error: BaseException) -> Codes | None:
    """The row of the table for an exception; None where it is not in the table."""
    return next((codes for kind, codes in ERRORS.items() if isinstance(error, kind)), None)


def code_of(error: BaseException) -> str:
    """Name of an exception's gRPC code, for metrics."""
    return (codes_of(error) or INTERNAL).code.name


def cut(text: str) -> str:
    r"""A message or the name of a field as callers get it: long names in it and the whole are cut, and say so.

    >>> cut("no endpoint " + repr("x" * 1_000_000)) == "no endpoint '" + "x" * 80 + "…'"
    True
    >>> cut("no endpoint a\x1b[2J")
    'no endpoint a\\x1b[2J'
    """
    if len(text) <= LONG_LETTERS and text.isprintable():
        return text
    text = _LONG.sub(_cut_name, text[: 1 << 20]).translate(_CONTROL)
    raw = text.encode(errors="replace")
    if len(raw) <= MESSAGE_BYTES:
        return raw.decode()
    half = MESSAGE_BYTES // 2  # what to change often stands at the end
    return f"{raw[:half].decode(errors='ignore')} … {raw[-half:].decode(errors='ignore')}"


def _cut_name(found: re.Match[str]) -> str:
    name = found[0]
    quote = name[0] if name[0] == name[-1] and name[0] in "'\"" else ""
    return f"{name[: NAME_LETTERS + len(quote)]}…{quote}"


def failure_of(error: BaseException, request_id: str, trace_id: str = "") -> Failure:
    """The gRPC error of an exception. One that is not in the table is logged with its stack trace.

    Args:
        error: what was raised.
        request_id: named by an INTERNAL error, so that the log entry can be found.
        trace_id: of the call, where it is traced; for the log.
    """
    codes, field = codes_of(error), ""
    if codes is None:
        about = {"request_id": request_id, "trace_id": trace_id}
        log.error("request %s failed", request_id, exc_info=error, extra=about)
        code, message, reason = INTERNAL.code, f"internal error; request id {request_id}", "Internal"
    else:
        code, message, reason = codes.code, cut(str(error)), type(error).__name__
        field = cut(getattr(error, "field", ""))
    status = status_pb2.Status(code=code.value[0], message=message)
    info = error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata={"request_id": request_id})
    status.details.add().Pack(info)
    if isinstance(error, InvalidInput):
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=message)
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, Overloaded):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(int(error.retry_after * 1e9))
        status.details.add().Pack(retry)
    return Failure(code, message, status.SerializeToString())
