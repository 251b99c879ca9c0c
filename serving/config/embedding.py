"""`embedding`: the tiers of the embedding lookup."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipeline.bundle.row_format import RowFormat
from pipeline.faults import refuse
from serving.config.section import RedisAccess, Seconds, Section

__all__ = ["DeviceConfig", "EmbeddingConfig", "RedisConfig"]


class RedisConfig(RedisAccess):
    url: str = Field(pattern=r"^(rediss?|unix)://[^@]+$")
    """redis://HOST:PORT/DB, rediss:// for TLS or unix:///PATH; without user and password."""
    rows: RowFormat = "float32"
    """Format of stored rows; all installations that share a Redis and a bundle should use the same."""
    connections: int = Field(0, ge=0, le=256)
    """Concurrent lookups per lane; 0: one per worker thread, and one more."""
    breaker_failures: int = Field(3, ge=1)
    """Failed or late lookups in a row after which the lane stops calling Redis for a while."""
    breaker_pause: Seconds = 0.1
    """Pause before the first probe; doubles, with jitter, up to `breaker_longest_pause`."""
    breaker_longest_pause: Seconds = 2.0
    max_staleness: Seconds = 3600.0
    """How much older than the requested version rows may be; older rows are not used."""
    keep_unused: Seconds = 3600.0
    """How long a base generation stays in Redis after every installation has stopped serving it."""

    @model_validator(mode="after")
    def _pauses_grow(self) -> RedisConfig:
        if self.breaker_longest_pause < self.breaker_pause:
            raise ValueError(
                f"breaker_longest_pause {self.breaker_longest_pause:g} s is below breaker_pause {self.breaker_pause:g} s, from "
                "which pauses grow; lengthen the first or shorten the second"
            )
        return self


class DeviceConfig(Section):
    backend: Literal["auto", "cpu", "cuda"] = "auto"
    """Memory of the cache: `cuda` is that of a GPU (docs/gpu.md), otherwise that of the lane."""
    capacity_rows: int | None = Field(None, ge=1)
    """Rows that a lane caches per base generation, of all widths together; unset: as many as `capacity_bytes` holds."""
    capacity_bytes: int = Field(256 << 20, ge=1 << 16)
    """Bytes of the cache of one base generation per lane; while lanes swap to a new base there are two."""
    rows: RowFormat = "float32"
    """Format of cached rows; below float32 a score may depend on whether its rows were cached."""
    max_age: Seconds = Field(60.0, gt=0)
    """Age at which a cached row is looked up again if it may have come from Redis; rows of segments never age."""
    save_interval: Seconds = Field(60.0, gt=0)
    """Time between two writes of the hot keys, with which the next start fills the cache."""


class EmbeddingConfig(Section):
    tiers: tuple[Literal["device", "segment", "redis"], ...] = ("segment",)
    """Tiers of the lookup, in this order; an id that no tier holds gets the default row of its table."""
    budget: Seconds = Field(0.005, gt=0)
    """Longest time that one lookup waits for remote tiers."""
    device: DeviceConfig = DeviceConfig()
    """The cache in a lane's memory."""
    redis: RedisConfig | None = None
    """A Redis that shares rows between machines; the control process keeps it up to date."""

    @model_validator(mode="after")
    def _tiers(self) -> EmbeddingConfig:
        faults = []
        if not self.tiers or len(set(self.tiers)) < len(self.tiers):
            faults.append(f"tiers {list(self.tiers)} must name at least one tier, and each once")
        if self.tiers[-1:] == ("device",):
            faults.append(f"tiers {list(self.tiers)}: the device is a cache; put it above segment or redis")
        if "redis" in self.tiers and self.redis is None:
            faults.append("tiers name redis; say where it is in embedding.redis.url")
        refuse(faults)
        return self
