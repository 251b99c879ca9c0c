"""Shell around every method: bytes in, bytes out, and exceptions as errors of `serving.wire.errors`.

Handlers get bytes and refuse large ones themselves, so that the error names the limit; gRPC's own limit is much higher and
only protects the process. A request that a lane cannot take is refused before its message is read: unary methods are
registered as request streams, so gRPC starts the handler before the message, and the handler reads it.
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
from serving.wire import endings
from serving.wire.errors import Failure, failure_of

__all__ = ["CONNECTION_OPTIONS", "NO_DEADLINE_S", "Call", "Feed", "Method", "Shell", "hard_limit", "parse", "serve"]

NO_DEADLINE_S = 1e9
TIMINGS_KEY = "x-baton-timings"
TRACE_KEY = "x-baton-trace"
RETRY_STEP_S = 0.01
HANDSHAKE_MS = 10_000
"""Time in which a new connection has begun to speak HTTP/2; one that says nothing holds a descriptor."""
CONNECTION_OPTIONS = (
    ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
    # With strikes grpc writes a farewell for every ping too many and keeps them all for a client that does not read: 800 MB
    # in five seconds. Without them it stops reading at 10,000 answers that are not taken.
    ("grpc.http2.max_ping_strikes", 0),
)
"""Options of every server for connections of strangers."""
_HARD_LIMIT_BYTES = 128 << 20


def hard_limit(max_message_bytes: int) -> int:
    """Message size at which gRPC itself ends a call, in bytes."""
    return max(_HARD_LIMIT_BYTES, 2 * max_message_bytes)


class Call:
    """Call: its caller and metadata for the method, and the method's results for the shell.

    Args:
        most: longest time for one message of a stream, in seconds; None: until the caller's deadline.

    Attributes:
        event: set by a method that answers with scores; timings and span attributes are read from it.
        trace: whether the caller wants timings; a method may set it as well.
        identity: of the caller, where a method needs it before it reads.
        traceparent: of the call's own span, if it is sampled.
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
        """The caller, from the call and its connection."""
        return caller_of(self._context)

    def header(self, name: str) -> str:
        """A metadata value, "" when absent."""
        if self._metadata is None:
            self._metadata = {k: v for k, v in self._context.invocation_metadata() or () if isinstance(v, str)}
        return self._metadata.get(name, "")

    @property
    def request_id(self) -> str:
        """The caller's `x-request-id`, or a random one; it names the call in the log."""
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
    """Common part of all methods.

    Args:
        max_bytes: largest request.
        clock: of the timings for callers.
        tracing: OpenTelemetry, if it is configured.
        message_seconds: time for one message of a stream, whose own deadline may be in days.
        stream_window: messages of one stream in progress at once; gRPC's flow control holds back the rest.
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
            refusal: called before a request is read, with the seconds until the caller's deadline.
            admission: raises before a request is read if the caller has no permission; None: everyone has it.
        """
        now = self.clock.monotonic
        tracing = self.tracing

        async def handle(_: AsyncIterator[bytes], context: Any) -> bytes:
            call = Call(context)
            started = now()
            if refusal is not None and (refused := refusal(call.seconds_left)) is not None:
                # Under overload this is most of the work: no span, no exception of ours, details from a cache.
                rejection = _refusal(math.ceil(refused.retry_after / RETRY_STEP_S))
                await context.abort(rejection.code, rejection.message, rejection.metadata)
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
            except BaseException as error:
                failure = error
                await _abort(context, call, error)
                raise
            finally:
                if span is not None:
                    span.end(call.event, failure)

        return grpc.stream_unary_rpc_method_handler(endings.single(handle))

    def streaming(
        self, name: str, method: Method, admission: Admission | None = None
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """A handler of a stream of requests: several in progress at once, answered in their order.

        A request that fails ends the stream with its error, after the answers before it.

        Args:
            admission: raises if the caller has no permission; called at first and with each request.
        """
        tracing = self.tracing

        async def handle(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            call = Call(context, self.message_seconds)
            span = None if tracing is None else _begin(tracing, name, call)
            failure: BaseException | None = None
            # The request awaited below is in progress as well, so the queue holds one less.
            window: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue(self.stream_window - 1)
            unanswered: set[asyncio.Task[bytes]] = set()

            async def read() -> None:
                try:
                    if admission is not None:
                        admission(call)
                    async for data in requests:
                        if admission is not None:
                            admission(call)
                        task = asyncio.ensure_future(self._answer(method, data, call))
                        unanswered.add(task)
                        await window.put(task)
                except Exception:
                    await window.put(None)
                    raise
                await window.put(None)

            try:
                reading = asyncio.create_task(read(), name="stream-read")
                try:
                    while (task := await window.get()) is not None:
                        answer = await task
                        unanswered.discard(task)
                        yield answer
                    await reading
                finally:  # before the end of the call, of which they would have an error of their own
                    unfinished: list[asyncio.Task[Any]] = [reading, *unanswered]
                    for one in unfinished:
                        one.cancel()
                    await asyncio.gather(*unfinished, return_exceptions=True)
            except BaseException as error:
                failure = error
                await _abort(context, call, error)
                raise
            finally:
                if span is not None:
                    span.end(None, failure)

        return grpc.stream_stream_rpc_method_handler(endings.stream(handle))

    def feed(self, name: str, method: Feed, admission: Admission | None = None) -> grpc.RpcMethodHandler[Any, Any]:
        """A handler of one request and a stream of answers. `admission`: as `unary`."""
        tracing = self.tracing

        async def handle(data: bytes, context: Any) -> AsyncIterator[bytes]:
            call = Call(context)
            span = None if tracing is None else _begin(tracing, name, call)
            failure: BaseException | None = None
            try:
                if admission is not None:
                    admission(call)
                self._fits(data)
                async with contextlib.aclosing(method(data, call)) as answers:
                    async for answer in answers:
                        yield answer
            except BaseException as error:
                failure = error
                await _abort(context, call, error)
                raise
            finally:
                if span is not None:
                    span.end(None, failure)

        return grpc.unary_stream_rpc_method_handler(endings.stream(handle))

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
    """Handler of a service from its methods by name."""
    return grpc.method_handlers_generic_handler(service, handlers)


def _timings(event: Event, total: float) -> str:
    """Milliseconds as in HTTP's `Server-Timing`: `queue;dur=0.120, decode;dur=0.031, ..., total;dur=1.402`."""
    return ", ".join(f"{name};dur={1000 * seconds:.3f}" for name, seconds in (*event.timings.items(), ("total", total)))


def _begin(tracing: Tracing, name: str, call: Call) -> CallSpan:
    span = tracing.begin(name, call.header)
    call.traceparent = span.traceparent
    return span


async def _abort(context: Any, call: Call, error: BaseException) -> None:
    """End a call with the error of an exception, unless it is the end of the call itself."""
    if not isinstance(error, Exception):
        return
    failure = failure_of(error, call.request_id, trace_id_of(call.traceparent))
    context.set_trailing_metadata(failure.metadata)
    await context.abort(failure.code, failure.message)


@lru_cache(maxsize=1024)
def _refusal(steps: int) -> Failure:
    """Error of a call that is refused unread; the caller may try again after so many steps."""
    return failure_of(Overloaded("it would not be answered in time: too much waits already", steps * RETRY_STEP_S), "")


async def committed(future: Any) -> Any:
    """The result of a thread's future; the future goes on if the caller goes away.

    Raises:
        NotReady: the writer has ended without a result.
    """
    waiting = asyncio.wrap_future(future)
    waiting.add_done_callback(_retrieve)
    try:
        return await asyncio.shield(waiting)
    except asyncio.CancelledError:
        if future.cancelled():
            raise NotReady("the traffic log is closing; send the feedback to another replica") from None
        raise


def _retrieve(future: asyncio.Future[Any]) -> None:
    """Look at a future's error, which asyncio would log with its traceback where the caller that waited has gone."""
    if not future.cancelled():
        future.exception()
