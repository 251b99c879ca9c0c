"""Store of idempotency keys in Redis: a call that is repeated to another control process is recognised there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from pipeline.errors import NotReady
from pipeline.redis.address import RedisAddress
from pipeline.redis.connections import asking
from pipeline.redis.foreign import parsing
from serving.state.idempotency import Taken
from serving.state.redis.owner import IDENTITY

__all__ = ["RedisKeys"]

_TRIES = 3


class RedisKeys:
    """See `serving.state.idempotency.Keys`; all methods raise NotReady while Redis cannot be reached.

    Args:
        kept_ms: age up to which a key is kept.
        identity: of the state that the home knows now; "": any. One that lost it may have lost the keys, too: it takes none.
    """

    def __init__(self, address: RedisAddress, *, kept_ms: int, identity: Callable[[], str] = lambda: "") -> None:
        self._url = address.url
        self._client = address.client(5.0)
        self._kept_ms, self._identity = kept_ms, identity

    def take(self, caller: str, key: str, digest: str, now_ms: int) -> Taken | None:
        name = _name(caller, key)
        for _ in range(_TRIES):
            with asking(f"state {self._url}"):
                known = self._identity()
                if known and self._client.get(IDENTITY) != known.encode():
                    raise NotReady(f"state {self._url} is not the one that this home knows: nothing is done on it")
                if self._client.set(name, digest, nx=True, px=self._kept_ms):
                    return None
                found: Any = self._client.get(name)
            if found is not None:  # else its time was up between the two
                with parsing(f"state {self._url}: idempotency key {name}"):
                    digest_, answered, answer = found.decode().partition("\n")
                    return Taken(digest_, answer if answered else None)
        raise NotReady(f"state {self._url}: the idempotency key {name} comes and goes")

    def answer(self, caller: str, key: str, answer: str) -> None:
        with asking(f"state {self._url}"):
            self._client.append(_name(caller, key), f"\n{answer}")

    def free(self, caller: str, key: str) -> None:
        with asking(f"state {self._url}"):
            self._client.delete(_name(caller, key))

    def close(self) -> None:
        self._client.close()


def _name(caller: str, key: str) -> str:
    return "control:once:" + hashlib.sha256(f"{caller}\0{key}".encode()).hexdigest()
