"""`baton.admin.v1` on its own port: every method is the verb of its name, so one handler serves all of them.

Messages have the fields of `serving.admin.requests` and `answers`; a test checks that the types of both agree.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from protos.baton.admin.v1 import admin_pb2 as pb
from serving.admin import VERBS, Admin, Verb
from serving.admin.answers import Answer
from serving.admin.caller import ACTOR, KEY, caller
from serving.admin.door import request_of
from serving.admin.verbs import BRAKES
from serving.admin.watch import Watchers
from serving.config.principal import Principal, PrincipalSource
from serving.services.health import HealthServicer
from serving.services.rpc import CONNECTION_OPTIONS, Call, Method, Shell, hard_limit, parse, serve

__all__ = ["CONNECTION_CALLS", "SERVICES", "AdminServer", "AdminServices", "brake_methods", "verb_of"]

SERVICES: dict[str, Any] = {service.full_name: service for service in pb.DESCRIPTOR.services_by_name.values()}
"""Descriptors by full name."""
THREADS = 8
CONNECTION_CALLS = 256
"""Concurrent calls on one connection; the client's library delays further ones."""
IDLE_MS = 300_000
"""Time after which a connection without calls is ended: clients open another one when they need it."""
METADATA_BYTES = 16 << 10
_SERVING = health_pb2.HealthCheckResponse.SERVING


def brake_methods() -> list[str]:
    """Full names of the methods of `serving.admin.verbs.BRAKES`, as gRPC has them: /PACKAGE.SERVICE/METHOD."""
    return [
        f"/{name}/{method.name}"
        for name, service in SERVICES.items()
        for method in service.methods
        if verb_of(service.name, method.name) in BRAKES
    ]


def verb_of(service: str, method: str) -> Verb[Any, Any]:
    """The verb behind a method: `SetWeight` of `Rollouts` is `rollouts.set_weight`."""
    words = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in method).lstrip("_")
    return VERBS[f"{service.lower()}.{words}"]


class AdminServices:
    """All services of the package.

    Args:
        authenticator: of callers.
    """

    def __init__(self, admin: Admin, authenticator: PrincipalSource, shell: Shell) -> None:
        self._admin = admin
        self._authenticator = authenticator
        self._shell = shell
        self._watchers = Watchers(admin)
        # Verbs read files and wait for locks, which must not block the loop.
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="admin-grpc")

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """The services for a gRPC server."""
        return [
            serve(name, {method.name: self._handler(name, method) for method in service.methods})
            for name, service in SERVICES.items()
        ]

    def close(self) -> None:
        """End the threads once their calls are done."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _handler(self, service: str, method: Any) -> grpc.RpcMethodHandler[Any, Any]:
        verb = verb_of(method.containing_service.name, method.name)
        message = GetMessageClass(method.input_type)
        answer = GetMessageClass(method.output_type)

        def role(call: Call) -> None:
            self._caller(call).require(verb.role)  # before the message is read: who may not act learns nothing

        if verb.streams:
            stream = self._bulk if verb.bulk else self._watch
            return self._shell.feed(f"{service}/{method.name}", stream(verb, message, answer), role)

        return self._shell.unary(f"{service}/{method.name}", self._unary(verb, message, answer), admission=role)

    def _unary(self, verb: Verb[Any, Any], message: Any, answer: type[Message]) -> Method:
        threads = self._admin.brake_threads if verb in BRAKES else self._threads

        async def handle(data: bytes, call: Call) -> bytes:
            def act() -> bytes:
                by = self._caller(call)
                request = request_of(verb, _fields(parse(message, data)))
                return _written(self._admin.call(verb, request, by, call.header(KEY)), answer)

            context = copy_context()  # it may hold the caller
            return await asyncio.get_running_loop().run_in_executor(threads, context.run, act)

        return handle

    def _watch(
        self, verb: Verb[Any, Any], message: Any, answer: type[Message]
    ) -> Callable[[bytes, Call], AsyncGenerator[bytes]]:
        async def handle(data: bytes, call: Call) -> AsyncGenerator[bytes]:
            self._caller(call).require(verb.role)
            request = request_of(verb, _fields(parse(message, data)))
            async for found in self._watchers.watch(request, lambda: self._caller(call)):
                yield _written(found, answer)

        return handle

    def _bulk(self, verb: Verb[Any, Any], message: Any, answer: Any) -> Callable[[bytes, Call], AsyncGenerator[bytes]]:
        async def handle(data: bytes, call: Call) -> AsyncGenerator[bytes]:
            by = self._caller(call)
            by.require(verb.role)
            request = request_of(verb, _fields(parse(message, data)))
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(self._threads, self._admin.bulk, verb, request, by)
            try:
                while chunk := await loop.run_in_executor(self._threads, found.read):
                    self._caller(call)  # a token that was revoked meanwhile gets nothing more
                    yield answer(data=chunk).SerializeToString()
            finally:
                found.close()

        return handle

    def _caller(self, call: Call) -> Principal:
        return caller(self._authenticator, call.header("authorization"), call.header(ACTOR))


class AdminServer:
    """gRPC server of the admin port, with health and reflection. For one event loop.

    Args:
        address: host:port; port 0 takes a free one.
        authenticator: of callers.
        interceptors: of all methods, also of reflection.
        credentials: of TLS; None: none.
        connections: most at once; further ones are closed.

    Attributes:
        port: the port in use.
    """

    def __init__(
        self,
        admin: Admin,
        authenticator: PrincipalSource,
        shell: Shell,
        address: str,
        *,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        credentials: grpc.ServerCredentials | None = None,
        connections: int = 1000,
    ) -> None:
        self._connections = connections
        self._services = AdminServices(admin, authenticator, shell)
        self._address = address
        self._interceptors = interceptors
        self._credentials = credentials
        self._limit = hard_limit(shell.max_bytes)
        self._health = HealthServicer()
        self.port = 0

    async def start(self) -> None:
        """Listen. Raises: OSError, RuntimeError: the port is taken."""
        self._server = grpc.aio.server(
            interceptors=list(self._interceptors),
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", self._limit),
                ("grpc.max_send_message_length", self._limit),
                *CONNECTION_OPTIONS,
                ("grpc.max_allowed_incoming_connections", self._connections),
                ("grpc.max_connection_idle_ms", IDLE_MS),
                ("grpc.max_concurrent_streams", CONNECTION_CALLS),
                ("grpc.max_metadata_size", METADATA_BYTES),
            ],
        )
        self._server.add_generic_rpc_handlers(tuple(self._services.handlers()))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        if self._credentials is None:
            self.port = self._server.add_insecure_port(self._address)
        else:
            self.port = self._server.add_secure_port(self._address, self._credentials)
        await self._server.start()
        for name in ("", *SERVICES):
            await self._health.set(name, _SERVING)

    async def stop(self, grace: float = 3.0) -> None:
        """Set NOT_SERVING, then finish the calls in progress within `grace` seconds."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace)
        await asyncio.to_thread(self._services.close)


def _fields(message: Message) -> dict[str, Any]:
    """Set fields by name."""
    return {
        field.name: json_format.MessageToDict(value, preserving_proto_field_name=True) if field.message_type else value
        for field, value in message.ListFields()
    }


def _written(answer: Answer, kind: type[Message]) -> bytes:
    message = json_format.ParseDict(answer.model_dump(exclude_none=True), kind())
    return message.SerializeToString()
