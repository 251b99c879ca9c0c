"""Status between machines: each tells the shared Redis what its processes are doing, and hears it of the others.

What is heard becomes files beside the machine's own, `lane-0@NODE.json`, so whoever reads status files knows of no
machines. An entry that a machine no longer renews grows old like the file of a process that hangs, and is then removed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from pathlib import Path
from typing import Any

import redis

from pipeline.clock import Clock
from pipeline.redis.address import RedisAddress
from serving.runtime.process import write_status

__all__ = ["Relay"]

EVERY_S = 1.0
FORGET_MS = 60_000
_KEY = "control:status-of-processes"

log = logging.getLogger(__name__)


class Relay:
    """Of one process; a thread of its own from `start` to `stop`.

    Args:
        folder: status files of this machine.
        node: its name.
        name: process whose status is told, without `.json`; "": none.
        hear: whether the others' status becomes files here; one process of a machine does that.
    """

    def __init__(
        self, address: RedisAddress, folder: Path, node: str, clock: Clock, *, name: str = "", hear: bool = False
    ) -> None:
        self._client = address.client(1.0)
        self._url = address.url
        self._folder, self._node, self._clock = folder, node, clock
        self._name, self._hear = name, hear
        self._away = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="status-relay", daemon=True)

    def start(self) -> None:
        """Begin to tell and to hear."""
        self._thread.start()

    def stop(self) -> None:
        """End; what was told is taken back."""
        self._stop.set()
        self._thread.join(5.0)
        if self._name:
            with contextlib.suppress(redis.RedisError):  # it grows old by itself
                self._client.hdel(_KEY, f"{self._name}@{self._node}")
        self._client.close()

    def step(self) -> None:
        """Once. Raises: redis.RedisError."""
        if self._name:
            self._tell()
        if self._hear:
            self._listen()

    def _tell(self) -> None:
        try:
            status = (self._folder / f"{self._name}.json").read_text()
        except OSError:
            return  # not written yet
        self._client.hset(_KEY, f"{self._name}@{self._node}", status)

    def _listen(self) -> None:
        told: Any = self._client.hgetall(_KEY)
        now = self._clock.wall_ms()
        heard = set()
        for name, text in told.items():
            process = name.decode()
            if process.endswith(f"@{self._node}"):
                continue
            status = json.loads(text)
            if now - status.get("time_ms", 0) > FORGET_MS:
                self._client.hdel(_KEY, process)
                continue
            heard.add(f"{process}.json")
            write_status(self._folder / f"{process}.json", status)
        for file in self._folder.glob("*@*.json"):
            if file.name not in heard:
                file.unlink(missing_ok=True)

    def _run(self) -> None:
        while not self._stop.wait(EVERY_S):
            try:
                self.step()
                self._away = False
            except (redis.RedisError, OSError, ValueError) as error:
                if not self._away:
                    log.error("status is not relayed now, by state %s: %s", self._url, error)
                self._away = True
