"""Service directory in the Redis that machines share: a key per replica, and a set of their names."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import redis

from pipeline.errors import NotReady
from pipeline.redis.address import RedisAddress
from serving.runtime.status import FRESH_S
from serving.state.directory import ServiceRecord, parse_record
from serving.state.redis.owner import IDENTITY, refuse_other

__all__ = ["RedisDirectory"]

TIMEOUT_S = 2.0
MAX_REPLICAS = 10_000
_PREFIX = "baton:replica:"
_INDEX = "baton:replicas"


class RedisDirectory:
    """See `serving.state.directory.ServiceDirectory`; a record expires by the server's clock.

    Args:
        identity: of the state that the home knows now; "": any.
    """

    def __init__(self, address: RedisAddress, identity: Callable[[], str] = lambda: "") -> None:
        self._url, self._identity = address.url, identity
        self._client = address.client(TIMEOUT_S)

    def announce(self, record: ServiceRecord) -> None:
        try:
            refuse_other(self._client.get(IDENTITY), self._identity(), self._url)
            with self._client.pipeline() as pipe:
                pipe.set(_PREFIX + record.replica, json.dumps(asdict(record)), px=int(1000 * FRESH_S))
                pipe.sadd(_INDEX, record.replica)
                pipe.execute()
        except redis.RedisError as error:
            raise NotReady(f"the record of replica {record.replica} cannot be written: {error}") from None

    def withdraw(self, replica: str) -> None:
        try:
            with self._client.pipeline() as pipe:
                pipe.delete(_PREFIX + replica)
                pipe.srem(_INDEX, replica)
                pipe.execute()
        except redis.RedisError as error:
            raise NotReady(f"the record of replica {replica} cannot be removed: {error}") from None

    def replicas(self) -> list[ServiceRecord]:
        try:
            if self._client.scard(_INDEX) > MAX_REPLICAS:
                raise NotReady(f"there are more than {MAX_REPLICAS} records of replicas; remove the key {_INDEX}")
            members: Any = self._client.smembers(_INDEX)
            names = sorted(members)
            texts: Any = self._client.mget([_PREFIX.encode() + name for name in names]) if names else []
            gone = [name for name, text in zip(names, texts, strict=False) if text is None]
            if gone:
                self._client.srem(_INDEX, *gone)
        except redis.RedisError as error:
            raise NotReady(f"the records of replicas cannot be read: {error}") from None
        found = []
        for name, text in zip(names, texts, strict=False):
            parsed = None if text is None else parse_record(text)
            if parsed is not None and parsed[0].replica.encode() == name:
                found.append(parsed[0])
        return found
