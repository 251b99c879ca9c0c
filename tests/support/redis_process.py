"""redis-server of one test: on a Unix socket or a port of 127.0.0.1, in its own folder."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType

import pytest
import redis

from pipeline.redis.address import RedisAddress

LIMIT = 10.0


class RedisProcess:
    """A redis-server, as a context manager; `options` as in redis.conf. It may be killed and started again."""

    def __init__(self, folder: Path, *options: str, port: int = 0, url: str = "", ca: Path | None = None) -> None:
        if shutil.which("redis-server") is None:
            pytest.fail("these tests run a real redis-server; install it (Debian: apt-get install redis-server)")
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.socket = folder / "r.sock"
        self.address = RedisAddress(url or f"unix://{self.socket}", ca=ca)
        self._argv = [
            *("redis-server", "--port", str(port), "--bind", "127.0.0.1", "--unixsocket", str(self.socket)),
            *("--save", "", "--appendonly", "no", "--dir", str(folder), "--loglevel", "warning", *options),
        ]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> RedisProcess:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(self._argv, stdout=log, stderr=log)
        until = time.monotonic() + LIMIT
        while True:
            try:
                with redis.Redis(
                    unix_socket_path=str(self.socket)
                ) as client:  # of any kind, also one that Baton refuses
                    client.ping()
                return self
            except redis.AuthenticationError:
                return self
            except redis.ConnectionError:
                if self.process.poll() is not None or time.monotonic() > until:
                    raise AssertionError(f"redis-server did not start: {(self.folder / 'log').read_text()}") from None
                time.sleep(0.01)

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """As a crash would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(LIMIT)

    def client(self) -> redis.Redis:
        return self.address.client(5.0)

    def __enter__(self) -> RedisProcess:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()  # also when it is stopped
            self.process.wait(LIMIT)
