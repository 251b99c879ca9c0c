"""HTTP application of the control process: REST admin under `/api/v1`, `/metrics`, `/healthz`, `/readyz`.

A thin shell over `serving.admin`; the routes are in `verbs`. `port` authenticates every request before it gets here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from fastapi import FastAPI, Header, Response
from fastapi.responses import JSONResponse

from serving.admin import Admin
from serving.config.principal import PrincipalSource
from serving.http.errors import add_error_handlers
from serving.http.verbs import admin_routes
from serving.telemetry import METRICS_DIR, Format, merged

__all__ = ["build_app"]

T = TypeVar("T")


def build_app(admin: Admin, home: Path, authenticator: PrincipalSource) -> FastAPI:
    """Build the application.

    Args:
        home: of the installation; the processes write their metrics there.
        authenticator: of callers of admin verbs.
    """
    app = _Api(
        title="Baton admin",
        version="1",
        openapi_url="/api/openapi.json",
        docs_url=None,  # its page would run scripts of other sites beside the console's sessions
        redoc_url=None,
        description="Endpoints, models, rollouts, metrics and audit of one installation.",
    )
    add_error_handlers(app)
    _health(app, admin, home)
    app.include_router(admin_routes(admin, authenticator))
    return app


class _Api(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document without FastAPI's own 422: a malformed request gets 400 as every other wrong one."""
        if self.openapi_schema is None:
            document = super().openapi()
            for path in document["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
            for name in ("HTTPValidationError", "ValidationError"):
                document["components"]["schemas"].pop(name, None)
        assert self.openapi_schema is not None
        return self.openapi_schema


def _health(app: FastAPI, admin: Admin, home: Path) -> None:
    shared_ready: _Shared[tuple[bool, list[str]]] = _Shared()
    shared_metrics: dict[Format, _Shared[bytes]] = {form: _Shared() for form in Format}

    @app.get("/healthz", tags=["health"])
    async def healthz() -> dict[str, str]:
        """Whether this process lives."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["health"], responses={503: {"description": "Some do not; `missing` names them"}})
    async def readyz() -> JSONResponse:
        """Whether all lanes answer."""
        ready, missing = await shared_ready.get(admin.reports.ready)
        return JSONResponse({"ready": ready, "missing": missing}, 200 if ready else 503)

    @app.get("/metrics", tags=["health"], response_class=Response)
    async def metrics(accept: Annotated[str, Header()] = "") -> Response:
        """All processes' figures: as OpenMetrics with exemplars where it is asked for, else as Prometheus' text."""
        form = Format.of(accept)
        found = await shared_metrics[form].get(lambda: merged(home / METRICS_DIR, form))
        return Response(found, media_type=form.value)


class _Shared(Generic[T]):
    """Result that one thread at a time works out, however many ask for it: strangers may ask."""

    def __init__(self) -> None:
        self._working: asyncio.Future[T] | None = None

    async def get(self, work: Callable[[], T]) -> T:
        """The result of `work`, which has begun now or is in progress."""
        if self._working is None or self._working.done():
            self._working = asyncio.ensure_future(asyncio.to_thread(work))
        return await asyncio.shield(self._working)
