"""Calls in progress on the gRPC admin port: bounded for each caller, and those that stop a candidate counted apart."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pipeline.clock import SystemClock
from serving.config import Config
from serving.config.principal import Role
from serving.security.authenticator import Authenticator
from serving.security.interceptor import MAX_CLIENT_CALLS, AdmitInterceptor
from serving.security.tokens import TokenStore
from serving.services.admin import brake_methods
from serving.services.health import HealthServicer
from serving.wire.errors import DETAILS_KEY

SLOW, STOP = "/test.Slow/Wait", "/baton.admin.v1.Endpoints/Kill"


def test_one_caller_fills_no_port(tmp_path: Path) -> None:
    config = Config.model_validate({"home": tmp_path})
    made = {
        name: TokenStore(config.tokens).create(name, Role.VIEWER, SystemClock().wall_ms())[1] for name in ("ann", "bob")
    }
    assert STOP in brake_methods()
    asyncio.run(_fill(Authenticator(config, SystemClock()), made))


async def _fill(authenticator: Authenticator, tokens: dict[str, str]) -> None:
    go_on = asyncio.Event()

    async def wait(_: Any, context: Any) -> bytes:
        await go_on.wait()
        return b"done"

    async def stop(_: Any, context: Any) -> bytes:
        return b"stopped"

    server = grpc.aio.server(interceptors=[AdmitInterceptor(authenticator, brake_methods())])
    for method, handler in ((SLOW, wait), (STOP, stop)):
        _, service, name = method.split("/")
        handlers = {name: grpc.stream_unary_rpc_method_handler(handler)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:

        def call(method: str, who: str) -> Any:
            metadata = (("authorization", f"Bearer {tokens[who]}"),)
            return channel.unary_unary(method)(b"", metadata=metadata, timeout=30)

        calls = [asyncio.ensure_future(_code(call(SLOW, "ann"))) for _ in range(MAX_CLIENT_CALLS + 5)]
        done: set[Any] = set()
        while len(done) < 5:
            done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED, timeout=20)
            await asyncio.sleep(0)
        for code, details in [one.result() for one in done]:
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert any(any_.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for any_ in details.details)
        assert await call(STOP, "ann") == b"stopped"
        other = asyncio.ensure_future(_code(call(SLOW, "bob")))
        go_on.set()
        assert (await other)[0] is grpc.StatusCode.OK
        codes = [(await one)[0] for one in calls]
        assert codes.count(grpc.StatusCode.OK) == MAX_CLIENT_CALLS
        assert (await _code(call(SLOW, "ann")))[0] is grpc.StatusCode.OK, "those that have ended are not counted"
    await server.stop(0)


def test_health_can_be_watched(tmp_path: Path) -> None:
    asyncio.run(_watch(Authenticator(Config.model_validate({"home": tmp_path}), SystemClock())))


async def _watch(authenticator: Authenticator) -> None:
    server = grpc.aio.server(interceptors=[AdmitInterceptor(authenticator)])
    health = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watched = stub.Watch(health_pb2.HealthCheckRequest(), timeout=30)
        for status in (health_pb2.HealthCheckResponse.NOT_SERVING, health_pb2.HealthCheckResponse.SERVING):
            await health.set("", status)
            while (await watched.read()).status != status:  # the first answer may be older
                pass
        watched.cancel()
    await server.stop(0)


async def _code(call: Any) -> tuple[grpc.StatusCode, status_pb2.Status]:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        (details,) = [value for key, value in error.trailing_metadata() or () if key == DETAILS_KEY]
        return error.code(), status_pb2.Status.FromString(bytes(details))
    return grpc.StatusCode.OK, status_pb2.Status()
