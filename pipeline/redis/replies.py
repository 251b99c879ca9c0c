"""Client of redis-py that holds each reply against the form that its command has.

A server that is no Redis, or that somebody took over, may answer anything. redis-py would go on with it, or raise errors
that are none of its own, from which threads end. Here such a reply is a `WrongReply`, one of `redis.RedisError`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import redis
from redis.client import Pipeline

from pipeline.redis.foreign import ODD, cause_of

__all__ = ["CheckedRedis", "WrongReply"]

_NUMBERS = (
    "APPEND DBSIZE DEL EXISTS HDEL HINCRBY HLEN HSET HSTRLEN INCR PEXPIRE SADD SCARD SISMEMBER SMOVE SREM UNLINK ZADD ZREM "
    "ZREMRANGEBYRANK ZREMRANGEBYSCORE"
)
_VALUES = "GET HGET"
_LISTS = "HGETALL HKEYS LRANGE SMEMBERS ZRANGE"
_VALUE_LISTS = "HMGET MGET"
_STREAMS = "XRANGE XREVRANGE"
_CALLBACKS = "CONFIG INFO SCAN SET TIME XINFO"


class WrongReply(redis.ResponseError):
    """A reply of a form that its command does not have."""


class CheckedRedis(redis.Redis):
    """Client of one server; also its pipelines and scripts are checked, but not what a script returns."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        parsers: Any = self.response_callbacks
        for names, fits in _FORMS:
            for name in names.split():
                parsers[name] = _checked(name, fits, parsers.get(name))
        for name in [name for name in parsers if str(name).split()[0].upper() in _CALLBACKS.split()]:
            parsers[name] = _checked(name, _any, parsers[name])

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Pipeline:
        return _CheckedPipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)


class _CheckedPipeline(Pipeline):
    def _execute_transaction(self, connection: Any, *args: Any, **options: Any) -> list[Any]:
        try:
            found: list[Any] = super()._execute_transaction(connection, *args, **options)
        except ODD as error:
            connection.disconnect()  # replies may be left on it
            raise WrongReply(f"the reply to a transaction is none ({cause_of(error)})") from error
        return found


def _checked(name: str, fits: Callable[[Any], bool], parse: Any) -> Callable[..., Any]:
    def checked(reply: Any, **options: Any) -> Any:
        if not fits(reply):
            raise WrongReply(f"{type(reply).__name__} is no reply to {name}")
        try:
            return reply if parse is None else parse(reply, **options)
        except ODD as error:
            raise WrongReply(f"the reply to {name} is none ({cause_of(error)})") from error

    return checked


def _any(reply: Any) -> bool:
    return True


def _is_number(reply: Any) -> bool:
    return type(reply) is int


def _is_value(reply: Any) -> bool:
    return reply is None or type(reply) is bytes


def _is_list(reply: Any) -> bool:
    return type(reply) is list and all(type(part) is bytes for part in reply)


def _is_value_list(reply: Any) -> bool:
    return type(reply) is list and all(map(_is_value, reply))


def _is_stream(reply: Any) -> bool:
    return type(reply) is list and all(map(_is_entry, reply))


def _is_entry(entry: Any) -> bool:
    if type(entry) is not list or len(entry) != 2 or type(entry[0]) is not bytes:
        return False
    place, fields = entry
    return all(part.isdigit() for part in place.split(b"-")) and _is_list(fields) and len(fields) % 2 == 0


_FORMS: tuple[tuple[str, Callable[[Any], bool]], ...] = (
    (_NUMBERS, _is_number),
    (_VALUES, _is_value),
    (_LISTS, _is_list),
    (_VALUE_LISTS, _is_value_list),
    (_STREAMS, _is_stream),
)
