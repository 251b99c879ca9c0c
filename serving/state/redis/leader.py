"""Leader election through Redis: a lease that expires unless it is renewed, and a fencing token that grows with each change.

A leader that was stopped for a while does not know that its lease has expired. The control store refuses its writes all
the same (`ControlStore.fenced`), since a higher token exists (M. Kleppmann, "How to do distributed locking", 2016).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

import redis

from pipeline.clock import Clock
from pipeline.redis.address import RedisAddress
from pipeline.redis.scripts import script
from serving.state.redis.owner import IDENTITY

__all__ = ["FENCE", "RedisLead"]

FENCE = "control:fence"
_HOLDER = re.compile(r"[0-9]{1,20}:(.{1,250}?)(:[^:]{0,40})?")
_UNKNOWN = "an unknown process"
_SAFE_FRACTION = 0.6
"""Fraction of the lease after which a leader that could not renew it stops acting: well before it expires."""


class RedisLead:
    """The lead among all processes that share a Redis.

    Args:
        owner: name of this process, for operators.
        lease: seconds after which another process may take the lead of one that does not renew it.
        what: is led; the beginning of the keys.
        identity: of the state that the home knows now; "": any. A Redis without it has no lead to give.
    """

    def __init__(
        self,
        address: RedisAddress,
        owner: str,
        clock: Clock,
        lease: float = 5.0,
        *,
        what: str = "control",
        identity: Callable[[], str] = lambda: "",
    ) -> None:
        self._client = address.client(min(1.0, lease / 4))
        # Names may be equal; no process may take the lead of another for its own.
        self._owner = f"{owner}:{os.urandom(4).hex()}"
        self._clock = clock
        self._lease = lease
        self._until = 0.0
        self._identity = identity
        self._holder, self._fence = f"{what}:lead", f"{what}:fence"
        self.token: int | None = None
        self._take = self._client.register_script(script(__file__, "take"))
        self._renew = self._client.register_script(script(__file__, "renew"))
        self._release = self._client.register_script(script(__file__, "release"))
        self._note = self._client.register_script(script(__file__, "note"))

    def hold(self) -> bool:
        asked = self._clock.monotonic()
        lease = round(1000 * self._lease)
        try:
            if self.token is None or not self._renew(keys=[self._holder], args=[self._name(), lease]):
                self._until = 0.0
                keys = [self._holder, self._fence, IDENTITY]
                taken: Any = self._take(keys=keys, args=[self._owner, lease, self._identity()])
                if not taken:
                    return False  # the old token stays: what another thread still writes under it is refused
                self.token = int(taken)
        except (redis.RedisError, ValueError, TypeError):  # a server may answer anything
            # While Redis is away no process can take the lead or write; ours ends before the lease may expire.
            return self._clock.monotonic() < self._until
        self._until = asked + _SAFE_FRACTION * self._lease
        return True

    def holder(self) -> str:
        try:
            found: Any = self._client.get(self._holder)
        except redis.RedisError:
            return ""
        if found is None:
            return ""
        parts = _HOLDER.fullmatch(found.decode(errors="replace"))
        return _UNKNOWN if parts is None or not parts[1].isprintable() else parts[1]

    def read(self, key: str) -> bytes | None:
        """What the one that leads, or led, has noted. Raises: redis.RedisError."""
        found: Any = self._client.get(key)
        return None if found is None else bytes(found)

    def note(self, key: str, value: str) -> bool:
        """Write a value if this process leads; whether it does. Raises: redis.RedisError."""
        return bool(self._note(keys=[self._holder, key], args=[self._name(), value]))

    def release(self) -> None:
        try:
            if self.token is not None:
                self._release(keys=[self._holder], args=[self._name()])
        except redis.RedisError:
            pass  # the lease expires by itself
        finally:
            self.token = None
            self._client.close()

    def _name(self) -> str:
        return f"{self.token}:{self._owner}"
