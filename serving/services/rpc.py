"""The shell around every method: bytes in, message out, and whatever is raised told as `serving.errors` says.

Handlers get bytes and refuse large ones themselves, so that the answer names the limit; gRPC's own limit stands a good
deal higher and is only there to protect the process.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from pipeline.errors import InvalidInput, NotReady
from serving.errors import failure_of

__all__ = ["NO_DEADLINE", "Call", "Method", "hard_limit", "serve", "streaming", "unary"]

NO_DEADLINE = 1e9
_HARD_LIMIT = 128 << 20


def hard_limit(max_message_bytes: int) -> int:
    """Message size at which gRPC itself cuts a caller off, in bytes."""
    return max(_HARD_LIMIT, 2 * max_message_bytes)


class Call:
    """What a method may ask about its caller."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._metadata: dict[str, str] | None = None
        self._request_id = ""

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the caller's deadline; None when it set none."""
        left = self._context.time_remaining()
        return None if left is None or left > NO_DEADLINE else float(left)

    def header(self, name: str) -> str:
        """A metadata value, "" when absent."""
        if self._metadata is None:
            self._metadata = {k: v for k, v in self._context.invocation_metadata() or () if isinstance(v, str)}
        return self._metadata.get(name, "")

    @property
    def request_id(self) -> str:
        """The caller's `x-request-id`, or one made up; it names the call in our log."""
        if not self._request_id:
            self._request_id = self.header("x-request-id")[:128] or secrets.token_hex(8)
        return self._request_id


Method = Callable[[bytes, Call], Awaitable[Any]]


def parse(message: Any, data: bytes) -> Any:
    """A message of a class from bytes.

    Raises:
        InvalidInput: the bytes are not one.
    """
    try:
        return message.FromString(data)
    except DecodeError:
        raise InvalidInput(f"the request is not a {message.DESCRIPTOR.full_name}: it cannot be parsed") from None


def unary(method: Method, max_bytes: int) -> grpc.RpcMethodHandler[Any, Any]:
    """A handler of one request and one answer."""

    async def handle(data: bytes, context: Any) -> bytes:
        call = Call(context)
        try:
            return await _answer(method, data, call, max_bytes)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            await _abort(context, call, error)
            raise  # abort has raised already

    return grpc.unary_unary_rpc_method_handler(handle)


def streaming(method: Method, max_bytes: int) -> grpc.RpcMethodHandler[Any, Any]:
    """A handler of a stream of requests, answered in order. A request that fails ends the stream with its error."""

    async def handle(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        call = Call(context)
        try:
            async for data in requests:
                yield await _answer(method, data, call, max_bytes)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            await _abort(context, call, error)

    return grpc.stream_stream_rpc_method_handler(handle)


def serve(service: str, handlers: dict[str, grpc.RpcMethodHandler[Any, Any]]) -> grpc.GenericRpcHandler:
    """The methods of one service, by name."""
    return grpc.method_handlers_generic_handler(service, handlers)


async def _answer(method: Method, data: bytes, call: Call, max_bytes: int) -> bytes:
    if len(data) > max_bytes:
        raise InvalidInput(
            f"the request has {len(data)} bytes, more than the {max_bytes} allowed; send fewer candidates at once",
            "request",
        )
    response = await method(data, call)
    answer: bytes = response.SerializeToString()
    return answer


async def _abort(context: Any, call: Call, error: Exception) -> None:
    failure = failure_of(error, call.request_id)
    context.set_trailing_metadata(failure.metadata)
    await context.abort(failure.code, failure.message)


async def committed(future: Any) -> Any:
    """The result of a thread's future, awaited without losing it when the caller goes away.

    Raises:
        NotReady: the one who should have finished it is gone.
    """
    try:
        return await asyncio.shield(asyncio.wrap_future(future))
    except asyncio.CancelledError:
        if future.cancelled():
            raise NotReady("the traffic log is closing; send the feedback to another replica") from None
        raise
