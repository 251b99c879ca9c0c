"""Embedding tiers of one process, as configured. Modules that use Redis are imported only where there is one."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING

from pipeline.bundle.versions import Repository
from pipeline.clock import Clock
from pipeline.embedding.device.tier import DeviceSource
from pipeline.embedding.hierarchy.hierarchy import SEGMENT, Hierarchy
from pipeline.embedding.tier import TierSource
from serving.config import Config, RedisConfig
from serving.wiring.bundles import open_repository

if TYPE_CHECKING:
    from pipeline.embedding.redis.tier import RedisSource
    from pipeline.embedding.redis.updates import RedisUpdater

__all__ = ["open_hierarchy", "redis_updater"]


def open_hierarchy(config: Config, clock: Clock) -> Hierarchy:
    """The embedding tiers of one process, as configured.

    Raises:
        InvalidInput: the configuration of a tier is wrong.
    """
    embedding = config.embedding
    sources: list[TierSource | str] = []
    for name in embedding.tiers:
        if name == "segment":
            sources.append(SEGMENT)
        elif name == "device":
            device = embedding.device
            sources.append(
                DeviceSource(
                    clock,
                    rows=device.capacity_rows,
                    bytes=device.capacity_bytes,
                    format=device.rows,
                    max_age=device.max_age if "redis" in embedding.tiers else None,
                    folder=config.hot_keys,
                    save_interval=device.save_interval,
                    backend=device.backend,
                )
            )
        elif embedding.redis is not None:
            sources.append(_redis_source(embedding.redis, open_repository(config), clock, config.engine.workers))
    return Hierarchy(sources, embedding.budget, clock)


def _redis_source(config: RedisConfig, repository: Repository, clock: Clock, workers: int) -> RedisSource:
    from pipeline.embedding.redis.breaker import CircuitBreaker
    from pipeline.embedding.redis.tier import RedisSource
    from serving.wiring.redis import redis_address

    breaker = CircuitBreaker(
        clock,
        random.Random(),
        threshold=config.breaker_failures,
        pause=config.breaker_pause,
        longest_pause=config.breaker_longest_pause,
    )
    return RedisSource(
        redis_address(config, "embedding.redis"),
        repository,
        clock,
        breaker,
        format=config.rows,
        connections=config.connections or workers + 1,
        max_staleness=config.max_staleness,
    )


def redis_updater(
    config: RedisConfig, repository: Repository, stopped: Callable[[], bool] = lambda: False
) -> RedisUpdater:
    """A writer of rows with a token of its own. `stopped` ends a run. Raises: InvalidInput, see `redis_address`."""
    from pipeline.embedding.redis.updates import RedisUpdater
    from serving.wiring.redis import redis_address

    return RedisUpdater(
        redis_address(config, "embedding.redis"),
        repository,
        format=config.rows,
        token=uuid.uuid4().hex,
        stopped=stopped,
    )
