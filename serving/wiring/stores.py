"""Stores that a configuration names, as they are now; see `serving.runtime.stores`."""

from __future__ import annotations

import contextlib

from pipeline.errors import BatonError
from serving.config import Config
from serving.config.section import RedisAccess
from serving.runtime.stores import StoreStatus, disks

__all__ = ["look_at_stores"]

TIMEOUT_S = 1.0
"""Time in which a Redis has answered; a look asks each once."""


def look_at_stores(config: Config) -> list[StoreStatus]:
    """Every disk and Redis of an installation. It raises nothing: a store that does not answer says why."""
    folders = {"home": config.home}
    if not config.traffic.url:
        folders["traffic"] = config.traffic_folder
    folders["bundles"] = config.repository
    found = list(disks(folders))
    if config.state.url:
        found.append(_redis("state", config.state, config.state.url))
    if config.traffic.url:
        found.append(_redis("traffic", config.traffic, config.traffic.url, log_reserve=config.traffic.reserve_bytes))
    if config.embedding.redis is not None:
        found.append(_redis("embedding", config.embedding.redis, config.embedding.redis.url))
    return found


def _redis(name: str, section: RedisAccess, url: str, *, log_reserve: int | None = -1) -> StoreStatus:
    """A Redis by its answer to INFO. `log_reserve`: of the traffic log, below which it writes nothing; -1: none is kept."""
    # `redis` is imported only where one is configured.
    import redis

    from pipeline.redis.server import RedisServer
    from pipeline.traffic.redis.reserve import reserve_bytes
    from serving.wiring.redis import redis_address

    try:
        with contextlib.closing(redis_address(section, name).client(TIMEOUT_S)) as client:
            info = client.info()
    except (BatonError, redis.RedisError, OSError) as error:
        return StoreStatus(name=name, kind="redis", where=url, reason=str(error))
    server = RedisServer.of(info)
    kept = 0 if log_reserve == -1 else reserve_bytes(server.max_bytes, log_reserve)
    return StoreStatus(
        name=name,
        kind="redis",
        where=url,
        size_bytes=max(0, server.max_bytes - kept),
        used_bytes=server.used_bytes,
        free_bytes=max(0, server.max_bytes - kept - server.used_bytes),
        refused=server.refused,
        reason=f"it is a read-only replica of {server.primary}" if server.primary else "",
        evicts=server.policy not in ("noeviction", ""),
    )
