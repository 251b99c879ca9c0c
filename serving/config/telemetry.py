"""`telemetry`: export of spans, and metrics under Triton's names."""

from __future__ import annotations

from pydantic import Field

from serving.config.section import Section

__all__ = ["TelemetryConfig"]


class TelemetryConfig(Section):
    otlp_endpoint: str = Field("", pattern=r"^(https?://.+)?$")
    """Collector of OpenTelemetry spans (OTLP/gRPC), for example http://127.0.0.1:4317; empty: no spans. Needs the extra
    `otel`."""
    sample: float = Field(0.01, ge=0, le=1)
    """Fraction of requests with spans; a request with a `traceparent` follows its caller's choice."""
    triton_names: bool = False
    """Whether lanes also export some metrics under Triton's names, `nv_inference_*`; see docs/operations.md."""
