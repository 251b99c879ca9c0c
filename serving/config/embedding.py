"""`embedding`: the tiers that rows are looked up in."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipeline.bundle.row_format import RowFormat
from serving.config.redis_access import RedisAccess
from serving.config.section import Seconds, Section

__all__ = ["DeviceConfig", "EmbeddingConfig", "RedisConfig"]


class RedisConfig(RedisAccess):
    url: str = Field(pattern=r"^(rediss?|unix)://[^@]+$")
    """redis://HOST:PORT/DB, rediss:// for TLS or unix:///PATH; without user and password."""
    rows: RowFormat = "float32"
    """How rows are stored there; all installations that share a Redis and a bundle should say the same."""
    connections: int = Field(0, ge=0, le=256)
    """Lookups at a time per lane; 0: one per worker thread, and one."""
    breaker_failures: int = Field(3, ge=1)
    """Lookups that fail or are late in a row before the lane leaves Redis alone."""
    breaker_pause: Seconds = 0.1
    """Pause before the first probe whether it is back; doubles, with jitter, up to `breaker_longest_pause`."""
    breaker_longest_pause: Seconds = 2.0
    max_staleness: Seconds = 3600.0
    """By how much rows may be older than the version that asks; rows beyond it are not used."""
    keep_unused: Seconds = 3600.0
    """How long a base generation stays in Redis after every installation has stopped serving it."""


class DeviceConfig(Section):
    backend: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the cache lies: `cuda` in the memory of a card (docs/gpu.md), else in that of the lane."""
    capacity_rows: int | None = Field(None, ge=1)
    """Rows that a lane caches per base generation, of all widths together; unless said, what `capacity_bytes` holds."""
    capacity_bytes: int = Field(256 << 20, ge=1 << 16)
    """Bytes that the cache of one base generation takes per lane; while lanes swap to a new base there are two."""
    rows: RowFormat = "float32"
    """How rows are cached; below float32 a score may depend on whether its rows were cached."""
    max_age: Seconds = Field(60.0, gt=0)
    """Age at which a cached row is looked up again, where it may have come from Redis; rows of segments never age."""
    save_interval: Seconds = Field(60.0, gt=0)
    """How often the hot keys are written that the next start begins with."""


class EmbeddingConfig(Section):
    tiers: tuple[Literal["device", "segment", "redis"], ...] = ("segment",)
    """Where rows are looked up, in this order; what no tier holds gets the default row of its table."""
    budget: Seconds = Field(0.005, gt=0)
    """How long one lookup may wait for tiers that are not local."""
    device: DeviceConfig = DeviceConfig()
    """The cache in a lane's memory."""
    redis: RedisConfig | None = None
    """A Redis that shares rows between machines; the control process keeps it up to date."""

    @model_validator(mode="after")
    def _tiers(self) -> EmbeddingConfig:
        if not self.tiers or len(set(self.tiers)) < len(self.tiers):
            raise ValueError(f"tiers {list(self.tiers)} must name at least one tier, and each once")
        if self.tiers[-1] == "device":
            raise ValueError(f"tiers {list(self.tiers)}: the device is a cache; put it above segment or redis")
        if "redis" in self.tiers and self.redis is None:
            raise ValueError("tiers name redis; say where it is in embedding.redis.url")
        return self
