"""Interceptor of the gRPC admin port: every method of every service except health needs a principal.

A refused call never reaches its handler. Handlers get the principal from `Admitted` and check the verb's role.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import ExitStack
from inspect import isawaitable
from typing import Any

import grpc

from pipeline.errors import BatonError
from serving.security.admitted import admitted
from serving.security.authenticator import Authenticator, Credentials
from serving.security.in_progress import InProgress
from serving.security.limits import client_of_address
from serving.security.tokens import LOCAL
from serving.wire import endings
from serving.wire.errors import failure_of

__all__ = ["AdmitInterceptor", "caller_of"]

OPEN = "/grpc.health.v1.Health/"
MAX_CALLS = 256
MAX_CLIENT_CALLS = 64
MAX_BRAKE_CALLS = 64
"""Calls at once that stop a candidate: counted apart, so that others never stand in their way."""
MAX_CLIENT_BRAKE_CALLS = 16
MAX_STREAMS = 128
"""Streams of answers at once, such as watchers and reflection."""
MAX_CLIENT_STREAMS = 32


class AdmitInterceptor(grpc.aio.ServerInterceptor):
    """Calls the authenticator before each call, and bounds the calls in progress.

    grpc's own bound (`maximum_concurrent_rpcs`) does not hold in asyncio servers (grpc/grpc#41531).

    Args:
        brakes: full names of the methods that stop a candidate.
    """

    def __init__(self, authenticator: Authenticator, brakes: Collection[str] = ()) -> None:
        self._authenticator = authenticator
        self._brake_methods = frozenset(brakes)
        self._calls = InProgress("calls", MAX_CALLS, MAX_CLIENT_CALLS)
        self._brakes = InProgress("calls", MAX_BRAKE_CALLS, MAX_CLIENT_BRAKE_CALLS)
        self._streams = InProgress("streams", MAX_STREAMS, MAX_CLIENT_STREAMS)
        self._probes = InProgress("health calls", MAX_STREAMS, MAX_STREAMS)

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """See `grpc.aio.ServerInterceptor`."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = handler_call_details.method
        # Only the call's context knows the connection, so the handler's behaviour is wrapped.
        if handler.response_streaming:
            make, behaviour = (
                (grpc.stream_stream_rpc_method_handler, handler.stream_stream)
                if handler.request_streaming
                else (grpc.unary_stream_rpc_method_handler, handler.unary_stream)
            )
            wrapped: Any = self._stream(method, behaviour)
        else:
            make, behaviour = (
                (grpc.stream_unary_rpc_method_handler, handler.stream_unary)
                if handler.request_streaming
                else (grpc.unary_unary_rpc_method_handler, handler.unary_unary)
            )
            wrapped = self._single(method, behaviour)
        return make(wrapped, handler.request_deserializer, handler.response_serializer)

    def _single(self, method: str, behaviour: Any) -> Any:
        counted = self._brakes if method in self._brake_methods else self._calls
        inner = endings.bare(behaviour)

        async def call(request: Any, context: Any) -> Any:
            with ExitStack() as held:
                await self._admit(context, method, counted, held)
                return await inner(request, context)

        return endings.single(call)

    def _stream(self, method: str, behaviour: Any) -> Any:
        inner = endings.bare(behaviour)

        async def call(request: Any, context: Any) -> AsyncIterator[Any]:
            with ExitStack() as held:
                await self._admit(context, method, self._streams, held)
                answers = inner(request, context)
                if isawaitable(answers):  # the handler writes its answers itself, as gRPC's own Watch of health does
                    await answers
                    return
                async for answer in answers:
                    yield answer

        return endings.stream(call)

    async def _admit(self, context: Any, method: str, counted: InProgress, held: ExitStack) -> None:
        try:
            if method.startswith(OPEN):
                held.enter_context(self._probes.one(""))
                return
            caller = caller_of(context)
            principal = self._authenticator.admit(caller, brake=method in self._brake_methods)
            client = client_of_address(caller.address) if principal is LOCAL else f"{principal.role} {principal.name}"
            held.enter_context(counted.one(client))
            admitted.set(principal)
        except BatonError as error:
            failure = failure_of(error, "")
            context.set_trailing_metadata(failure.metadata)
            await context.abort(failure.code, failure.message)


def caller_of(context: Any) -> Credentials:
    """Credentials of a gRPC call and its connection."""
    metadata = context.invocation_metadata() or ()
    given = [value for key, value in metadata if key == "authorization"]
    names: list[str] = []
    # gRPC fills these from a verified certificate alone; without TLS there are none.
    identity = context.auth_context()
    for key in ("x509_common_name", "x509_subject_alternative_name"):
        names += [name.decode(errors="replace") for name in identity.get(key, ())]
    # Several values become one that is no token: it must not be ambiguous which one counts.
    return Credentials(", ".join(given), _address(context.peer()), tuple(names))


def _address(peer: str) -> str:
    """The address of `ipv4:192.0.2.7:123` or `ipv6:%5B2001:db8::1%5D:123`; empty for a local socket."""
    family, _, rest = peer.partition(":")
    if family not in ("ipv4", "ipv6"):
        return ""
    return rest.rpartition(":")[0].replace("%5B", "").replace("%5D", "").strip("[]")
