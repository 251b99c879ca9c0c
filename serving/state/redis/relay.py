"""Relay of statuses between machines: each process sends its own to the shared Redis, one of a machine receives the others'.

Received statuses become files beside the machine's own, `lane-0@NODE.json`, so that readers of status files need to know
nothing of machines. An entry that is not renewed grows old like the file of a process that hangs, and is then removed. How
long it has not been renewed is measured here, whatever the sender's clock says.

Whoever writes to the Redis can put anything among the entries. Only those become files that are named as a process of
another machine, are no larger than a status and parse as one; the others are removed, and the log says so.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import redis

from pipeline.clock import Clock
from pipeline.errors import NotReady
from pipeline.redis.address import RedisAddress
from serving.runtime import status
from serving.state.redis.owner import IDENTITY, refuse_other

__all__ = ["Relay"]

EVERY_S = 1.0
FORGET_S = 60.0
SAY_EVERY_S = 60.0
MAX_ENTRIES = 10_000
"""Processes of all machines."""
MAX_ENTRY_BYTES = 512 << 10
MAX_BYTES = 8 << 20
"""Of all entries that are read in one pass: some thousands of processes of a few endpoints. The control process parses
them several times a second, so that many times as much would hold up its answers, /readyz among them."""
_CHUNK_ENTRIES = 100
_KEY = "control:status-of-processes"
_NAME = re.compile(r"[a-z][a-z0-9-]{0,60}@([A-Za-z0-9._-]{1,100})")

log = logging.getLogger(__name__)


class Relay:
    """Relay of one process; a thread of its own from `start` to `stop`.

    Args:
        folder: status files of this machine.
        node: its name.
        name: process whose status is sent, without `.json`; "": none.
        receive: whether statuses of other machines become files here; one process of a machine does that.
        identity: of the state that the home knows now; "": any.
    """

    def __init__(
        self,
        address: RedisAddress,
        folder: Path,
        node: str,
        clock: Clock,
        *,
        name: str = "",
        receive: bool = False,
        identity: Callable[[], str] = lambda: "",
    ) -> None:
        self._client = address.client(1.0)
        self._url = address.url
        self._folder, self._node, self._clock = folder, node, clock
        self._name, self._receives, self._identity = name, receive, identity
        self._renewed: dict[str, tuple[str, float]] = {}
        self._away = False
        self._say_s = 0.0
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
        """Send and receive once. Raises: redis.RedisError; NotReady: the Redis is another's; OSError: of this folder."""
        refuse_other(self._client.get(IDENTITY), self._identity(), self._url)
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
        others, odd = self._entries()
        texts: dict[str, str] = {}
        for name, raw in others.items():
            try:
                texts[name] = raw.decode()
            except ValueError:
                odd[name.encode()] = "not text"
        statuses = status.parse(texts, 0)
        readable = {name for name, report in statuses.all().items() if report.age_s is not None}
        reasons = {damaged.file.removesuffix(".json"): damaged.reason for damaged in statuses.damaged}
        odd |= {name.encode(): reasons.get(name, "it has no time") for name in texts if name not in readable}
        now = self._clock.monotonic()
        before, self._renewed = self._renewed, {name: (texts[name], now) for name in readable}
        self._renewed |= {name: entry for name, entry in before.items() if name in readable and texts[name] == entry[0]}
        kept = set()
        for name in sorted(readable):
            if now - self._renewed[name][1] > FORGET_S:
                self._client.hdel(_KEY, name)
                continue
            kept.add(f"{name}.json")
            status.write(self._folder, name, texts[name])
        for file in self._folder.glob("*@*.json"):
            if file.name not in kept:
                file.unlink(missing_ok=True)
        self._remove(odd, now)

    def _entries(self) -> tuple[dict[str, bytes], dict[bytes, str]]:
        """Entries of processes of other machines, and why each of the others is none."""
        wanted, odd = [], {}
        for name in self._names():
            text = name.decode(errors="replace")
            found = _NAME.fullmatch(text)
            if found is None:
                odd[name] = "it is not named PROCESS@NODE"
            elif found[1] != self._node:
                wanted.append(text)
        entries: dict[str, bytes] = {}
        left, over = MAX_BYTES, 0
        for start in range(0, len(wanted), _CHUNK_ENTRIES):
            chunk = wanted[start : start + _CHUNK_ENTRIES]
            with self._client.pipeline(transaction=False) as pipe:
                for text in chunk:
                    pipe.hstrlen(_KEY, text)
                sizes: Any = pipe.execute()
            few = []
            for text, size in zip(chunk, sizes, strict=True):
                if size > MAX_ENTRY_BYTES:
                    odd[text.encode()] = f"it has {size} bytes"
                elif size <= left:
                    left -= size
                    few.append(text)
                else:
                    over += 1
            values: Any = self._client.hmget(_KEY, few) if few else []
            entries |= {text: raw for text, raw in zip(few, values, strict=True) if raw is not None}
        now = self._clock.monotonic()
        if over and now >= self._say_s:
            self._say_s = now + SAY_EVERY_S
            log.error("state %s relays more than %d MiB; %d entries are not read", self._url, MAX_BYTES >> 20, over)
        return entries, odd

    def _names(self) -> list[bytes]:
        """Names of the entries."""
        number: Any = self._client.hlen(_KEY)
        if number > MAX_ENTRIES:
            self._client.delete(_KEY)
            log.error("state %s relays %d entries, more than %d, and all were removed", self._url, number, MAX_ENTRIES)
            return []  # every process sends its own again within a second
        names: Any = self._client.hkeys(_KEY)
        return list(names)

    def _remove(self, odd: Mapping[bytes, str], now: float) -> None:
        """Remove entries that are no statuses, and say so of one, once a minute."""
        if not odd:
            return
        self._client.hdel(_KEY, *odd)
        if now >= self._say_s:
            self._say_s = now + SAY_EVERY_S
            name, reason = next(iter(odd.items()))
            log.error(
                "%d entries that state %s relays are no statuses and were removed, %r among them: %.200s",
                len(odd), self._url, name[:80], reason,
            )  # fmt: skip

    def _run(self) -> None:
        while not self._stop.wait(EVERY_S):
            try:
                self.step()
                self._away = False
            except Exception as error:  # whatever lies in the Redis, this thread outlives it
                if not self._away:
                    expected = isinstance(error, (redis.RedisError, NotReady, OSError))
                    log.error("status is not relayed now, by state %s: %s", self._url, error, exc_info=not expected)
                self._away = True
