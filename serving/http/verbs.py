"""REST routes of the admin verbs under `/api/v1`, one each. A route only maps path, query and body to the verb's fields."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute

from serving.admin import Admin
from serving.admin import answers as a
from serving.admin import requests as r
from serving.admin import verbs as v
from serving.admin.bulk import BulkAnswer
from serving.admin.watch import Watchers
from serving.config.principal import PrincipalSource, Role
from serving.http.ask import Ask, asker, changer
from serving.http.errors import REFUSALS, problem_of

__all__ = ["admin_routes", "is_brake"]

Name = Annotated[str, Path(min_length=1, max_length=200)]
LINES = "application/x-ndjson"
PARQUET = "application/vnd.apache.parquet"
TAR = "application/x-tar"
_BRAKES = re.compile(
    r"POST /api/v1/(endpoints/[^/]+/kill|rollouts/[^/]+/(abort|undo|set-weight))|PUT /api/v1/endpoints/[^/]+"
)


def is_brake(method: str, path: str) -> bool:
    """Whether a request is for one of `serving.admin.verbs.BRAKES`."""
    return _BRAKES.fullmatch(f"{method} {path}") is not None


def _role_first(authenticator: PrincipalSource) -> type[APIRoute]:
    """Routes that look at the caller's role before anything that the caller sent: who may not act learns nothing."""

    class Route(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()
            role = Role.VIEWER if self.methods == {"GET"} else Role.OPERATOR

            async def admitted(request: Request) -> Response:
                authenticator.authenticate(request.headers.get("authorization", "")).require(role)
                return await handle(request)

            return admitted

    return Route


def admin_routes(admin: Admin, authenticator: PrincipalSource) -> APIRouter:
    """All routes."""
    routes = APIRouter(prefix="/api/v1", responses=REFUSALS, route_class=_role_first(authenticator))
    reads = Depends(asker(admin, authenticator))
    changes = Depends(changer(admin, authenticator))
    _endpoints(routes, reads, changes)
    _models(routes, reads, changes)
    _rollouts(routes, reads, changes)
    _watch(routes, reads, Watchers(admin))
    _processes(routes, reads, changes)
    _figures(routes, reads, changes)
    return routes


def _endpoints(routes: APIRouter, reads: Ask, changes: Ask) -> None:
    @routes.get("/endpoints", tags=["endpoints"])
    def list_endpoints(query: Annotated[r.EndpointList, Query()], ask: Ask = reads) -> a.EndpointPage:
        """All endpoints by name."""
        return ask(v.ENDPOINTS_LIST, query)

    @routes.get("/endpoints/{name}", tags=["endpoints"])
    def get_endpoint(name: Name, ask: Ask = reads) -> a.Endpoint:
        """One endpoint."""
        return ask(v.ENDPOINTS_GET, name=name)

    @routes.put("/endpoints/{name}", tags=["endpoints"])
    async def set_endpoint(name: Name, body: r.EndpointChange, ask: Ask = changes) -> a.Endpoint:
        """Make or change an endpoint that no rollout owns."""
        return await ask.at_once(v.ENDPOINTS_SET, body, name=name)

    @routes.post("/endpoints/{name}/pin", tags=["endpoints"])
    def pin_endpoint(name: Name, body: r.Pin, ask: Ask = changes) -> a.Endpoint:
        """Let the stable arm answer with one version, or follow the newest again; also while a rollout runs."""
        return ask(v.ENDPOINTS_PIN, body, name=name)

    @routes.post("/endpoints/{name}/kill", tags=["endpoints"])
    async def kill_endpoint(name: Name, body: r.Mutation, ask: Ask = changes) -> a.Endpoint:
        """Send all traffic to stable at once and abort the rollout."""
        return await ask.at_once(v.ENDPOINTS_KILL, body, name=name)

    @routes.post("/endpoints/{name}/release", tags=["endpoints"])
    def release_endpoint(name: Name, body: r.Release, ask: Ask = changes) -> a.Endpoint:
        """Take the kill switch back; traffic returns only by a rollout or a weight."""
        return ask(v.ENDPOINTS_RELEASE, body, name=name)


def _models(routes: APIRouter, reads: Ask, changes: Ask) -> None:
    @routes.get("/models", tags=["models"])
    def list_models(query: Annotated[r.ModelList, Query()], ask: Ask = reads) -> a.ModelPage:
        """Every version in the repository, by bundle and number."""
        return ask(v.MODELS_LIST, query)

    @routes.post("/models/{bundle}/load", tags=["models"])
    def load_model(bundle: Name, body: r.ModelChange, ask: Ask = changes) -> a.ModelLoaded:
        """Load a bundle's newest version in all lanes, so that it answers under its own name."""
        return ask(v.MODELS_LOAD, body, bundle=bundle)

    @routes.post("/models/{bundle}/unload", tags=["models"])
    def unload_model(bundle: Name, body: r.ModelChange, ask: Ask = changes) -> a.ModelLoaded:
        """Undo a load; versions that an endpoint's arm needs stay."""
        return ask(v.MODELS_UNLOAD, body, bundle=bundle)

    @routes.post("/models/{bundle}/warm", tags=["models"])
    def warm_model(bundle: Name, body: r.ModelChange, ask: Ask = changes) -> a.ModelLoaded:
        """The same as a load, which never skips the warm-up requests."""
        return ask(v.MODELS_WARM, body, bundle=bundle)

    @routes.post("/models/{bundle}/retire", tags=["models"])
    def retire_model(bundle: Name, body: r.Retire, ask: Ask = changes) -> a.Retired:
        """Keep a version from every arm that follows the newest, and from new rollouts; `restore` takes that back."""
        return ask(v.MODELS_RETIRE, body, bundle=bundle)


def _rollouts(routes: APIRouter, reads: Ask, changes: Ask) -> None:
    @routes.get("/rollouts", tags=["rollouts"])
    def list_rollouts(query: Annotated[r.RolloutList, Query()], ask: Ask = reads) -> a.RolloutPage:
        """All rollouts, oldest first, without figures."""
        return ask(v.ROLLOUTS_LIST, query)

    @routes.post("/rollouts", tags=["rollouts"])
    def start_rollout(body: r.RolloutFile, ask: Ask = changes) -> a.Rollout:
        """Begin a rollout."""
        return ask(v.ROLLOUTS_START, body)

    @routes.get("/rollouts/{name}", tags=["rollouts"])
    def get_rollout(name: Name, ask: Ask = reads) -> a.Rollout:
        """One rollout, by id or the newest of an endpoint, with its figures per stay at a step."""
        return ask(v.ROLLOUTS_GET, name=name)

    @routes.post("/rollouts/{name}/pause", tags=["rollouts"])
    def pause_rollout(name: Name, body: r.Steer, ask: Ask = changes) -> a.Rollout:
        """Stay at this step even when the evidence allows the next; breaches still step back."""
        return ask(v.ROLLOUTS_PAUSE, body, name=name)

    @routes.post("/rollouts/{name}/resume", tags=["rollouts"])
    def resume_rollout(name: Name, body: r.Steer, ask: Ask = changes) -> a.Rollout:
        """Go on by evidence."""
        return ask(v.ROLLOUTS_RESUME, body, name=name)

    @routes.post("/rollouts/{name}/promote", tags=["rollouts"])
    def promote_rollout(name: Name, body: r.SteerForward, ask: Ask = changes) -> a.Rollout:
        """Enter the next step, or the last; `force`: without its evidence."""
        return ask(v.ROLLOUTS_PROMOTE, body, name=name)

    @routes.post("/rollouts/{name}/approve", tags=["rollouts"])
    def approve_rollout(name: Name, body: r.Steer, ask: Ask = changes) -> a.Rollout:
        """Let a step with `approve: true` be entered on its evidence; 409 where nothing waits for approval."""
        return ask(v.ROLLOUTS_APPROVE, body, name=name)

    @routes.post("/rollouts/{name}/abort", tags=["rollouts"])
    async def abort_rollout(name: Name, body: r.Steer, ask: Ask = changes) -> a.Rollout:
        """All traffic to stable, and the end of this rollout."""
        return await ask.at_once(v.ROLLOUTS_ABORT, body, name=name)

    @routes.post("/rollouts/{name}/undo", tags=["rollouts"])
    async def undo_rollout(name: Name, body: r.Steer, ask: Ask = changes) -> a.Rollout:
        """Take a finished hand-over back: stable answers all traffic again."""
        return await ask.at_once(v.ROLLOUTS_UNDO, body, name=name)

    @routes.post("/rollouts/{name}/set-weight", tags=["rollouts"])
    async def set_weight(name: Name, body: r.SteerWeight, ask: Ask = changes) -> a.Rollout:
        """Set the weight by hand; the rollout pauses there."""
        return await ask.at_once(v.ROLLOUTS_SET_WEIGHT, body, name=name)

    @routes.post("/freeze", tags=["rollouts"])
    def freeze(body: r.FreezeUntil, ask: Ask = changes) -> a.Freeze:
        """Let nothing move in any rollout until a time, but kill, abort and step back."""
        return ask(v.ROLLOUTS_FREEZE, body)

    @routes.post("/freeze/lift", tags=["rollouts"])
    def lift_freeze(body: r.Lift, ask: Ask = changes) -> a.Freeze:
        """End the freeze."""
        return ask(v.ROLLOUTS_LIFT, body)


def _watch(routes: APIRouter, reads: Ask, watchers: Watchers) -> None:
    line: dict[str, Any] = {"content": {LINES: {"schema": {"type": "string"}}}}
    responses: dict[int | str, dict[str, Any]] = {200: {**line, "description": "a `Rollout` per line, as JSON"}}

    @routes.get("/rollouts/{name}/watch", tags=["rollouts"], response_class=StreamingResponse, responses=responses)
    async def watch_rollout(
        request: Request,
        name: Name,
        interval: Annotated[float, Query(ge=0.2, le=60, description="seconds between two looks")] = 1.0,
        ask: Ask = reads,
    ) -> StreamingResponse:
        """The rollout now and after every change, until it has ended: a JSON object per line.

        An error on the way is the last line, in the form of an error body.
        """
        found = watchers.watch(r.RolloutWatch(name=name, interval=interval), ask.by)
        first = await anext(found)  # refused before the status is sent, if at all

        async def lines() -> AsyncIterator[str]:
            yield first.model_dump_json() + "\n"
            try:
                async for rollout in found:
                    yield rollout.model_dump_json() + "\n"
            except Exception as error:
                _, problem = problem_of(error, request.url.path)
                yield problem.model_dump_json() + "\n"
            finally:
                await found.aclose()

        return StreamingResponse(lines(), media_type=LINES)


def _processes(routes: APIRouter, reads: Ask, changes: Ask) -> None:
    @routes.get("/processes", tags=["processes"])
    def list_processes(ask: Ask = reads) -> a.ProcessList:
        """State of every process of this machine, and the restart that was ordered last."""
        return ask(v.PROCESSES_LIST)

    @routes.post("/processes/{process}/restart", tags=["processes"])
    def restart_process(process: Name, body: r.Mutation, ask: Ask = changes) -> a.Restart:
        """Order the supervisor to start a process again, or `all`, one after another; `GET /processes` has the progress."""
        return ask(v.PROCESSES_RESTART, body, process=process)


def _figures(routes: APIRouter, reads: Ask, changes: Ask) -> None:
    @routes.get("/metrics/{endpoint}", tags=["figures"])
    def metrics(endpoint: Name, ask: Ask = reads) -> a.Metrics:
        """Bias with its limits, AUC, LogLoss and rows per arm of an endpoint's newest rollout."""
        return ask(v.METRICS_GET, endpoint=endpoint)

    @routes.get("/status", tags=["figures"])
    def processes(ask: Ask = reads) -> a.Processes:
        """Reports of every process, and the state of the traffic log."""
        return ask(v.METRICS_PROCESSES)

    @routes.get("/health", tags=["figures"])
    def health(ask: Ask = reads) -> a.Health:
        """Facts of the installation: what is well, what needs a person, what cannot be told."""
        return ask(v.METRICS_HEALTH)

    @routes.get("/worker", tags=["figures"])
    def worker(ask: Ask = reads) -> a.Worker:
        """State of the transfer worker: its learning, the versions it published, the versions the gate refused and why."""
        return ask(v.WORKER_STATUS)

    @routes.get("/cache", tags=["figures"])
    def cache(ask: Ask = reads) -> a.Cache:
        """Embedding tiers: lookups by tier, content of Redis, progress of a run that loads rows."""
        return ask(v.CACHE_STATS)

    @routes.post("/cache/{name}/warm", tags=["figures"])
    def warm_cache(name: Name, body: r.Warm, ask: Ask = changes) -> a.CacheWarming:
        """Begin to write a version's rows into Redis; `/cache` has the progress."""
        return ask(v.CACHE_WARM, body, name=name)

    _bulk(routes, changes)

    @routes.get("/log/holds", tags=["log"])
    def holds(ask: Ask = reads) -> a.HoldList:
        """Routing keys whose records stay, by the hash of each."""
        return ask(v.LOG_HOLDS)

    @routes.post("/log/hold", tags=["log"])
    def hold(body: r.LogHold, ask: Ask = changes) -> a.Hold:
        """Keep all records of a user from retention and from being forgotten."""
        return ask(v.LOG_HOLD, body)

    @routes.post("/log/release", tags=["log"])
    def release_hold(body: r.LogRelease, ask: Ask = changes) -> a.Hold:
        """End a hold."""
        return ask(v.LOG_RELEASE, body)

    @routes.post("/log/forget", tags=["log"])
    def forget(body: r.LogForget, ask: Ask = changes) -> a.Forgotten:
        """Delete all records of a user from the traffic log."""
        return ask(v.LOG_FORGET, body)

    @routes.get("/audit", tags=["audit"])
    def audit(query: Annotated[r.AuditList, Query()], ask: Ask = reads) -> a.AuditPage:
        """Who changed what, when, why and on which evidence."""
        return ask(v.AUDIT_LIST, query)

    @routes.get("/audit/{seq}/explain", tags=["audit"])
    def explain(
        seq: Annotated[int, Path(ge=1, le=r.LARGEST_VERSION)], rows: bool = False, ask: Ask = reads
    ) -> a.Explanation:
        """Figures of a verdict, as it used them and computed again from its sums; `rows`: from the traffic log."""
        return ask(v.AUDIT_EXPLAIN, seq=seq, rows=rows)


def _bulk(routes: APIRouter, changes: Ask) -> None:
    def file(kind: str) -> dict[str, Any]:
        content = {kind: {"schema": {"type": "string", "format": "binary"}}}
        return {
            "response_class": StreamingResponse,
            "responses": {200: {"content": content, "description": "the file"}},
        }

    @routes.post("/log/export", tags=["log"], **file(PARQUET))
    async def export(body: r.LogExport, ask: Ask = changes) -> StreamingResponse:
        """Labelled rows as a Parquet file, made while it is read; one bulk answer at a time."""
        return await _streamed(lambda: ask.bulk(v.LOG_EXPORT, body), PARQUET)

    @routes.post("/backup", tags=["log"], **file(TAR))
    async def backup(body: r.BackupMake, ask: Ask = changes) -> StreamingResponse:
        """A backup of the installation as a tar archive, with its secret key; one bulk answer at a time."""
        return await _streamed(lambda: ask.bulk(v.BACKUPS_MAKE, body), TAR)


async def _streamed(begin: Callable[[], BulkAnswer], kind: str) -> StreamingResponse:
    """A response with the bytes of an answer; one that ends early is cut off, which its reader sees."""
    answer = await asyncio.to_thread(begin)
    try:
        first = await asyncio.to_thread(answer.read)  # refused before the status is sent, if at all
    except BaseException:
        answer.close()
        raise

    async def chunks() -> AsyncIterator[bytes]:
        try:
            chunk = first
            while chunk:
                yield chunk
                chunk = await asyncio.to_thread(answer.read)
        finally:
            answer.close()

    return StreamingResponse(chunks(), media_type=kind)
