from __future__ import annotations

import logging

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from pipeline import errors
from serving.wire.errors import ERRORS, failure_of


def details(failure: object) -> status_pb2.Status:
    return status_pb2.Status.FromString(failure.details)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidInput("bad", "age"), grpc.StatusCode.INVALID_ARGUMENT),
        (errors.BundleError("bad", "age"), grpc.StatusCode.INVALID_ARGUMENT),
        (errors.NotFound("no"), grpc.StatusCode.NOT_FOUND),
        (errors.Overloaded("full", 1.5), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.DeadlineExceeded("late"), grpc.StatusCode.DEADLINE_EXCEEDED),
        (errors.NotReady("later"), grpc.StatusCode.UNAVAILABLE),
        (errors.Conflict("no"), grpc.StatusCode.FAILED_PRECONDITION),
        (errors.StaleVersion("old"), grpc.StatusCode.ABORTED),
        (errors.NotFinite("NaN"), grpc.StatusCode.INTERNAL),
        (errors.Unauthenticated("who"), grpc.StatusCode.UNAUTHENTICATED),
        (errors.PermissionDenied("no"), grpc.StatusCode.PERMISSION_DENIED),
    ],
)
def test_each_exception_has_its_code_and_reason(error: errors.BatonError, code: grpc.StatusCode) -> None:
    failure = failure_of(error, "r1")
    assert failure.code is code
    assert failure.message == str(error)
    status = details(failure)
    assert (status.code, status.message) == (code.value[0], str(error))
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain, info.metadata["request_id"]) == (type(error).__name__, "baton", "r1")


def test_every_exception_of_the_tree_is_in_the_table() -> None:
    for kind in errors.BatonError.__subclasses__():
        assert kind in ERRORS


def test_invalid_input_names_the_field_and_overload_says_when_to_retry() -> None:
    violation = error_details_pb2.BadRequest()
    assert details(failure_of(errors.InvalidInput("bad age", "age"), "r")).details[1].Unpack(violation)
    assert [(v.field, v.description) for v in violation.field_violations] == [("age", "bad age")]
    retry = error_details_pb2.RetryInfo()
    assert details(failure_of(errors.Overloaded("full", 1.5), "r")).details[1].Unpack(retry)
    assert retry.retry_delay.ToNanoseconds() == 1_500_000_000


def test_our_fault_tells_an_id_and_logs_the_rest(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        failure = failure_of(KeyError("secret detail"), "r42")
    assert failure.code is grpc.StatusCode.INTERNAL
    assert "r42" in failure.message
    assert "secret" not in failure.message
    assert b"secret" not in failure.details
    assert "r42" in caplog.text
    assert "secret detail" in caplog.text


def test_names_are_cut_and_what_to_change_is_kept() -> None:
    failure = failure_of(errors.InvalidInput(f"no endpoint {'x' * 1_000_000!r}; make one", "n" * 100_000), "r")
    assert failure.message == f"no endpoint '{'x' * 80}…'; make one"
    words = failure_of(errors.NotFound("no version " + "ü b " * 10_000 + "; publish one"), "r")
    assert words.message.startswith("no version ü b ")
    assert words.message.endswith("; publish one")
    assert failure_of(errors.NotFound("no endpoint a\x1b[2J\x9b"), "r").message == "no endpoint a\\x1b[2J\\x9b"
    for cut in (failure, words):
        assert len(cut.details) < 4096, "it fits into the metadata that clients take"
