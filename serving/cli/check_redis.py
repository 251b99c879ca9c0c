"""Checks of `baton doctor` of each configured Redis: that it is one that can do what it is named for, and who shares it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import redis

from pipeline.errors import BatonError
from pipeline.redis.address import RedisAddress
from pipeline.redis.durable import require_commands, require_durable, server_of
from pipeline.redis.server import RedisServer
from pipeline.traffic.redis.reserve import reserve_bytes
from serving.config import Config
from serving.config.section import RedisAccess
from serving.wiring.redis import open_to_others, redis_address
from serving.wiring.traffic import open_traffic_log

__all__ = ["redis_findings"]

Finding = tuple[str, bool, str]

TIMEOUT_S = 2.0
_CACHE_COMMANDS = ("MGET", "MSET", "EXISTS", "WATCH", "MULTI", "EXEC", "UNLINK", "SCAN", "TIME", "PEXPIRE")


def redis_findings(config: Config) -> list[Finding]:
    """A finding for each Redis that the configuration names, and one where two uses share a server."""
    found: list[Finding] = []
    servers: dict[str, RedisServer] = {}
    if config.embedding.redis is not None:
        found.append(_cache(config, servers))
    if config.state.url:
        found.append(_state(config, servers))
    if config.traffic.url:
        found.append(_traffic(config, servers))
    return found + _shared(servers, config)


def _cache(config: Config, servers: dict[str, RedisServer]) -> Finding:
    section = config.embedding.redis
    assert section is not None
    try:
        with _client(section, "embedding.redis") as (address, client):
            server = servers["embedding.redis"] = server_of(client, section.url)
            require_commands(client, section.url, _CACHE_COMMANDS)
            address.connect(TIMEOUT_S).close()  # as lookups do
    except (BatonError, OSError) as error:
        return ("redis", False, f"{error}; lookups pass it by")
    said = "answers"
    if not server.max_bytes:
        said += "; warning: it has no maxmemory, so rows may take all memory of its machine"
    elif server.policy == "noeviction":
        said += "; when it is full no rows are written (maxmemory-policy noeviction)"
    elif "segment" not in config.embedding.tiers:
        said += (
            f"; warning: it evicts rows when it is full ({server.policy}), and no segment tier is below it: answers are "
            "degraded until there is room for all rows"
        )
    return ("redis", True, f"{section.url} {said}{_allowed(section, 'embedding.redis')}")


def _state(config: Config, servers: dict[str, RedisServer]) -> Finding:
    url = config.state.url
    try:
        with _client(config.state, "state") as (_, client):
            require_durable(client, f"state {url}", "rollouts and their audit")
            servers["state"] = server_of(client, url)
    except BatonError as error:
        return ("state", False, str(error))
    said = f"{url} answers, evicts nothing and keeps an append-only file"
    return ("state", True, said + _allowed(config.state, "state"))


def _traffic(config: Config, servers: dict[str, RedisServer]) -> Finding:
    url = config.traffic.url
    try:
        open_traffic_log(config).close()
        with _client(config.traffic, "traffic") as (_, client):
            servers["traffic"] = server_of(client, url)
    except BatonError as error:
        return ("traffic", False, str(error))
    said = f"{url} answers, evicts nothing and keeps an append-only file; {_stop(servers, config)}"
    return ("traffic", True, said + _allowed(config.traffic, "traffic"))


def _stop(servers: dict[str, RedisServer], config: Config) -> str:
    """Where the log stops."""
    server = servers["traffic"]
    if not server.max_bytes:
        return "it has no maxmemory, so the log may take all memory of its machine"
    kept = reserve_bytes(server.max_bytes, config.traffic.reserve_bytes)
    return f"the log stops {kept >> 20} MiB below its maxmemory of {server.max_bytes >> 20} MiB"


def _shared(servers: dict[str, RedisServer], config: Config) -> list[Finding]:
    """A warning where the state shares its server, since whatever fills that server's memory stops the state's writes."""
    state = servers.get("state")
    with_state = [use for use, server in servers.items() if state is not None and server.run_id == state.run_id]
    if state is None or not state.run_id or len(with_state) < 2:
        return []
    others = " and ".join(use for use in with_state if use != "state")
    said = f"warning: state and {others} share one Redis, whose memory they may fill"
    if "traffic" in with_state:
        said += f"; {_stop(servers, config)}"
        said += ", so that weights and kills can still be written" if state.max_bytes else "; set one"
    said += "; give the state a Redis of its own"
    return [("shared redis", True, said)]


def _allowed(section: RedisAccess, name: str) -> str:
    """A warning where only `insecure` lets a Redis be used."""
    lack = open_to_others(redis_address(section, name))
    return f"; warning: {lack} ({name}.insecure)" if lack else ""


@contextlib.contextmanager
def _client(section: RedisAccess, name: str) -> Iterator[tuple[RedisAddress, redis.Redis]]:
    address = redis_address(section, name)
    with contextlib.closing(address.client(TIMEOUT_S)) as client:
        yield address, client
