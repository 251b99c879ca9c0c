"""`traffic`: what is recorded, for how long, and where."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from serving.config.redis_access import RedisAccess
from serving.config.section import Seconds, Section

__all__ = ["SampleConfig", "TrafficConfig"]


class SampleConfig(Section):
    rate: float = Field(1.0, ge=0, le=1)
    """Share of answers that are recorded, and so can be labelled, learned from and judged by."""
    by: Literal["request", "key"] = "request"
    """Whether each request is drawn by itself, or all requests of a routing key together; without a key by itself."""


class TrafficConfig(RedisAccess):
    """Where predictions and labels are kept: in `home`, or in the Redis of `url`, a server of the log's own that evicts
    nothing and keeps an append-only file."""

    sample: SampleConfig = SampleConfig()
    """What is recorded of the answers."""
    attribution_window: Seconds = 1800.0
    """How long after its exposure a row waits for an outcome before it counts as a 0."""
    late_limit: Seconds = 86400.0
    """Labels for predictions older than this are answered `expired`."""
    retention: Seconds = 7 * 86400.0
    """How long predictions and labels are kept, unless the worker still needs them."""
    retention_bytes: int = Field(0, ge=0)
    """What the log may take; beyond it the oldest predictions go, unless the worker still needs them. 0: no limit."""
    buffer: int = Field(10_000, ge=1)
    """Predictions that may wait to be written per lane; beyond it they are dropped and counted."""
    commit_interval: Seconds = 0.05
    """Longest time that a prediction or a label waits for its commit."""
    record_direct: bool = False
    """Whether answers of models called by their own name are recorded. Nothing learns from them or judges by them."""
