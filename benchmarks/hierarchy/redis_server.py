"""Private redis-server of a bench, on a Unix socket in a temporary folder."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import redis

from pipeline.redis.address import RedisAddress

__all__ = ["PrivateRedis"]

LIMIT_S = 10.0


class PrivateRedis:
    """Redis server within a `with` block; `options` as on the command line, the last one of a name counts."""

    def __init__(self, folder: Path, *options: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._options = options
        self.address = RedisAddress(f"unix://{folder / 'r.sock'}")

    @staticmethod
    def installed() -> bool:
        return shutil.which("redis-server") is not None

    def used_bytes(self) -> int:
        """Memory in use, as Redis counts it."""
        with self.address.client(LIMIT_S) as client:
            return int(client.info("memory")["used_memory"])

    def __enter__(self) -> PrivateRedis:
        argv = ["redis-server", "--port", "0", "--unixsocket", str(self._folder / "r.sock"), "--save", ""]
        with open(self._folder / "log", "wb") as log:
            self._process = subprocess.Popen(
                [*argv, "--appendonly", "no", "--dir", str(self._folder), *self._options], stdout=log, stderr=log
            )
        until = time.monotonic() + LIMIT_S
        while True:
            try:
                with self.address.client(LIMIT_S) as client:
                    client.ping()
                return self
            except redis.ConnectionError:
                if self._process.poll() is not None or time.monotonic() > until:
                    self.__exit__()
                    said = (self._folder / "log").read_text()
                    raise RuntimeError(f"redis-server did not start: {said}") from None
                time.sleep(0.02)

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait(LIMIT_S)
