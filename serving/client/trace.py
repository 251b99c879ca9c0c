"""Trace of a call: a client span around it, and W3C `traceparent` in its metadata.

A trace exists only if the application has loaded OpenTelemetry, so this file does not import it before.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import BatonError

__all__ = ["Metadata", "outgoing"]

Metadata = list[tuple[str, str]]


@contextmanager
def outgoing(method: str, traceparent: str, metadata: Metadata) -> Iterator[Metadata]:
    """Metadata for a call of `method` within a client span, if there is a trace.

    Args:
        traceparent: of a trace from another source; then there is no span.
        metadata: of the call beside the trace.
    """
    if traceparent:
        yield [*metadata, ("traceparent", traceparent)]
        return
    if "opentelemetry.trace" not in sys.modules:
        yield metadata
        return
    from opentelemetry.trace import SpanKind, Status, StatusCode, get_tracer
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    tracer = get_tracer("baton.client")
    with tracer.start_as_current_span(method, kind=SpanKind.CLIENT, record_exception=False) as span:
        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier)
        try:
            yield [*metadata, *carrier.items()]
        except BatonError as error:
            span.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise
