"""Store of idempotency keys in Redis: a call that is repeated to another control process is recognised there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis

from pipeline.errors import NotReady
from pipeline.redis.address import RedisAddress
from serving.state.idempotency import Taken

__all__ = ["RedisKeys"]


class RedisKeys:
    """See `serving.state.idempotency.Keys`; all methods raise NotReady while Redis cannot be reached.

    Args:
        kept_ms: age up to which a key is kept.
    """

    def __init__(self, address: RedisAddress, *, kept_ms: int) -> None:
        self._url = address.url
        self._client = address.client(5.0)
        self._kept_ms = kept_ms

    def take(self, caller: str, key: str, digest: str, now_ms: int) -> Taken | None:
        with self._reached():
            if self._client.set(_name(caller, key), digest, nx=True, px=self._kept_ms):
                return None
            found: Any = self._client.get(_name(caller, key))
        if found is None:  # its time was up between the two
            return self.take(caller, key, digest, now_ms)
        digest_, answered, answer = found.decode().partition("\n")
        return Taken(digest_, answer if answered else None)

    def answer(self, caller: str, key: str, answer: str) -> None:
        with self._reached():
            self._client.append(_name(caller, key), f"\n{answer}")

    def free(self, caller: str, key: str) -> None:
        with self._reached():
            self._client.delete(_name(caller, key))

    def close(self) -> None:
        self._client.close()

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except redis.RedisError as error:
            raise NotReady(f"state {self._url}: {error}") from error


def _name(caller: str, key: str) -> str:
    return "control:once:" + hashlib.sha256(f"{caller}\0{key}".encode()).hexdigest()
