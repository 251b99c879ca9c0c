"""The shell around every method: bytes in, bytes out, and whatever is raised told as `serving.wire.errors` says.

Handlers get bytes and refuse large ones themselves, so that the answer names the limit; gRPC's own limit stands a good
deal higher and is only there to protect the process. What a lane cannot take is refused before its message is read: a
handler that gRPC takes for one of a request stream is started before the first message, and asks for it itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from pipeline.clock import Clock
from pipeline.errors import InvalidInput, NotReady, Overloaded
from pipeline.event import Event
from serving.security.authenticator import Credentials, Identity
from serving.security.interceptor import caller_of
from serving.telemetry.tracing import CallSpan, Tracing, trace_id_of
from serving.wire.errors import Failure, failure_of

__all__ = ["NO_DEADLINE_S", "Call", "Feed", "Method", "Shell", "hard_limit", "parse", "serve"]

NO_DEADLINE_S = 1e9
TIMINGS_KEY = "x-baton-timings"
TRACE_KEY = "x-baton-trace"
RETRY_STEP_S = 0.01
_HARD_LIMIT_BYTES = 128 << 20


def hard_limit(max_message_bytes: int) -> int:
    """Message size at which gRPC itself cuts a caller off, in bytes."""
    return max(_HARD_LIMIT_BYTES, 2 * max_message_bytes)


class Call:
    """What a method may ask about its caller, and what it leaves for the shell.

    Args:
        most: seconds that one message of a stream may take; None: whatever the caller's deadline leaves.

    Attributes:
        event: set by a method that answered with scores; what is told about the call is read from it.
        trace: whether the caller wants its timings; a method may set it as well.
        identity: of the caller, where a method needs it before it reads.
        traceparent: of the call's own span, where it has one that is sampled.
    """

    __slots__ = ("_context", "_metadata", "_most", "_request_id", "event", "identity", "trace", "traceparent")

    def __init__(self, context: Any, most: float | None = None) -> None:
        self._context = context
        self._metadata: dict[str, str] | None = None
        self._most = most
        self._request_id = ""
        self.event: Event | None = None
        self.identity: Identity | None = None
        self.trace = False
        self.traceparent = ""

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the caller's deadline; None when it set none."""
        left = self._context.time_remaining()
        if left is None or left > NO_DEADLINE_S:
            return self._most
        return float(left) if self._most is None else min(float(left), self._most)

    @property
    def caller(self) -> Credentials:
        """What the call and its connection say of who is there."""
        return caller_of(self._context)

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


Method = Callable[[bytes, Call], Awaitable[bytes]]
Feed = Callable[[bytes, Call], AsyncGenerator[bytes]]
Refusal = Callable[[float | None], Overloaded | None]
Admission = Callable[[Call], None]


def parse(message: Any, data: bytes) -> Any:
    """A message of a class from bytes.

    Raises:
        InvalidInput: the bytes are not one.
    """
    try:
        return message.FromString(data)
    except DecodeError:
        raise InvalidInput(f"the request is not a {message.DESCRIPTOR.full_name}: it cannot be parsed") from None


@dataclass(frozen=True, slots=True)
class Shell:
    """What all methods have in common.

    Args:
        max_bytes: largest request.
        clock: of the timings told to callers.
        tracing: OpenTelemetry, where it is configured.
        message_seconds: time for one message of a stream, whose own deadline may be days away.
        stream_window: messages of one stream at work at once; gRPC's flow control holds back the rest.
    """

    max_bytes: int
    clock: Clock
    tracing: Tracing | None = None
    message_seconds: float = 10.0
    stream_window: int = 32

    def unary(
        self, name: str, method: Method, refusal: Refusal | None = None, admission: Admission | None = None
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """A handler of one request and one answer.

        Args:
            name: service and method, of spans.
            refusal: asked before a request is read, with the seconds until the caller's deadline.
            admission: raises before a request is read when the caller may not ask; None: everyone may.
        """
        now = self.clock.monotonic
        tracing = self.tracing

        async def handle(_: AsyncIterator[bytes], context: Any) -> bytes:
            call = Call(context)
            started = now()
            if refusal is not None and (refused := refusal(call.seconds_left)) is not None:
                # Under overload this is most of what is done: no span, no exception of ours, details made before.
                told = _refusal(math.ceil(refused.retry_after / RETRY_STEP_S))
                await context.abort(told.code, told.message, told.metadata)
            span = None if tracing is None else _begin(tracing, name, call)
            failure: BaseException | None = None
            try:
                if admission is not None:
                    admission(call)
                data = await context.read()
                if data is grpc.aio.EOF:
                    raise InvalidInput("the call brings no request", "request")
                call.trace = call.header(TRACE_KEY) in ("1", "true")
                answer = await self._answer(method, data, call)
                if call.trace and call.event is not None:
                    context.set_trailing_metadata(((TIMINGS_KEY, _timings(call.event, now() - started)),))
                return answer
            except asyncio.CancelledError as error:
                failure = error
                raise
            except Exception as error:
                failure = error
                await _abort(context, call, error)
                raise  # abort has raised already
            finally:
                if span is not None:
                    span.end(call.event, failure)

        return grpc.stream_unary_rpc_method_handler(handle)

    def streaming(
        self, name: str, method: Method, admission: Admission | None = None
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """A handler of a stream of requests: several at work at once, answered in the order they came.

        A request that fails ends the stream with its error, once those before it are answered.

        Args:
            admission: raises when the caller may not ask, or not any longer: asked at first and with each request.
        """
        tracing = self.tracing

        async def handle(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            call = Call(context, self.message_seconds)
            span = None if tracing is None else _begin(tracing, name, call)
            failure: BaseException | None = None
            # The one that is awaited below is at work as well, so the queue holds one less.
            window: asyncio.Queue[asyncio.Future[bytes] | None] = asyncio.Queue(self.stream_window - 1)
            working: set[asyncio.Future[bytes]] = set()

            async def read() -> None:
                try:
                    if admission is not None:
                        admission(call)
                    async for data in requests:
                        if admission is not None:
                            admission(call)
                        task = asyncio.ensure_future(self._answer(method, data, call))
                        working.add(task)
                        await window.put(task)
                    await window.put(None)
                except Exception as error:
                    broken = asyncio.get_running_loop().create_future()
                    broken.set_exception(error)
                    await window.put(broken)

            reading = asyncio.create_task(read(), name="stream-read")
            try:
                while (task := await window.get()) is not None:
                    answer = await task
                    working.discard(task)
                    yield answer
            except (asyncio.CancelledError, GeneratorExit) as error:
                failure = error
                raise
            except Exception as error:
                failure = error
                await _abort(context, call, error)
            finally:
                unfinished: list[asyncio.Future[Any]] = [reading, *working]
                for future in unfinished:
                    future.cancel()
                await asyncio.gather(*unfinished, return_exceptions=True)
                if span is not None:
                    span.end(None, failure)

        return grpc.stream_stream_rpc_method_handler(handle)

    def feed(self, name: str, method: Feed) -> grpc.RpcMethodHandler[Any, Any]:
        """A handler of one request and a stream of answers."""
        tracing = self.tracing

        async def handle(data: bytes, context: Any) -> AsyncIterator[bytes]:
            call = Call(context)
            span = None if tracing is None else _begin(tracing, name, call)
            failure: BaseException | None = None
            try:
                self._fits(data)
                async with contextlib.aclosing(method(data, call)) as answers:
                    async for answer in answers:
                        yield answer
            except (asyncio.CancelledError, GeneratorExit) as error:
                failure = error
                raise
            except Exception as error:
                failure = error
                await _abort(context, call, error)
            finally:
                if span is not None:
                    span.end(None, failure)

        return grpc.unary_stream_rpc_method_handler(handle)

    async def _answer(self, method: Method, data: bytes, call: Call) -> bytes:
        self._fits(data)
        return await method(data, call)

    def _fits(self, data: bytes) -> None:
        if len(data) > self.max_bytes:
            raise InvalidInput(
                f"the request has {len(data)} bytes, more than the {self.max_bytes} allowed; "
                "send fewer candidates at once",
                "request",
            )


def serve(service: str, handlers: dict[str, grpc.RpcMethodHandler[Any, Any]]) -> grpc.GenericRpcHandler:
    """The methods of one service, by name."""
    return grpc.method_handlers_generic_handler(service, handlers)


def _timings(event: Event, total: float) -> str:
    """Milliseconds as in HTTP's `Server-Timing`: `queue;dur=0.120, decode;dur=0.031, ..., total;dur=1.402`."""
    return ", ".join(f"{name};dur={1000 * seconds:.3f}" for name, seconds in (*event.timings.items(), ("total", total)))


def _begin(tracing: Tracing, name: str, call: Call) -> CallSpan:
    span = tracing.begin(name, call.header)
    call.traceparent = span.traceparent
    return span


async def _abort(context: Any, call: Call, error: Exception) -> None:
    failure = failure_of(error, call.request_id, trace_id_of(call.traceparent))
    context.set_trailing_metadata(failure.metadata)
    await context.abort(failure.code, failure.message)


@lru_cache(maxsize=1024)
def _refusal(steps: int) -> Failure:
    """What a call is told that is not read, to come again after so many steps."""
    return failure_of(Overloaded("it would not be answered in time: too much waits already", steps * RETRY_STEP_S), "")


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
