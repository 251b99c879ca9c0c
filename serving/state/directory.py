"""Where replicas can be reached: every replica says it again and again, and who has stopped saying so is not there.

In files of `home`, or in the Redis that keeps the state which machines share, where the configuration names one. Clients
that cannot ask use headless DNS or Envoy instead (docs/scaling.md).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import redis

from pipeline.clock import Clock
from pipeline.errors import NotReady
from serving.config import Config
from serving.runtime.process import write_status
from serving.state.redis.access import redis_address

__all__ = ["ServiceDirectory", "ServiceRecord", "open_directory", "target_of"]

ALIVE_S = 10.0
"""Seconds after which a replica that said nothing is taken for gone."""
TIMEOUT_S = 2.0
_PREFIX = "baton:replica:"
_INDEX = "baton:replicas"


@dataclass(frozen=True, slots=True)
class ServiceRecord:
    """One replica: its name, host:port of its lanes, and the node that it is on."""

    replica: str
    address: str
    node: str = ""


class ServiceDirectory(Protocol):
    """Who answers, and where."""

    def announce(self, record: ServiceRecord) -> None:
        """Say that a replica answers; good for `ALIVE_S` seconds. Raises: NotReady."""

    def withdraw(self, replica: str) -> None:
        """Say that it does not any more. Raises: NotReady."""

    def replicas(self) -> list[ServiceRecord]:
        """Those that answer, sorted by name. Raises: NotReady."""


def open_directory(config: Config, clock: Clock) -> ServiceDirectory:
    """The directory of an installation."""
    if config.state.url:
        return _RedisDirectory(redis_address(config.state, "state").client(TIMEOUT_S))
    return _FileDirectory(config.home / "run" / "replicas", clock)


def target_of(records: Sequence[ServiceRecord]) -> str:
    """A gRPC target of all replicas, for numeric addresses; clients spread over it with the policy round_robin.

    >>> target_of([ServiceRecord("a", "10.0.0.1:8001"), ServiceRecord("b", "10.0.0.2:8001")])
    'ipv4:10.0.0.1:8001,10.0.0.2:8001'
    """
    scheme = "ipv6" if records and records[0].address.startswith("[") else "ipv4"
    return f"{scheme}:" + ",".join(record.address for record in records)


class _FileDirectory:
    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder = folder
        self._clock = clock

    def announce(self, record: ServiceRecord) -> None:
        try:
            write_status(self._path(record.replica), {**asdict(record), "time_ms": self._clock.wall_ms()})
        except OSError as error:
            raise NotReady(f"the record of replica {record.replica} cannot be written: {error}") from None

    def withdraw(self, replica: str) -> None:
        self._path(replica).unlink(missing_ok=True)

    def replicas(self) -> list[ServiceRecord]:
        found = []
        for path in sorted(self._folder.glob("*.json")):
            try:
                raw = json.loads(path.read_text())
            except (OSError, ValueError):
                continue  # withdrawn under our hands
            if self._clock.wall_ms() - raw.pop("time_ms") <= 1000 * ALIVE_S:
                found.append(ServiceRecord(**raw))
        return found

    def _path(self, replica: str) -> Path:
        return self._folder / f"{replica}.json"


class _RedisDirectory:
    """A key per replica, which expires by the server's clock, and a set of their names."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def announce(self, record: ServiceRecord) -> None:
        try:
            with self._redis.pipeline() as pipe:
                pipe.set(_PREFIX + record.replica, json.dumps(asdict(record)), px=int(1000 * ALIVE_S))
                pipe.sadd(_INDEX, record.replica)
                pipe.execute()
        except redis.RedisError as error:
            raise NotReady(f"the record of replica {record.replica} cannot be written: {error}") from None

    def withdraw(self, replica: str) -> None:
        try:
            with self._redis.pipeline() as pipe:
                pipe.delete(_PREFIX + replica)
                pipe.srem(_INDEX, replica)
                pipe.execute()
        except redis.RedisError as error:
            raise NotReady(f"the record of replica {replica} cannot be removed: {error}") from None

    def replicas(self) -> list[ServiceRecord]:
        try:
            names = sorted(os.fsdecode(name) for name in self._redis.smembers(_INDEX))
            texts = self._redis.mget([_PREFIX + name for name in names]) if names else []
            gone = [name for name, text in zip(names, texts, strict=True) if text is None]
            if gone:
                self._redis.srem(_INDEX, *gone)
        except redis.RedisError as error:
            raise NotReady(f"the records of replicas cannot be read: {error}") from None
        return [ServiceRecord(**json.loads(text)) for text in texts if text is not None]
