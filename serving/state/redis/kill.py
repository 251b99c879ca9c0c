"""Kill switch of several machines: the files of each, and a hash in the Redis that they share.

Either one is enough, so a file stops its machine while Redis is away; and so do the switches that Redis had last.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import redis

from pipeline.errors import NotReady
from pipeline.redis.address import RedisAddress
from serving.state.kill import KillSwitch

__all__ = ["SharedKillSwitch"]

_KEY = "control:killed"

log = logging.getLogger(__name__)


class SharedKillSwitch(KillSwitch):
    """`KillSwitch` for all machines that share a Redis.

    Args:
        timeout: seconds without an answer after which a call fails.
    """

    def __init__(self, home: Path, address: RedisAddress, timeout: float = 1.0) -> None:
        super().__init__(home)
        self._url = address.url
        self._client = address.client(timeout)
        self._known: frozenset[str] = frozenset()
        self._away = False

    def engage(self, endpoint: str, reason: str, actor: str) -> None:
        """As `KillSwitch.engage`, on all machines.

        Raises:
            NotReady: the switch is engaged on this machine alone.
        """
        super().engage(endpoint, reason, actor)
        try:
            self._client.hset(_KEY, endpoint, json.dumps({"reason": reason, "actor": actor}))
        except redis.RedisError as error:
            raise NotReady(f"{endpoint!r} is killed on this machine alone; state {self._url}: {error}") from error

    def release(self, endpoint: str) -> bool:
        """As `KillSwitch.release`, on all machines; files made on others stay. Raises: NotReady."""
        try:
            removed = bool(self._client.hdel(_KEY, endpoint))
        except redis.RedisError as error:
            raise NotReady(f"{endpoint!r} stays killed; state {self._url}: {error}") from error
        return super().release(endpoint) or removed

    def engaged(self) -> frozenset[str]:
        try:
            names: Any = self._client.hkeys(_KEY)
            self._known = frozenset(name.decode() for name in names)
            self._away = False
        except redis.RedisError as error:
            if not self._away:  # once, not ten times a second
                log.error("state %s: %s; kill switches stay as they were", self._url, error)
            self._away = True
        return super().engaged() | self._known

    def why(self, endpoint: str) -> tuple[str, str] | None:
        local = super().why(endpoint)
        if local is not None:
            return local
        try:
            text: Any = self._client.hget(_KEY, endpoint)
        except redis.RedisError:
            return ("set before the shared state went away", "unknown") if endpoint in self._known else None
        if text is None:
            return None
        kill = json.loads(text)
        return str(kill["reason"]), str(kill["actor"])
