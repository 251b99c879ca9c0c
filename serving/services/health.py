"""`grpc.health.v1.Health`: "" for the server, a name per service, and a name per arm such as `ranker/stable`.

A drain begins with NOT_SERVING for everything, so that balancers choose another server first.
"""

from __future__ import annotations

from typing import Any

from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from protos.inference import SERVICE as INFERENCE
from serving.lane.served import Snapshot
from serving.services.ranking import SERVICE as RANKING
from serving.wire import endings

__all__ = ["Health", "HealthServicer"]

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class HealthServicer(health.aio.HealthServicer):  # type: ignore[misc] # the package has no types
    """gRPC's own, whose refusals hold no stream of their connection."""

    def __init__(self) -> None:
        super().__init__()
        self.Check = endings.single(super().Check)


class Health:
    """Health service that follows the registry."""

    def __init__(self) -> None:
        self._servicer = HealthServicer()
        self._published: dict[str, Any] = {}

    async def attach(self, server: Any) -> None:
        """Add the service to a server; everything is NOT_SERVING until `update`."""
        for name in ("", INFERENCE, RANKING):
            await self._set(name, False)
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def update(self, snapshot: Snapshot) -> None:
        """Publish what can answer. The server is ready when every endpoint's stable arm is."""
        ready = is_ready(snapshot)
        for name in ("", INFERENCE, RANKING):
            await self._set(name, ready)
        arms = {
            f"{name}/{arm}": served.arm(arm) is not None and not (arm == "candidate" and served.killed)
            for name, served in snapshot.endpoints.items()
            for arm in ("stable", "candidate")
            if (spec := served.endpoint.stable if arm == "stable" else served.endpoint.candidate) is not None
            and not spec.observed
        }
        gone = [name for name in self._published if "/" in name and name not in arms]
        for name, up in {**arms, **dict.fromkeys(gone, False)}.items():
            await self._set(name, up)

    async def drain(self) -> None:
        """Set NOT_SERVING for good."""
        await self._servicer.enter_graceful_shutdown()

    async def _set(self, name: str, up: bool) -> None:
        if self._published.get(name) is not up:
            self._published[name] = up
            await self._servicer.set(name, _SERVING if up else _NOT_SERVING)


def is_ready(snapshot: Snapshot) -> bool:
    """Whether something can answer, and every endpoint's stable arm can, here or elsewhere."""
    if snapshot.endpoints:
        return all(
            served.stable is not None or served.endpoint.stable.observed for served in snapshot.endpoints.values()
        )
    return bool(snapshot.models)
