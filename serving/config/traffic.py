"""`traffic`: recording of predictions and labels, retention and storage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from serving.config.section import RedisAccess, Seconds, Section

__all__ = ["SampleConfig", "TrafficConfig"]


class SampleConfig(Section):
    rate: float = Field(1.0, ge=0, le=1)
    """Fraction of answers that are recorded; only recorded ones can be labelled and used for training and evidence."""
    by: Literal["request", "key"] = "request"
    """Unit of sampling: each request, or all requests of a routing key together; a request without a key by itself."""


class TrafficConfig(RedisAccess):
    """Storage of predictions and labels: in `home`, or in the Redis of `url`, a server only for the log that must not
    evict and must keep an append-only file."""

    sample: SampleConfig = SampleConfig()
    """Sample of the answers that is recorded."""
    attribution_window: Seconds = 1800.0
    """Time after its exposure until a row without an outcome counts as a 0."""
    late_limit: Seconds = 86400.0
    """Labels for predictions older than this are answered `expired`."""
    retention: Seconds = 7 * 86400.0
    """Time that predictions and labels are kept, unless the worker still needs them."""
    retention_bytes: int = Field(0, ge=0)
    """Size limit of the log; beyond it the oldest predictions are removed, unless the worker needs them. 0: no limit."""
    buffer: int = Field(10_000, ge=1)
    """Most predictions that wait to be written per lane; beyond it they are dropped and counted."""
    commit_interval: Seconds = 0.05
    """Longest time that a prediction or a label waits for its commit."""
    record_direct: bool = False
    """Whether answers of models called by their own name are recorded. They are not used for training or evidence."""
