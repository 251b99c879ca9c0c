"""Kill flags of several machines: a hash in the Redis that they share, with reasons; and a set, which needs no memory.

A Redis without memory refuses what could grow, HSET among it. SMOVE it does not refuse: a name that was put into the set
of spares before moves to the set of killed endpoints.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import redis

from pipeline.errors import NotReady
from pipeline.redis.address import RedisAddress
from pipeline.redis.connections import asking
from pipeline.redis.foreign import load_json, parsing
from serving.state.kill import KillSwitch

__all__ = ["RedisKillFlags"]

_REASONS = "control:killed"
_BARE = "control:killed:bare"
_SPARE = "control:killed:spare"
_MOST_LETTERS = 2000
_FULL = "the shared state had no memory left for the reason", "unknown"


class RedisKillFlags:
    """`serving.state.kill.SharedFlags` in a Redis.

    Args:
        timeout: seconds without an answer after which a call fails.
    """

    def __init__(self, address: RedisAddress, timeout: float = 1.0) -> None:
        self._url = address.url
        self._client = address.client(timeout)
        self._known: frozenset[str] = frozenset()

    def prepare(self, names: Iterable[str]) -> None:
        listed = sorted(names)
        if listed:
            with asking(f"state {self._url}"):
                self._client.sadd(_SPARE, *listed)

    def engage(self, endpoint: str, reason: str, actor: str) -> None:
        with asking(f"state {self._url}"):
            try:
                self._client.hset(_REASONS, endpoint, json.dumps({"reason": reason, "actor": actor}))
            except redis.OutOfMemoryError:
                if not self._client.smove(_SPARE, _BARE, endpoint) and not self._client.sismember(_BARE, endpoint):
                    raise

    def release(self, endpoint: str) -> bool:
        with asking(f"state {self._url}"):
            flagged = self._client.hdel(_REASONS, endpoint)
            moved = self._client.smove(_BARE, _SPARE, endpoint)
        return bool(flagged or moved)

    def engaged(self) -> frozenset[str]:
        with asking(f"state {self._url}"), self._client.pipeline(transaction=False) as pipe:
            pipe.hkeys(_REASONS)
            pipe.smembers(_BARE)
            found: Any = pipe.execute()
        texts = (name.decode(errors="replace") for names in found for name in names)
        self._known = frozenset(name for name in texts if KillSwitch.is_name(name))  # others are no endpoint's
        return self._known

    def why(self, endpoint: str) -> tuple[str, str] | None:
        try:
            with self._client.pipeline(transaction=False) as pipe:
                pipe.hget(_REASONS, endpoint)
                pipe.sismember(_BARE, endpoint)
                found: Any = pipe.execute()
        except redis.RedisError:
            return ("set before the shared state went away", "unknown") if endpoint in self._known else None
        text, bare = found
        if text is None:
            return _FULL if bare else None
        try:
            with parsing("the kill flag"):
                kill = load_json(text)
                reason, actor = kill["reason"], kill["actor"]
                return str(reason)[:_MOST_LETTERS], str(actor)[:_MOST_LETTERS]
        except NotReady as error:  # it is one all the same
            return str(error), "unknown"
