"""Durability check of a Redis that holds the only copy of data: no eviction, and an append-only file."""

from __future__ import annotations

import logging
from typing import Any

import redis

from pipeline.errors import InvalidInput, NotReady

__all__ = ["require_durable"]

_LEAST_VERSION = (6, 2)

log = logging.getLogger(__name__)


def require_durable(client: redis.Redis, name: str, kept: str) -> None:
    """Check that the settings of a server make its data durable.

    Args:
        name: of its use, with its URL, for messages; kept: the data that would be lost.

    Raises:
        InvalidInput: it evicts, keeps no append-only file, or is too old.
        NotReady: it cannot be reached now.
    """
    try:
        info: Any = client.info("everything")
    except redis.RedisError as error:
        raise NotReady(f"{name} cannot be opened: {error}") from error
    version = str(info.get("redis_version", "0.0"))
    if tuple(int(part) for part in version.split(".")[:2]) < _LEAST_VERSION:
        raise InvalidInput(f"{name} is Redis {version}; {'.'.join(map(str, _LEAST_VERSION))} is needed", "url")
    policy = info.get("maxmemory_policy", "")
    if policy != "noeviction":
        raise InvalidInput(
            f"{name} evicts keys when memory is full (maxmemory-policy {policy}), which would lose {kept}; "
            "set `maxmemory-policy noeviction`, or name a Redis of its own",
            "url",
        )
    if not info.get("aof_enabled"):
        raise InvalidInput(
            f"{name} keeps no append-only file, so a restart would lose {kept}; set `appendonly yes`", "url"
        )
    try:
        settings: Any = client.config_get("appendfsync")
    except redis.RedisError:
        return  # CONFIG is not allowed
    sync = settings.get("appendfsync")
    if sync != "always":
        log.warning(
            "%s has appendfsync %s: what was acknowledged survives the end of any process of ours, but a crash of Redis "
            "or its machine may take the last seconds; `appendfsync always` closes that gap",
            name,
            sync,
        )
