"""The caller's trace, carried along: a client span around each call, and W3C `traceparent` in its metadata.

Only where the application has loaded OpenTelemetry is there a trace to carry, so nothing of it is imported here before.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import BatonError

__all__ = ["outgoing"]

Metadata = list[tuple[str, str]]


@contextmanager
def outgoing(method: str, traceparent: str = "") -> Iterator[Metadata]:
    """Metadata for a call of `method` within a client span, if there is a trace.

    Args:
        traceparent: of a trace that the caller got some other way; then there is no span.
    """
    if traceparent:
        yield [("traceparent", traceparent)]
        return
    if "opentelemetry.trace" not in sys.modules:
        yield []
        return
    from opentelemetry.trace import SpanKind, Status, StatusCode, get_tracer
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    tracer = get_tracer("baton.client")
    with tracer.start_as_current_span(method, kind=SpanKind.CLIENT, record_exception=False) as span:
        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier)
        try:
            yield list(carrier.items())
        except BatonError as error:
            span.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise
