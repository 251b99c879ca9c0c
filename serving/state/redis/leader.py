"""The lead among machines: a lease that lapses unless it is renewed, and a token that grows with every change of hands.

A holder that was stopped for a while does not know that its lease has lapsed; the store refuses it all the same
(`ControlStore.fenced`), since a higher token has been given out (M. Kleppmann, "How to do distributed locking", 2016).
"""

from __future__ import annotations

import os
from typing import Any

import redis

from pipeline.clock import Clock
from pipeline.redis.address import RedisAddress

__all__ = ["FENCE", "RedisLead"]

FENCE = "control:fence"
_HOLDER = "control:lead"
_SAFE_FRACTION = 0.6
"""Share of the lease after which a holder that could not renew it stops acting: well before it lapses."""

_TAKE = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
local token = redis.call('INCR', KEYS[2])
redis.call('SET', KEYS[1], token .. ':' .. ARGV[1], 'PX', ARGV[2])
return token
"""
_RENEW = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return 0"
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class RedisLead:
    """The lead among all processes that share a Redis.

    Args:
        owner: who we are, for operators.
        lease: seconds after which the lead of a process that fell silent is anybody's.
    """

    def __init__(self, address: RedisAddress, owner: str, clock: Clock, lease: float = 5.0) -> None:
        self._client = address.client(min(1.0, lease / 4))
        # Names may meet; no two processes may take each other's lead for their own.
        self._owner = f"{owner}:{os.urandom(4).hex()}"
        self._clock = clock
        self._lease = lease
        self._until = 0.0
        self.token: int | None = None
        self._take = self._client.register_script(_TAKE)
        self._renew = self._client.register_script(_RENEW)
        self._give = self._client.register_script(_RELEASE)

    def hold(self) -> bool:
        asked = self._clock.monotonic()
        lease = round(1000 * self._lease)
        try:
            if self.token is None or not self._renew(keys=[_HOLDER], args=[self._name(), lease]):
                self._until = 0.0
                taken: Any = self._take(keys=[_HOLDER, FENCE], args=[self._owner, lease])
                if not taken:
                    return False  # the old token stays: what another thread still writes under it is refused
                self.token = int(taken)
        except redis.RedisError:
            # Nobody can take it while Redis is away, and nobody could write either; ours ends before it may lapse.
            return self._clock.monotonic() < self._until
        self._until = asked + _SAFE_FRACTION * self._lease
        return True

    def holder(self) -> str:
        try:
            found: Any = self._client.get(_HOLDER)
        except redis.RedisError:
            return ""
        return "" if found is None else found.decode().split(":", 1)[1].rsplit(":", 1)[0]

    def release(self) -> None:
        try:
            if self.token is not None:
                self._give(keys=[_HOLDER], args=[self._name()])
        except redis.RedisError:
            pass  # it lapses by itself
        finally:
            self.token = None
            self._client.close()

    def _name(self) -> str:
        return f"{self.token}:{self._owner}"
