"""`traffic`: recording of predictions and labels, retention and storage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipeline.faults import refuse
from serving.config.section import RedisAccess, Seconds, Section

__all__ = ["SampleConfig", "TrafficConfig"]

LATE_S = 86_400.0
RETENTION_S = 7 * 86_400.0
AFTER_WINDOW_S = 3600.0
"""How much longer than its label window a prediction can be labelled, at least."""


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
    late_limit: Seconds | None = None
    """Labels for predictions older than this are answered `expired`; unset: 24 h, or `attribution_window` and an hour where
    that is longer. At least `attribution_window` and an hour."""
    retention: Seconds | None = None
    """Time that predictions and labels are kept, unless the worker still needs them; unset: 7 days, or the late limit where
    that is longer. At least `attribution_window` and an hour, and not below the late limit."""
    retention_bytes: int = Field(0, ge=0)
    """Size limit of the log; beyond it the oldest predictions are removed, unless the worker needs them. 0: no limit."""
    reserve_bytes: int | None = Field(None, ge=0)
    """Memory below the `maxmemory` of its Redis at which the log stops; unset: the larger of 5 % of it and 16 MiB. Half of
    `maxmemory` at most."""
    buffer: int = Field(10_000, ge=1)
    """Most predictions that wait to be written per lane; beyond it they are dropped and counted."""
    commit_interval: Seconds = 0.05
    """Longest time that a prediction or a label waits for its commit."""
    record_direct: bool = False
    """Whether answers of models called by their own name are recorded. They are not used for training or evidence."""
    keep_text: bool = False
    """Whether records have the callers' request ids and candidate ids as texts, which exports then have as columns. They may
    name a person: docs/traffic.md, "Whose a row is"."""

    @property
    def longest_window(self) -> float:
        """The longest time that a row waits for its label, seconds."""
        return self.attribution_window

    @property
    def late_limit_s(self) -> float:
        """`late_limit` in force, seconds."""
        return max(LATE_S, self._least) if self.late_limit is None else self.late_limit

    @property
    def retention_s(self) -> float:
        """`retention` in force, seconds."""
        return max(RETENTION_S, self.late_limit_s) if self.retention is None else self.retention

    @property
    def _least(self) -> float:
        return self.longest_window + AFTER_WINDOW_S

    @model_validator(mode="after")
    def _outlasts_the_window(self) -> TrafficConfig:
        faults = []
        for name in ("late_limit", "retention"):
            value = getattr(self, name)
            if value is not None and value < self._least:
                faults.append(
                    f"{name} {value:g} s is below attribution_window {self.longest_window:g} s and an hour: labels would be "
                    f"lost that come in time; set {name} to {self._least:g}s or more, or shorten attribution_window"
                )
        if self.late_limit is not None and self.retention_s < self.late_limit:
            faults.append(
                f"retention {self.retention_s:g} s is below late_limit {self.late_limit:g} s: a label would be taken for a "
                "prediction that is gone; lengthen retention or shorten late_limit"
            )
        refuse(faults)
        return self
