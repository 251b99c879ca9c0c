"""Redis server of the traffic log: checks and calls.

A traffic log must lose nothing, so a server that evicts keys or keeps them in memory only is refused. Every call ends
within the timeout, and every failure is NotReady; the caller decides how often to try again. Where the server has a
`maxmemory`, a reserve below it is left to others (`reserve`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis
from redis.client import Pipeline

from pipeline.clock import Clock, SystemClock
from pipeline.errors import InvalidInput, NotReady
from pipeline.redis.address import RedisAddress
from pipeline.redis.connections import asking
from pipeline.redis.durable import require_durable
from pipeline.redis.foreign import parsing, whole_number
from pipeline.redis.server import RedisServer
from pipeline.traffic.redis.reserve import Reserve
from pipeline.traffic.redis.scripts import OPEN

__all__ = ["FORMAT_VERSION", "TrafficRedis"]

FORMAT_VERSION = 1

log = logging.getLogger(__name__)


class _Emptied(NotReady):
    """The database is no log any more."""


class TrafficRedis:
    """Connections of one process; usable from several threads.

    Args:
        timeout: seconds without an answer after which a call fails.
        reserve_bytes: see `Reserve`.
        begun_before: whether readers may remember places in a log that was here and is gone.

    Raises:
        InvalidInput: it evicts, keeps no append-only file, is too old, or holds something else.
        NotReady: it cannot be reached now.
    """

    def __init__(
        self,
        address: RedisAddress,
        timeout: float = 5.0,
        reserve_bytes: int | None = None,
        clock: Clock | None = None,
        begun_before: bool = False,
    ) -> None:
        self.url = address.url
        self._client = address.client(timeout)
        self._scripts: dict[str, Any] = {}
        self._reserve = Reserve(self._memory, reserve_bytes, clock or SystemClock())
        self._closed = False
        try:
            self._check(begun_before)
        except BaseException:
            self._client.close()
            raise

    @contextmanager
    def client(self) -> Iterator[redis.Redis]:
        """The client; its failures become NotReady."""
        if self._closed:
            raise NotReady(f"traffic log {self.url} is closed")
        with asking(f"traffic log {self.url}"):
            yield self._client

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a script of `scripts`; a log that was emptied meanwhile is made again.

        Raises:
            LogFull: it makes the log grow, which has come to its reserve.
        """
        self._reserve.check(script, arguments)
        try:
            return self._run(script, arguments)
        except _Emptied:
            self.open_again()
            return self._run(script, arguments)

    def _run(self, script: str, arguments: Sequence[Any]) -> Any:
        with self.client() as client:
            known = self._scripts.get(script)
            if known is None:
                known = self._scripts[script] = client.register_script(script)
            try:
                return known(args=arguments)
            except redis.ResponseError as error:
                if str(error).startswith("LOST "):
                    raise _Emptied(f"traffic log {self.url} was emptied") from None
                raise

    def open_again(self) -> None:
        """Make what is missing of a log whose database lost it, all or a part. Raises: NotReady: it holds other keys now."""
        if self._open(1000 * self.now_ms()) == b"foreign":
            raise NotReady(f"{self.url} holds another program's keys in place of the traffic log")
        log.error(
            "traffic log %s had lost what makes it one, and was made again: what it does not hold any more is gone, and labels "
            "for it are refused",
            self.url,
        )

    def _open(self, begun: int) -> Any:
        return self._run(OPEN, (FORMAT_VERSION, begun))

    def many(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Answers to reading commands, in one round trip; others may write in between."""
        if not commands:
            return []
        with self.client() as client:
            pipe: Pipeline = client.pipeline(transaction=False)
            for command in commands:
                pipe.execute_command(*command)  # type: ignore[no-untyped-call]
            return list(pipe.execute())

    def groups(self, stream: str, needed: str = "") -> dict[str, int]:
        """Each consumer group of a stream with the seq of its last entry. `needed`: one that is made again where it is gone."""
        try:
            found = self._groups(stream)
        except _Emptied:
            self.open_again()
            return self._groups(stream)
        if needed and needed not in found:
            self.open_again()
            return self._groups(stream)
        return found

    def _groups(self, stream: str) -> dict[str, int]:
        with self.client() as client:
            try:
                found: Any = client.xinfo_groups(stream)
            except redis.ResponseError as error:
                if "no such key" in str(error):
                    raise _Emptied(f"traffic log {self.url} was emptied") from None
                raise
        return {g["name"].decode(): int(bytes(g["last-delivered-id"]).partition(b"-")[0]) for g in found}

    def now_ms(self) -> int:
        """Unix milliseconds by the server's clock."""
        with self.client() as client:
            seconds, microseconds = client.time()
        return int(seconds) * 1000 + int(microseconds) // 1000

    def used_bytes(self) -> int:
        """Memory that the server uses for data."""
        with self.client() as client:
            memory: Any = client.info("memory")
        return int(memory["used_memory"])

    def close(self) -> None:
        """Close the connections; later use raises NotReady."""
        self._closed = True
        self._client.close()

    def _memory(self) -> RedisServer:
        with self.client() as client:
            return RedisServer.of(client.info("memory"))

    def _check(self, begun_before: bool) -> None:
        require_durable(self._client, f"traffic log {self.url}", "labels")
        found = self._open(1000 * self.now_ms() if begun_before else 0)
        if found == b"foreign":
            raise InvalidInput(
                f"{self.url} holds another program's keys; give the traffic log a Redis, or a database number, of its own",
                "url",
            )
        with parsing(f"traffic log {self.url}, traffic:format,"):
            version = whole_number(found) if isinstance(found, bytes) else int(found)
        if version > FORMAT_VERSION:
            raise InvalidInput(
                f"{self.url} was written by a newer Baton (format {version}; this one knows {FORMAT_VERSION}): upgrade this "
                "installation, or name an empty database",
                "url",
            )
