"""Kill flags of several machines: a hash in the Redis that they share, with reasons; and a set, which needs no memory.

A Redis without memory refuses what could grow, HSET among it. SMOVE it does not refuse: a name that was put into the set
of spares before moves to the set of killed endpoints.

A flag goes by a release alone, which leaves the server's time beside it. One that has vanished without a later release was
lost, with an emptied Redis or by a fail-over to an older copy: it stays in force, and is written again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import redis

from pipeline.errors import NotReady
from pipeline.redis.address import RedisAddress
from pipeline.redis.connections import asking
from pipeline.redis.foreign import load_json, parsing, whole_number
from serving.state.kill import KillFlag, KillSwitch
from serving.state.redis.owner import IDENTITY, refuse_other

__all__ = ["RedisKillFlags"]

_REASONS = "control:killed"
_BARE = "control:killed:bare"
_SPARE = "control:killed:spare"
_RELEASED = "control:killed:released"
"""By endpoint, the server's time of its last release, Unix milliseconds."""
_MOST_LETTERS = 2000
_FULL = "the shared state had no memory left for the reason", "unknown"


log = logging.getLogger(__name__)


class RedisKillFlags:
    """`serving.state.kill.SharedFlags` in a Redis.

    Args:
        timeout: seconds without an answer after which a call fails.
        remembered: flags that this home has seen before.
        identity: of the state that the home knows now; "": any. Flags of another installation count for nothing.
    """

    def __init__(
        self,
        address: RedisAddress,
        timeout: float = 1.0,
        remembered: Mapping[str, KillFlag] | None = None,
        identity: Callable[[], str] = lambda: "",
    ) -> None:
        self._url = address.url
        self._client = address.client(timeout)
        self._identity = identity
        self._known: Mapping[str, KillFlag] = dict(remembered or {})
        self._lost: frozenset[str] = frozenset()

    @property
    def known(self) -> Mapping[str, KillFlag]:
        """Flags as they were seen last, for the home to remember."""
        return self._known

    def prepare(self, names: Iterable[str]) -> None:
        listed = sorted(names)
        if listed:
            with asking(f"state {self._url}"):
                self._check_owner(self._client.get(IDENTITY))
                self._client.sadd(_SPARE, *listed)

    def engage(self, endpoint: str, reason: str, actor: str) -> None:
        with asking(f"state {self._url}"):
            self._check_owner(self._client.get(IDENTITY))
            try:
                self._client.hset(_REASONS, endpoint, json.dumps({"reason": reason, "actor": actor}))
            except redis.OutOfMemoryError:
                if not self._client.smove(_SPARE, _BARE, endpoint) and not self._client.sismember(_BARE, endpoint):
                    raise

    def release(self, endpoint: str) -> bool:
        with asking(f"state {self._url}"), self._client.pipeline() as pipe:
            self._check_owner(self._client.get(IDENTITY))
            seconds, microseconds = self._client.time()
            pipe.hset(_RELEASED, endpoint, str(1000 * int(seconds) + int(microseconds) // 1000))
            pipe.hdel(_REASONS, endpoint)
            pipe.smove(_BARE, _SPARE, endpoint)
            _, flagged, moved = pipe.execute()
        remembered = endpoint in self._known
        self._known = {name: flag for name, flag in self._known.items() if name != endpoint}
        return bool(flagged or moved or remembered)

    def engaged(self) -> frozenset[str]:
        # No transaction: a Redis without memory refuses even reads in one. So times of releases are read at both ends: a flag
        # that is there is newer than the first, one that has gone was there before the last.
        with asking(f"state {self._url}"), self._client.pipeline(transaction=False) as pipe:
            pipe.get(IDENTITY)
            pipe.hgetall(_RELEASED)
            pipe.hgetall(_REASONS)
            pipe.smembers(_BARE)
            pipe.hgetall(_RELEASED)
            identity, before, reasons, bare, after = pipe.execute()
        self._check_owner(identity)
        with parsing(_REASONS):
            there = {name: _flag(text) for name, text in [*((n, None) for n in bare), *reasons.items()]}
            earlier, since = (
                {name.decode(errors="replace"): _time(text) for name, text in released.items()}
                for released in (before, after)
            )
        known = {
            text: replace(flag, released_ms=earlier.get(text, 0))
            for name, flag in there.items()
            if KillSwitch.is_name(text := name.decode(errors="replace"))  # others are no endpoint's
        }
        lost = {
            name: flag
            for name, flag in self._known.items()
            if name not in known and since.get(name, 0) <= flag.released_ms
        }
        if lost.keys() - self._lost:
            log.error("the kill flags of %s are gone without a release; they stay in force", ", ".join(sorted(lost)))
        self._known, self._lost = {**known, **lost}, frozenset(lost)
        return frozenset(self._known)

    def mend(self) -> None:
        """Write flags again that were lost. Raises: NotReady."""
        for name in self._lost:
            flag = self._known.get(name)
            if flag is not None:
                self.engage(name, flag.reason, flag.actor)

    def why(self, endpoint: str) -> tuple[str, str] | None:
        remembered = self._known.get(endpoint)
        try:
            with self._client.pipeline(transaction=False) as pipe:
                pipe.get(IDENTITY)
                pipe.hget(_REASONS, endpoint)
                pipe.sismember(_BARE, endpoint)
                identity, text, bare = pipe.execute()
            self._check_owner(identity)
        except (redis.RedisError, NotReady):
            return None if remembered is None else (remembered.reason, remembered.actor)
        if text is None and not bare:
            return None if remembered is None or endpoint not in self._lost else (remembered.reason, remembered.actor)
        flag = _flag(text)
        return flag.reason, flag.actor

    def _check_owner(self, found: Any) -> None:
        """Raises: NotReady: it is another's. One that was emptied takes flags: they stop traffic, and start none."""
        refuse_other(found, self._identity(), self._url)


def _flag(text: Any) -> KillFlag:
    if text is None:
        return KillFlag(*_FULL)
    try:
        with parsing("the kill flag"):
            kill = load_json(text)
            reason, actor = kill["reason"], kill["actor"]
            return KillFlag(str(reason)[:_MOST_LETTERS], str(actor)[:_MOST_LETTERS])
    except NotReady as error:  # it is one all the same
        return KillFlag(str(error), "unknown")


def _time(raw: Any) -> int:
    """Time of a release; what Baton did not write is none, and releases nothing."""
    try:
        with parsing(_RELEASED):
            return whole_number(raw)
    except NotReady:
        return 0
