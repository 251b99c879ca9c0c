"""OpenTelemetry spans, where a collector is configured: one of a call, below it one of its waiting and of each stage.

The `traceparent` of a caller is followed with its sampling decision; calls without one are sampled at the configured
fraction. The spans of the stages, and below `embed` those of its tiers, are made from the timings when the call ends. The
span of the shadow lane is below the same call. Without configuration none of this is imported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pipeline.errors import InvalidInput
from pipeline.event import Event
from serving.wire.errors import code_of

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

__all__ = ["CallSpan", "Tracing", "trace_id_of"]

Header = Callable[[str], str]


def trace_id_of(traceparent: str) -> str:
    """Trace id in hex of a traceparent, "" of an empty one.

    >>> trace_id_of("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    '0af7651916cd43dd8448eb211c80319c'
    """
    return traceparent[3:35]


class CallSpan:
    """Span of one call, from `Tracing.begin`; end it once."""

    __slots__ = ("_context", "_span", "_start", "_tracer")

    def __init__(self, tracer: Tracer, name: str, context: Any, kind: Any) -> None:
        self._tracer = tracer
        self._context = context
        self._start = time.time_ns()
        self._span: Span = tracer.start_span(name, context=context, kind=kind, start_time=self._start)

    @property
    def traceparent(self) -> str:
        """Traceparent for calls below this one, in W3C's form; "" of a call that is not sampled."""
        context = self._span.get_span_context()
        if not context.trace_flags.sampled:
            return ""
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-01"

    def end(self, event: Event | None, failure: BaseException | None) -> None:
        """End the span.

        Args:
            event: what was answered; its timings become spans, one after the other.
            failure: why nothing was.
        """
        span = self._span
        if span.is_recording():
            if event is not None:
                self._describe(event)
            if failure is not None:
                self._fail(failure)
        span.end()

    def _describe(self, event: Event) -> None:
        from opentelemetry.trace import set_span_in_context

        self._span.set_attributes(
            {
                "baton.endpoint": event.endpoint,
                "baton.arm": event.arm,
                "baton.bundle": event.model.name if event.model else "",
                "baton.version": event.model.version if event.model else "",
                "baton.rows": event.features.n if event.features else 0,
                "baton.prediction_id": event.prediction_id,
                "baton.degraded": tuple(event.degraded),
            }
        )
        inside = set_span_in_context(self._span, self._context)
        at = self._start
        for stage, seconds in event.timings.items():
            child = self._tracer.start_span(stage, context=inside, start_time=at)
            parts = event.parts.get(stage) if event.parts else None
            if parts:
                self._add_parts(child, at, stage, parts)
            at += int(1e9 * seconds)
            child.end(at)

    def _add_parts(self, stage: Span, at: int, name: str, parts: Mapping[str, float]) -> None:
        """Add spans below a stage's, one after the other."""
        from opentelemetry.trace import set_span_in_context

        inside = set_span_in_context(stage, self._context)
        for part, seconds in parts.items():
            child = self._tracer.start_span(f"{name}/{part}", context=inside, start_time=at)
            at += int(1e9 * seconds)
            child.end(at)

    def _fail(self, failure: BaseException) -> None:
        from opentelemetry.trace import Status, StatusCode

        code = code_of(failure) if isinstance(failure, Exception) else "CANCELLED"
        self._span.set_attribute("rpc.grpc.status_code", code)
        self._span.set_status(Status(StatusCode.ERROR, code))


class Tracing:
    """Tracer of one process: sends spans to a collector from a thread of its own, and drops those it cannot send.

    Args:
        endpoint: of the collector's OTLP/gRPC receiver, `http://host:4317`.
        sample: fraction of calls without a `traceparent` that get spans.
        process: name of this process.

    Raises:
        InvalidInput: the packages for it are not installed.
    """

    def __init__(self, endpoint: str, sample: float, process: str) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
            from opentelemetry.trace import SpanKind
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise InvalidInput(
                f"telemetry.otlp_endpoint is set and {error.name} is not installed: pip install 'baton[otel]'",
                "telemetry.otlp_endpoint",
            ) from None
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(sample)),
            resource=Resource.create({"service.name": "baton", "service.instance.id": process}),
            shutdown_on_exit=False,
        )
        exporter = OTLPSpanExporter(endpoint=endpoint, insecure=endpoint.startswith("http://"))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("baton")
        self._propagator = TraceContextTextMapPropagator()
        self._server = SpanKind.SERVER

    def begin(self, name: str, header: Header) -> CallSpan:
        """A span for a call that has just come; `header` gives its metadata."""
        carrier = {key: value for key in ("traceparent", "tracestate") if (value := header(key))}
        return CallSpan(self._tracer, name, self._propagator.extract(carrier), self._server)

    def shadowed(
        self, traceparent: str, prediction_id: str, arm: str, bundle: str, version: str, seconds: float
    ) -> None:
        """A span for a prediction that has just been scored by the other arm, below the call that was answered."""
        end = time.time_ns()
        span = self._tracer.start_span(
            "shadow",
            context=self._propagator.extract({"traceparent": traceparent}),
            start_time=end - int(1e9 * seconds),
            attributes={
                "baton.prediction_id": prediction_id,
                "baton.arm": arm,
                "baton.bundle": bundle,
                "baton.version": version,
            },
        )
        span.end(end)

    def close(self) -> None:
        """Send the queued spans, within the exporter's own limit, and end."""
        self._provider.shutdown()
