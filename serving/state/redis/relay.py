"""Relay of statuses between machines: each process sends its own to the shared Redis, one of a machine receives the others'.

Received statuses become files beside the machine's own, `lane-0@NODE.json`, so that readers of status files need to know
nothing of machines. An entry that is not renewed grows old like the file of a process that hangs, and is then removed; so
is one that cannot be read. How long it has not been renewed is measured here, whatever the sender's clock says.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from pathlib import Path
from typing import Any

import redis

from pipeline.clock import Clock
from pipeline.redis.address import RedisAddress
from serving.runtime import status

__all__ = ["Relay"]

EVERY_S = 1.0
FORGET_S = 60.0
_KEY = "control:status-of-processes"

log = logging.getLogger(__name__)


class Relay:
    """Relay of one process; a thread of its own from `start` to `stop`.

    Args:
        folder: status files of this machine.
        node: its name.
        name: process whose status is sent, without `.json`; "": none.
        receive: whether statuses of other machines become files here; one process of a machine does that.
    """

    def __init__(
        self, address: RedisAddress, folder: Path, node: str, clock: Clock, *, name: str = "", receive: bool = False
    ) -> None:
        self._client = address.client(1.0)
        self._url = address.url
        self._folder, self._node, self._clock = folder, node, clock
        self._name, self._receives = name, receive
        self._renewed: dict[str, tuple[str, float]] = {}
        self._away = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="status-relay", daemon=True)

    def start(self) -> None:
        """Begin to send and to receive."""
        self._thread.start()

    def stop(self) -> None:
        """End; the status that was sent is removed."""
        self._stop.set()
        self._thread.join(5.0)
        if self._name:
            with contextlib.suppress(redis.RedisError):  # it grows old by itself
                self._client.hdel(_KEY, f"{self._name}@{self._node}")
        self._client.close()

    def step(self) -> None:
        """Send and receive once. Raises: redis.RedisError."""
        if self._name:
            self._send()
        if self._receives:
            self._receive()

    def _send(self) -> None:
        try:
            text = (self._folder / f"{self._name}.json").read_bytes()
        except OSError:
            return  # not written yet
        self._client.hset(_KEY, f"{self._name}@{self._node}", text)

    def _receive(self) -> None:
        entries: Any = self._client.hgetall(_KEY)
        texts = {name.decode(): text.decode(errors="replace") for name, text in entries.items()}
        others = {process: text for process, text in texts.items() if not process.endswith(f"@{self._node}")}
        readable = {name for name, report in status.parse(others, 0).all().items() if report.age_s is not None}
        now = self._clock.monotonic()
        before, self._renewed = self._renewed, {process: (text, now) for process, text in others.items()}
        self._renewed |= {process: entry for process, entry in before.items() if others.get(process) == entry[0]}
        kept = set()
        for process, text in others.items():
            if process not in readable or now - self._renewed[process][1] > FORGET_S:
                self._client.hdel(_KEY, process)
                continue
            kept.add(f"{process}.json")
            status.write(self._folder, process, text)
        for file in self._folder.glob("*@*.json"):
            if file.name not in kept:
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
