"""`telemetry`: where spans go, and under which other names figures are told."""

from __future__ import annotations

from pydantic import Field

from serving.config.section import Section

__all__ = ["TelemetryConfig"]


class TelemetryConfig(Section):
    otlp_endpoint: str = Field("", pattern=r"^(https?://.+)?$")
    """Where OpenTelemetry spans go by OTLP/gRPC, for example http://127.0.0.1:4317; empty: none are made. Needs the
    extra `otel`."""
    sample: float = Field(0.01, ge=0, le=1)
    """Share of requests that get spans; a request with a `traceparent` follows its caller's choice."""
    triton_names: bool = False
    """Whether lanes tell some figures once more under Triton's names, `nv_inference_*`; see docs/operations.md."""
