"""Kind of a Redis server, from what it says of itself: whether it is one that Baton can work with, and may be written to.

A connection that was made says nothing of this: a Redis Cluster, a Sentinel and a read-only replica accept connections,
too, and so does a web server. All connections are held against it when they are made (`connections`, `address`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import redis

__all__ = ["ReadOnlyServer", "RedisServer", "WrongServer"]

LEAST_VERSION = (6, 0)
_NUMBER_LETTERS = 20
_KINDS = {
    "cluster": "is a node of a Redis Cluster, which is not supported; name a standalone Redis",
    "sentinel": "is a Redis Sentinel; name the Redis that it watches, by an address that follows its fail-over",
}


class WrongServer(redis.ConnectionError):
    """What listens at the address is not a Redis that can be used, now or later."""


class ReadOnlyServer(redis.ConnectionError):
    """The server is a replica, now: after a fail-over the address may lead to another one."""


@dataclass(frozen=True, slots=True)
class RedisServer:
    """What a server says of itself.

    Args:
        run_id: of this run of the server; two addresses with the same one lead to one server.
        version: () where it is not a number; mode: `standalone`, `cluster` or `sentinel`.
        primary: HOST:PORT of the server that this one replicates; "" where it is no replica.
        used_bytes: of memory that count against `max_bytes` (0: no limit); policy: what it does at that limit.
        append_only: whether it keeps an append-only file.
        evicted: keys that it has evicted in this run; refused: writes that it has refused in this run, since its memory was
            full or its own disk failed.
    """

    run_id: str
    version: tuple[int, ...]
    mode: str
    primary: str
    used_bytes: int
    max_bytes: int
    policy: str
    append_only: bool
    evicted: int
    refused: int = 0

    @classmethod
    def parse(cls, info: bytes) -> RedisServer:
        """The server by its answer to INFO, whole or a section of it."""
        lines = (line.partition(":") for line in info.decode(errors="replace").splitlines() if line[:1] != "#")
        return cls.of({name: value for name, _, value in lines})

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> RedisServer:
        """The same by the fields of that answer."""
        found = {name: str(value).strip() for name, value in info.items()}
        parts = found.get("redis_version", "").split(".")[:2]
        return cls(
            run_id=found.get("run_id", ""),
            version=tuple(map(int, parts)) if all(map(_is_number, parts)) else (),
            mode=found.get("redis_mode", "standalone"),
            primary=f"{found.get('master_host')}:{found.get('master_port')}" if found.get("role") == "slave" else "",
            used_bytes=_number(found, "used_memory") - _number(found, "mem_not_counted_for_evict"),
            max_bytes=_number(found, "maxmemory"),
            policy=found.get("maxmemory_policy", ""),
            append_only=found.get("aof_enabled") == "1",
            evicted=_number(found, "evicted_keys"),
            refused=sum(_first_number(found.get(f"errorstat_{code}", "")) for code in ("OOM", "MISCONF")),
        )

    def check(self, where: str) -> None:
        """Check that it can be used and written to. `where`: its address, for messages.

        Raises:
            WrongServer: it never can. ReadOnlyServer: it is a replica now.
        """
        if self.mode in _KINDS:
            raise WrongServer(f"{where} {_KINDS[self.mode]}")
        if self.version and self.version < LEAST_VERSION:
            raise WrongServer(f"{where} is Redis {text_of(self.version)}; {text_of(LEAST_VERSION)} is needed")
        if self.primary:
            raise ReadOnlyServer(f"{where} is a read-only replica of {self.primary}; name the primary")


def text_of(version: tuple[int, ...]) -> str:
    """A version as people write it."""
    return ".".join(map(str, version))


def _number(found: Mapping[str, str], name: str) -> int:
    value = found.get(name, "")
    return int(value) if _is_number(value) else 0


def _first_number(text: str) -> int:
    """The number in `count=7`, or in the form that a client makes of it."""
    found = re.search(r"\d{1,18}", text)
    return int(found[0]) if found else 0


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) <= _NUMBER_LETTERS
