"""Error body of HTTP, and the handlers that write it. Statuses are from the error table in `serving.wire.errors`."""

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

from pipeline.errors import BatonError, Overloaded, Unauthenticated
from serving.wire.errors import ERRORS, INTERNAL, codes_of, cut

__all__ = ["REFUSALS", "Problem", "add_error_handlers", "problem_of"]

log = logging.getLogger(__name__)

_KINDS = {codes.status: kind.__name__ for kind, codes in ERRORS.items()} | {405: "MethodNotAllowed"}


class ProblemDetail(BaseModel):
    kind: str = Field(description="class of the error, for programs")
    message: str = Field(description="what is wrong and what to change")
    field: str = Field("", description="field at fault, where there is one")
    request_id: str = Field("", description="names an internal error in the server's log")


class Problem(BaseModel):
    """Body of every answer with a status of 400 or more."""

    error: ProblemDetail


_DESCRIPTIONS = {
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
    status: {"model": Problem, "description": description} for status, description in _DESCRIPTIONS.items()
}
"""Errors that every admin verb may return, for the OpenAPI document."""


def problem_of(error: Exception, what: str) -> tuple[int, Problem]:
    """Status and body of an exception. One that is not in the error table is logged, and the body has its id only.

    Args:
        what: method and path of the request, for the log.
    """
    codes = codes_of(error)
    if codes is not None:
        return codes.status, _problem(type(error).__name__, str(error), getattr(error, "field", ""))
    request_id = uuid.uuid4().hex
    log.error("request %s: %s failed", request_id, what, exc_info=error)
    message = f"internal error; the log has it under request id {request_id}"
    return INTERNAL.status, _problem("Internal", message, "", request_id)


def add_error_handlers(app: FastAPI) -> None:
    """Write every exception as a `Problem`."""

    @app.exception_handler(BatonError)
    @app.exception_handler(Exception)
    async def refused(request: Request, error: Exception) -> JSONResponse:
        status, problem = problem_of(error, f"{request.method} {request.url.path}")
        headers = {"retry-after": str(math.ceil(error.retry_after))} if isinstance(error, Overloaded) else {}
        if isinstance(error, Unauthenticated):
            headers["www-authenticate"] = "Bearer"
        return JSONResponse(problem.model_dump(), status, headers)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        return JSONResponse(_problem("InvalidInput", f"{field}: {first['msg']}", field).model_dump(), 400)

    @app.exception_handler(HTTPException)
    async def unrouted(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {error.detail}"
        body = _problem(_KINDS.get(error.status_code, "InvalidInput"), message)
        headers = dict(error.headers or {})
        if methods := _methods(request) if error.status_code == 405 else ():
            headers["allow"] = ", ".join(sorted(methods))
        return JSONResponse(body.model_dump(), error.status_code, headers)


def _methods(request: Request) -> set[str]:
    """Methods of all routes of the path; the framework names those of the first route only."""
    return {
        method.upper()
        for path, operations in request.app.openapi()["paths"].items()
        if compile_path(path)[0].match(request.url.path)
        for method in operations
    }


def _problem(kind: str, message: str, field: str = "", request_id: str = "") -> Problem:
    return Problem(error=ProblemDetail(kind=kind, message=cut(message), field=cut(field), request_id=request_id))
