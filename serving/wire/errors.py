"""The one table from what went wrong to the gRPC code that tells it, with rich details.

Details travel as `google.rpc.Status` in `grpc-status-details-bin`: which field was at fault, when to try again, a
reason that programs can match. What is our own fault says nothing but a request id; the log has the rest under it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import grpc
from google.rpc import error_details_pb2, status_pb2

from pipeline.errors import (
    BatonError,
    Conflict,
    DeadlineExceeded,
    InvalidInput,
    NotFound,
    NotReady,
    Overloaded,
    PermissionDenied,
    StaleVersion,
    Unauthenticated,
)

__all__ = ["CODES", "DOMAIN", "Failure", "code_of", "failure_of"]

log = logging.getLogger(__name__)

DOMAIN = "baton"
DETAILS_KEY = "grpc-status-details-bin"

# The first class that an exception is an instance of counts, so subclasses would stand before their parents.
CODES: dict[type[BatonError], grpc.StatusCode] = {
    InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    NotFound: grpc.StatusCode.NOT_FOUND,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    NotReady: grpc.StatusCode.UNAVAILABLE,
    Conflict: grpc.StatusCode.FAILED_PRECONDITION,
    StaleVersion: grpc.StatusCode.ABORTED,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
}


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure as the wire tells it. `details` is a serialized `google.rpc.Status`."""

    code: grpc.StatusCode
    message: str
    details: bytes

    @property
    def metadata(self) -> tuple[tuple[str, bytes], ...]:
        """Trailing metadata that carries the details."""
        return ((DETAILS_KEY, self.details),)


def code_of(error: BaseException) -> str:
    """Name of the code that an exception is told as, for metrics."""
    return next((code for kind, code in CODES.items() if isinstance(error, kind)), grpc.StatusCode.INTERNAL).name


def failure_of(error: BaseException, request_id: str, trace_id: str = "") -> Failure:
    """How to tell an exception. One that is not ours is logged here with its stack trace, and only its id leaves.

    Args:
        error: what was raised.
        request_id: what an INTERNAL answer names, so that the caller's report finds the log entry.
        trace_id: of the call, where it is traced; for the log.
    """
    code = next((code for kind, code in CODES.items() if isinstance(error, kind)), None)
    if code is None:
        about = {"request_id": request_id, "trace_id": trace_id}
        log.error("request %s failed", request_id, exc_info=error, extra=about)
        return _failure(grpc.StatusCode.INTERNAL, f"internal error; request id {request_id}", "Internal", request_id)
    if not isinstance(error, BatonError):
        raise TypeError(f"{type(error).__name__} is in the table of codes and is no BatonError")
    return _failure(code, str(error), type(error).__name__, request_id, error)


def _failure(
    code: grpc.StatusCode, message: str, reason: str, request_id: str, error: BatonError | None = None
) -> Failure:
    status = status_pb2.Status(code=code.value[0], message=message)
    info = error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata={"request_id": request_id})
    status.details.add().Pack(info)
    if isinstance(error, InvalidInput):
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=message)
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, Overloaded):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(int(error.retry_after * 1e9))
        status.details.add().Pack(retry)
    return Failure(code, message, status.SerializeToString())
