"""Check of a Redis that holds the only copy of data: no eviction, an append-only file, and the commands that are needed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import redis

from pipeline.errors import InvalidInput, NotReady
from pipeline.redis.server import RedisServer, WrongServer, text_of

__all__ = ["require_commands", "require_durable", "server_of"]

_LEAST_VERSION = (6, 2)
_COMMANDS = (
    "WATCH",
    "MULTI",
    "EXEC",
    "EVALSHA",
    "SCRIPT",
    "XADD",
    "XRANGE",
    "XGROUP",
    "ZADD",
    "HSET",
    "SET",
    "PEXPIRE",
)

log = logging.getLogger(__name__)


def server_of(client: redis.Redis, name: str) -> RedisServer:
    """What a server says of itself. `name`: of its use, with its URL, for messages.

    Raises:
        InvalidInput: it is not a Redis that can be used. NotReady: it cannot be reached now.
    """
    try:
        info: Any = client.info()
    except WrongServer as error:
        raise InvalidInput(f"{name}: {error}", "url") from error
    except redis.RedisError as error:
        raise NotReady(f"{name} cannot be opened: {error}") from error
    return RedisServer.of(info)


def require_durable(client: redis.Redis, name: str, kept: str) -> None:
    """Check that the settings of a server make its data durable, and that it has the commands that are needed.

    Args:
        name: of its use, with its URL, for messages; kept: the data that would be lost.

    Raises:
        InvalidInput: it evicts, keeps no append-only file, lacks commands, is too old or of another kind.
        NotReady: it cannot be reached now.
    """
    server = server_of(client, name)
    if server.version and server.version < _LEAST_VERSION:
        raise InvalidInput(f"{name} is Redis {text_of(server.version)}; {text_of(_LEAST_VERSION)} is needed", "url")
    if server.policy != "noeviction":
        raise InvalidInput(
            f"{name} evicts keys when memory is full (maxmemory-policy {server.policy}), which would lose {kept}; "
            "set `maxmemory-policy noeviction`, or name a Redis of its own",
            "url",
        )
    if not server.append_only:
        raise InvalidInput(
            f"{name} keeps no append-only file, so a restart would lose {kept}; set `appendonly yes`", "url"
        )
    require_commands(client, name, _COMMANDS)
    try:
        settings: Any = client.config_get("appendfsync")
    except redis.RedisError:
        return  # CONFIG is not allowed
    sync = settings.get("appendfsync")
    if sync != "always":
        log.warning(
            "%s has appendfsync %s: what was acknowledged survives the end of any process of ours, but a crash of Redis "
            "or its machine may take the last seconds; `appendfsync always` closes that gap",
            name,
            sync,
        )


def require_commands(client: redis.Redis, name: str, commands: Sequence[str]) -> None:
    """Check that a server has commands, which some providers take away.

    Raises:
        InvalidInput: naming those that it lacks. NotReady: it cannot be reached now.
    """
    try:
        known: Any = client.execute_command("COMMAND INFO", *commands)  # type: ignore[no-untyped-call]
    except redis.ResponseError:
        return  # COMMAND is not allowed
    except redis.RedisError as error:
        raise NotReady(f"{name} cannot be opened: {error}") from error
    if not isinstance(known, list) or len(known) != len(commands):
        raise NotReady(f"{name} does not answer as a Redis does: its reply to COMMAND INFO is none")
    missing = [command for command, found in zip(commands, known, strict=True) if found is None]
    if missing:
        raise InvalidInput(f"{name} lacks the commands {', '.join(missing)}; name a Redis that has them", "url")
