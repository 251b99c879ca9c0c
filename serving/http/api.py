"""HTTP of the control process: REST admin under `/api/v1`, `/metrics`, `/healthz`, `/readyz`.

A thin shell over `serving.admin`. Without tokens it answers on loopback only, and refuses requests whose Host is not a
loopback name (a page elsewhere that had its name resolved to us) or whose Origin is another site's.
"""

from __future__ import annotations

import ipaddress
import logging
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Header, Query, Request, Response
from fastapi import Path as PathParam
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

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
from serving.admin import Admin
from serving.telemetry import METRICS_DIR, Format, merged

__all__ = ["build_app"]

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
Actor = Annotated[str, Header(alias="x-baton-actor", max_length=200, description="who asks; written into the audit")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")

    reason: str = Field("", max_length=2000, description="why; written into the audit")


class ArmBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    bundle: str
    version: str = ""


class EndpointBody(_Body):
    stable: ArmBody
    candidate: ArmBody | None = None
    weight: float = Field(0.0, ge=0, le=100)
    salt: str = ""
    expected: int | None = Field(None, description="resource version that the caller looked at")


class RolloutBody(_Body):
    file: str = Field(description="the rollout file, as text", max_length=1 << 20)
    name: str = Field("rollout", description="stands for the file in messages")


class VerbBody(_Body):
    weight: float | None = Field(None, ge=0, le=100)
    full: bool = False
    expected: int | None = None


def build_app(admin: Admin, home: Path) -> FastAPI:
    """The application. `home`: where processes leave their metrics."""
    app = FastAPI(
        title="Baton admin",
        version="1",
        openapi_url="/api/openapi.json",
        docs_url="/api/docs",
        redoc_url=None,
        description="Endpoints, models, rollouts, metrics and audit of one installation.",
    )
    _guard(app)
    _errors(app)
    _health(app, admin, home)
    _endpoints(app, admin)
    _rollouts(app, admin)
    return app


def _guard(app: FastAPI) -> None:
    @app.middleware("http")
    async def loopback_only(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        origin = request.headers.get("origin")
        if not _loopback(f"//{request.headers.get('host', '')}") or (origin is not None and not _loopback(origin)):
            return _problem(
                403, "PermissionDenied", "only pages and programs of this machine may ask; check Host and Origin"
            )
        return await call(request)


def _loopback(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _errors(app: FastAPI) -> None:
    @app.exception_handler(BatonError)
    async def refused(request: Request, error: BatonError) -> JSONResponse:
        code = next((CODES[kind] for kind in type(error).__mro__ if kind in CODES), 500)
        return _problem(code, type(error).__name__, str(error), getattr(error, "field", ""))

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        return _problem(400, "InvalidInput", f"{field}: {first['msg']}", field)

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        request_id = uuid.uuid4().hex
        log.error("request %s: %s %s failed", request_id, request.method, request.url.path, exc_info=error)
        return _problem(500, "Internal", f"internal error; the log has it under request id {request_id}")


def _health(app: FastAPI, admin: Admin, home: Path) -> None:
    @app.get("/healthz", tags=["health"])
    def healthz() -> dict[str, str]:
        """Whether this process lives."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["health"])
    def readyz() -> JSONResponse:
        """Whether all lanes answer."""
        ready, missing = admin.ready()
        return JSONResponse({"ready": ready, "missing": missing}, 200 if ready else 503)

    @app.get("/metrics", tags=["health"])
    def metrics(accept: Annotated[str, Header()] = "") -> Response:
        """All processes' figures: as OpenMetrics with exemplars where it is asked for, else as Prometheus' text."""
        form = Format.of(accept)
        return Response(merged(home / METRICS_DIR, form), media_type=form.value)

    @app.get("/api/v1/status", tags=["status"])
    def status() -> dict[str, Any]:
        """What every process reports, and how the traffic log stands."""
        return admin.status()

    @app.get("/api/v1/cache", tags=["status"])
    def cache() -> dict[str, Any]:
        """Which embedding tier answers, and what Redis holds."""
        return admin.cache()


def _endpoints(app: FastAPI, admin: Admin) -> None:
    @app.get("/api/v1/endpoints", tags=["endpoints"])
    def endpoints() -> list[dict[str, Any]]:
        """All endpoints."""
        return admin.endpoints()

    @app.get("/api/v1/endpoints/{name}", tags=["endpoints"])
    def endpoint(name: str) -> dict[str, Any]:
        """One endpoint."""
        return admin.endpoint(name)

    @app.put("/api/v1/endpoints/{name}", tags=["endpoints"])
    def set_endpoint(name: str, body: EndpointBody, actor: Actor = "unknown") -> dict[str, Any]:
        """Make or change an endpoint that no rollout owns."""
        return admin.set_endpoint(
            name,
            body.stable.model_dump(),
            body.candidate.model_dump() if body.candidate else None,
            weight=body.weight,
            salt=body.salt,
            expected=body.expected,
            actor=actor,
            reason=body.reason,
        )

    @app.post("/api/v1/endpoints/{name}/kill", tags=["endpoints"])
    def kill(name: str, body: _Body, actor: Actor = "unknown") -> dict[str, Any]:
        """Empty the candidate at once and abort its rollout."""
        return admin.kill(name, actor=actor, reason=body.reason)

    @app.post("/api/v1/endpoints/{name}/release", tags=["endpoints"])
    def release(name: str, body: _Body, actor: Actor = "unknown") -> dict[str, Any]:
        """Take the kill switch back."""
        return admin.release(name, actor=actor, reason=body.reason)

    @app.get("/api/v1/models", tags=["models"])
    def models() -> list[dict[str, Any]]:
        """Every version in the repository."""
        return admin.models()


def _rollouts(app: FastAPI, admin: Admin) -> None:
    @app.get("/api/v1/rollouts", tags=["rollouts"])
    def rollouts() -> list[dict[str, Any]]:
        """All rollouts, oldest first."""
        return admin.rollouts()

    @app.post("/api/v1/rollouts", tags=["rollouts"])
    def start(body: RolloutBody, actor: Actor = "unknown") -> dict[str, Any]:
        """Begin a rollout."""
        return admin.start_rollout(body.file, name=body.name, actor=actor, reason=body.reason)

    @app.get("/api/v1/rollouts/{name}", tags=["rollouts"])
    def rollout(name: str) -> dict[str, Any]:
        """One rollout, by id or the newest of an endpoint, with its figures per step."""
        return admin.rollout(name)

    @app.post("/api/v1/rollouts/{name}/{verb}", tags=["rollouts"])
    def command(name: str, verb: str, body: VerbBody, actor: Actor = "unknown") -> dict[str, Any]:
        """pause, resume, promote, abort, undo, set-weight."""
        return admin.command(
            name, verb, actor=actor, reason=body.reason, weight=body.weight, full=body.full, expected=body.expected
        )

    @app.get("/api/v1/metrics/{endpoint}", tags=["rollouts"])
    def metrics(endpoint: str) -> dict[str, Any]:
        """Bias with its limits, AUC, LogLoss and rows per arm."""
        return admin.metrics(endpoint)

    @app.get("/api/v1/audit", tags=["audit"])
    def audit(
        endpoint: str = "",
        after: Annotated[int, Query(ge=0)] = 0,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    ) -> list[dict[str, Any]]:
        """Who changed what, when, why and on which evidence; oldest first."""
        return admin.audit(endpoint, after, limit)

    @app.get("/api/v1/audit/{seq}/explain", tags=["audit"])
    def explain(seq: Annotated[int, PathParam(ge=1)]) -> dict[str, Any]:
        """The figures of a verdict, as it used them and worked out again from the traffic log."""
        return admin.explain(seq)


def _problem(code: int, kind: str, message: str, field: str = "") -> JSONResponse:
    return JSONResponse({"error": {"kind": kind, "message": message, "field": field}}, code)
