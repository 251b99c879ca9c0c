"""Store of browser sessions in the Redis that machines share: who signs out at one control process is out at all of them.

control:session:KEY     row of a session; expires by the server's clock
control:sessions        sorted set of "KEY TOKEN" by end, which bounds their number
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pipeline.redis.address import RedisAddress
from pipeline.redis.connections import asking
from pipeline.redis.foreign import parsing
from serving.security.session import SessionRow
from serving.state.sessions import MAX_SESSIONS, MAX_TOKEN_SESSIONS

__all__ = ["RedisSessions"]

TIMEOUT_S = 1.0
_PREFIX, _INDEX = "control:session:", "control:sessions"
_LISTED = re.compile(rb"([0-9a-f]{64}) (\S{1,64})")


class RedisSessions:
    """See `serving.security.session.SessionRows`."""

    def __init__(self, address: RedisAddress, timeout: float = TIMEOUT_S) -> None:
        self._url = address.url
        self._client = address.client(timeout)

    def put(self, row: SessionRow, now_ms: int) -> None:
        with asking(f"state {self._url}"):
            with self._client.pipeline() as pipe:
                pipe.zremrangebyscore(_INDEX, "-inf", now_ms)
                pipe.zremrangebyrank(_INDEX, 0, -1 - 2 * MAX_SESSIONS)
                pipe.zrange(_INDEX, 0, -1)
                listed: list[bytes] = pipe.execute()[-1]
            own = f"{row.key} {row.token}"
            with self._client.pipeline() as pipe:
                for member in _over(listed, row.token):
                    pipe.zrem(_INDEX, member)
                    pipe.delete(_PREFIX.encode() + member.partition(b" ")[0])
                pipe.set(_PREFIX + row.key, row.pack(), px=max(1, row.ends_ms - now_ms))
                pipe.zadd(_INDEX, {own: row.ends_ms})
                pipe.execute()

    def get(self, keys: Collection[str]) -> Mapping[str, SessionRow]:
        with asking(f"state {self._url}"):
            stored: Any = self._client.mget([_PREFIX + key for key in keys])
        with parsing(f"state {self._url}"):
            texts = list(zip(keys, stored, strict=True))
        rows = [SessionRow.unpack(key, text.decode("latin-1")) for key, text in texts if text is not None]
        return {row.key: row for row in rows if row is not None}

    def remove(self, key: str) -> None:
        with asking(f"state {self._url}"):
            row = self.get([key]).get(key)
            self._client.delete(_PREFIX + key)
            if row is not None:
                self._client.zrem(_INDEX, f"{key} {row.token}")

    def close(self) -> None:
        self._client.close()


def _over(listed: Sequence[bytes], token: str) -> list[bytes]:
    """Members that leave the set for a new one of a token: those of another form, and the first that end."""
    gone = [member for member in listed if not _LISTED.fullmatch(member)]
    own = [member for member in listed if member.endswith(b" " + token.encode())]
    gone += own[: max(0, len(own) + 1 - MAX_TOKEN_SESSIONS)]
    leaves = set(gone)
    left = [member for member in listed if member not in leaves]
    return [*gone, *left[: max(0, len(left) + 1 - MAX_SESSIONS)]]
