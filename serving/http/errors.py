"""The one error body of HTTP, and the one table from what went wrong to the status that tells it.

What is our own fault says nothing but a request id; the log has the rest under it. Its twin for gRPC: `serving.wire.errors`.
"""

from __future__ import annotations

import logging
import math
import uuid
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

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

__all__ = ["CODES", "REFUSALS", "Problem", "add_error_handlers", "problem_of"]

log = logging.getLogger(__name__)

CODES: dict[type[BatonError], int] = {
    InvalidInput: 400,
    Unauthenticated: 401,
    PermissionDenied: 403,
    NotFound: 404,
    Conflict: 409,
    StaleVersion: 412,
    Overloaded: 429,
    NotReady: 503,
    DeadlineExceeded: 504,
}
_KINDS = {code: kind.__name__ for kind, code in CODES.items()} | {405: "MethodNotAllowed"}


class ProblemDetail(BaseModel):
    kind: str = Field(description="class of the error, for programs")
    message: str = Field(description="what is wrong and what to change")
    field: str = Field("", description="field at fault, where there is one")
    request_id: str = Field("", description="names an internal error in the server's log")


class Problem(BaseModel):
    """Body of every answer with a status of 400 or more."""

    error: ProblemDetail


_TOLD = {
    400: "A field, a header or the file breaks its contract",
    401: "No token, or one that is not known",
    403: "The caller's role does not suffice, or another site's page asks",
    404: "No endpoint, model, version, rollout or entry has that name",
    405: "The path does not take this method",
    409: "The state that exists does not allow this change",
    412: "The resource has changed since the version that the caller looked at",
    429: "Too many calls; `retry-after` says when to come again",
    500: "Our fault; the log has it under the request id",
    503: "Nothing can answer yet",
    504: "The deadline has passed",
}
REFUSALS: dict[int | str, dict[str, Any]] = {
    code: {"model": Problem, "description": description} for code, description in _TOLD.items()
}
"""What any admin verb may answer besides what it is asked for, for the OpenAPI document."""


def problem_of(error: Exception, what: str) -> tuple[int, Problem]:
    """Status and body of an exception. One that is not ours is logged here, and only its id leaves.

    Args:
        what: was asked, for the log.
    """
    code = next((CODES[kind] for kind in type(error).__mro__ if kind in CODES), None)
    if code is not None:
        return code, _problem(type(error).__name__, str(error), getattr(error, "field", ""))
    request_id = uuid.uuid4().hex
    log.error("request %s: %s failed", request_id, what, exc_info=error)
    return 500, _problem("Internal", f"internal error; the log has it under request id {request_id}", "", request_id)


def add_error_handlers(app: FastAPI) -> None:
    """Have all that is raised told as a `Problem`."""

    @app.exception_handler(BatonError)
    @app.exception_handler(Exception)
    async def refused(request: Request, error: Exception) -> JSONResponse:
        code, problem = problem_of(error, f"{request.method} {request.url.path}")
        headers = {"retry-after": str(math.ceil(error.retry_after))} if isinstance(error, Overloaded) else {}
        if isinstance(error, Unauthenticated):
            headers["www-authenticate"] = "Bearer"
        return JSONResponse(problem.model_dump(), code, headers)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        return JSONResponse(_problem("InvalidInput", f"{field}: {first['msg']}", field).model_dump(), 400)

    @app.exception_handler(HTTPException)
    async def unrouted(request: Request, error: HTTPException) -> JSONResponse:
        said = f"{request.method} {request.url.path}: {error.detail}"
        body = _problem(_KINDS.get(error.status_code, "InvalidInput"), said)
        headers = dict(error.headers or {})
        if methods := _methods(request) if error.status_code == 405 else ():
            headers["allow"] = ", ".join(sorted(methods))
        return JSONResponse(body.model_dump(), error.status_code, headers)


def _methods(request: Request) -> set[str]:
    """What the path takes, by whichever of its routes; the framework names those of the first one alone."""
    return {
        method.upper()
        for path, operations in request.app.openapi()["paths"].items()
        if compile_path(path)[0].match(request.url.path)
        for method in operations
    }


def _problem(kind: str, message: str, field: str = "", request_id: str = "") -> Problem:
    return Problem(error=ProblemDetail(kind=kind, message=message, field=field, request_id=request_id))
