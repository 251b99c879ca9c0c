"""`inference.GRPCInferenceService`: the service of Triton and KServe clients, for endpoints and models.

A thin shell: formats are in `serving.wire.inference`, answers come from `serving.lane.dispatch`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

import grpc

from pipeline.errors import InvalidInput, NotFound, NotReady
from pipeline.event import Event
from protos.inference import SERVICE, methods
from serving.lane.dispatch import Dispatcher, ModelTally
from serving.rollout.routing import is_observed
from serving.services.access import Access
from serving.services.rpc import Call, Method, Shell, parse, serve
from serving.wire.candidates import take_candidate_ids
from serving.wire.inference import parameters_of, read_request
from serving.wire.ranking import candidate_hashes

__all__ = ["EXTENSIONS", "InferenceService"]

T = TypeVar("T", str, bool)
EXTENSIONS = ("model_repository", "statistics", "model_configuration")
OPERATED = ("RepositoryModelLoad", "RepositoryModelUnload")
PROBES = ("ServerLive", "ServerReady", "ModelReady")


class InferenceService:
    """All methods of the service.

    Args:
        access: permissions of callers.
        ready: whether the server takes requests; False before the first model and during a drain.
    """

    def __init__(self, dispatcher: Dispatcher, shell: Shell, access: Access, *, ready: Callable[[], bool]) -> None:
        self._dispatcher = dispatcher
        self._registry = dispatcher.registry
        self._shell = shell
        self._access = access
        self._clock = shell.clock
        self._ready = ready
        self._answers = {name: answer for name, (_, answer) in methods().items()}
        try:
            self._version = version("baton")
        except PackageNotFoundError:
            self._version = "unknown"

    def handler(self) -> grpc.GenericRpcHandler:
        """The service for a gRPC server."""
        calls: dict[str, Callable[[Any, Call], Awaitable[Any]]] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "RepositoryIndex": self._repository_index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }
        access = self._access
        infer = self._shell.unary(f"{SERVICE}/ModelInfer", self._infer, self._dispatcher.refusal, access.rank)
        handlers = {"ModelInfer": infer}
        for name, (request, _) in methods().items():
            if name in calls:
                admission = access.operate if name in OPERATED else None if name in PROBES else access.rank
                method = _parsed(request, calls[name])
                handlers[name] = self._shell.unary(f"{SERVICE}/{name}", method, admission=admission)
        return serve(SERVICE, handlers)

    async def _infer(self, data: bytes, call: Call) -> bytes:
        started = self._clock.monotonic()
        name = ""
        try:
            request, raw = read_request(data)
            name = request.model_name
            parameters = parameters_of(request)
            key = _parameter(parameters, "routing_key", "") or call.header("x-routing-key")
            arm = _parameter(parameters, "arm", "")
            target = self._dispatcher.route(name, request.model_version, key, arm)
            if arm:
                self._access.override(name, call)
            codec = target.served.infer
            call.trace = call.trace or _parameter(parameters, "trace", False)
            candidate_ids, raw = take_candidate_ids(request, raw, codec.fields, codec.max_candidates)
            first = request.inputs[0].shape if request.inputs else ()
            event = Event(
                request=request,
                decoder=lambda message, model: codec.decode(message, raw)[0],
                rows=first[0] if first else 0,
                priority=self._dispatcher.priority(parameters.get("priority", 0)),
                queue_timeout=_timeout(parameters),
                request_id=request.id,
                candidate_ids=candidate_hashes(candidate_ids),
                candidate_texts=candidate_ids,
                traceparent=call.traceparent,
            )
            target = await self._dispatcher.answer(
                target, event, started=started, seconds_left=call.seconds_left, routing_key=key
            )
            version = target.served.model.version
            answer_parameters = {"arm": event.arm, "version": version}
            if event.prediction_id:
                answer_parameters["prediction_id"] = event.prediction_id
            if event.degraded:
                answer_parameters["degraded"] = ",".join(event.degraded)
            call.event = event
            assert event.scores is not None
            return codec.encode(
                request,
                event.scores,
                raw=bool(raw) or len(request.raw_input_contents) > 0,
                version=version,
                parameters=answer_parameters,
            )
        except Exception as error:
            self._dispatcher.refused(name, error, self._access.caller(call))
            raise

    async def _server_live(self, request: Any, call: Call) -> Any:
        return self._answers["ServerLive"](live=True)

    async def _server_ready(self, request: Any, call: Call) -> Any:
        return self._answers["ServerReady"](ready=self._ready())

    async def _model_ready(self, request: Any, call: Call) -> Any:
        try:
            self._dispatcher.describe(request.name, request.version)
        except NotReady:
            return self._answers["ModelReady"](ready=False)
        except NotFound:
            if request.name not in self._registry.bundles():
                raise
            return self._answers["ModelReady"](ready=False)
        return self._answers["ModelReady"](ready=self._ready())

    async def _server_metadata(self, request: Any, call: Call) -> Any:
        return self._answers["ServerMetadata"](name="baton", version=self._version, extensions=EXTENSIONS)

    async def _model_metadata(self, request: Any, call: Call) -> Any:
        served = self._dispatcher.describe(request.name, request.version)
        versions = {behind.model.version for behind in self._behind(request.name, "")}
        return served.infer.metadata(request.name, sorted(versions, key=int))

    async def _model_config(self, request: Any, call: Call) -> Any:
        served = self._dispatcher.describe(request.name, request.version)
        return self._answers["ModelConfig"](config=served.infer.config(request.name))

    async def _model_statistics(self, request: Any, call: Call) -> Any:
        self._dispatcher.settle()
        wanted = {served.key for served in self._behind(request.name, request.version)}
        response = self._answers["ModelStatistics"]()
        for key in sorted(wanted, key=lambda k: (k[0], int(k[1]))):
            tally = self._dispatcher.tallies.get(key, ModelTally())
            name = request.name if request.name in self._registry.snapshot.endpoints else key[0]
            _statistics(response.model_stats.add(name=name, version=key[1]), tally)
        return response

    async def _repository_index(self, request: Any, call: Call) -> Any:
        response = self._answers["RepositoryIndex"]()
        reports = await asyncio.to_thread(self._registry.models)
        for report in reports:
            if report.state == "READY" or not request.ready:
                response.models.add(
                    name=report.bundle, version=report.version, state=report.state, reason=report.reason
                )
        for name, arms in self._registry.arms().items():
            stable = arms["stable"]
            if is_observed(stable.bundle):
                continue  # it takes no requests here
            if stable.state == "READY" or not request.ready:
                response.models.add(name=name, version=stable.version, state=stable.state, reason=stable.reason)
        return response

    async def _load(self, request: Any, call: Call) -> Any:
        if request.parameters:
            name = sorted(request.parameters)[0]
            raise InvalidInput(f"parameter {name!r}: a load takes no overrides of config or files", name)
        if request.model_name not in self._registry.snapshot.endpoints:
            await asyncio.to_thread(self._registry.load, request.model_name)
        return self._answers["RepositoryModelLoad"]()

    async def _unload(self, request: Any, call: Call) -> Any:
        if request.model_name in self._registry.snapshot.endpoints:
            raise InvalidInput(
                f"{request.model_name!r} is an endpoint; only models loaded by name can be unloaded", "model_name"
            )
        await asyncio.to_thread(self._registry.unload, request.model_name)
        return self._answers["RepositoryModelUnload"]()

    def _behind(self, name: str, version: str) -> list[Any]:
        """The models of an endpoint, or of a bundle called by name; all models when `name` is empty."""
        snapshot = self._registry.snapshot
        endpoint = snapshot.endpoints.get(name)
        if endpoint is not None:
            found = [s for s in (endpoint.stable, endpoint.candidate) if s is not None]
        else:
            found = [s for (bundle, _), s in snapshot.models.items() if name in ("", bundle)]
        found = [s for s in found if version in ("", s.model.version)]
        if name and not found:
            self._dispatcher.describe(name, version)  # raises the reason
        return found


def _parsed(request: Any, method: Callable[[Any, Call], Awaitable[Any]]) -> Method:
    async def call(data: bytes, context: Call) -> bytes:
        answer: bytes = (await method(parse(request, data), context)).SerializeToString()
        return answer

    return call


def _parameter(parameters: Mapping[str, Any], name: str, default: T) -> T:
    """A parameter of the kind of its default."""
    value = parameters.get(name, default)
    if not isinstance(value, type(default)):
        kind = "string" if isinstance(default, str) else "bool"
        raise InvalidInput(f"parameter {name!r} must be a {kind}", name)
    return value


def _timeout(parameters: Mapping[str, Any]) -> float:
    """Seconds of the parameter `timeout`, which is in microseconds; 0: none."""
    timeout = parameters.get("timeout", 0)
    if isinstance(timeout, (str, bool)) or not timeout >= 0:
        raise InvalidInput(f"parameter 'timeout' is a positive number of microseconds, not {timeout!r}", "timeout")
    return float(timeout) / 1e6


def _statistics(out: Any, tally: ModelTally) -> None:
    out.last_inference = tally.last_ms
    out.inference_count = tally.rows
    out.execution_count = tally.answered
    stats = out.inference_stats
    for part, count, seconds in (
        (stats.success, tally.answered, tally.seconds),
        (stats.fail, tally.failed, tally.failed_seconds),
        (stats.queue, tally.answered, tally.stages["queue"]),
        (stats.compute_input, tally.answered, tally.stages["decode"] + tally.stages["embed"]),
        (stats.compute_infer, tally.answered, tally.stages["infer"]),
        (stats.compute_output, tally.answered, tally.stages["record"]),
    ):
        part.count = count
        part.ns = round(seconds * 1e9)
