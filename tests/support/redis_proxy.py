"""Proxy between a client and a redis-server, which is slow or sends garbage on request."""

from __future__ import annotations

import random
import re
import socket
import threading
import time
from pathlib import Path
from typing import Literal

Mood = Literal["honest", "slow", "junk", "strings", "mute"]
"""`junk`: bytes that are not a reply; `strings`: a reply of the right shape with random strings."""


class RedisProxy:
    """Proxy on a free port of 127.0.0.1; `mood` may change at any time."""

    def __init__(self, server: Path, delay: float = 0.5) -> None:
        self.mood: Mood = "honest"
        self._server = server
        self._delay = delay
        self._random = random.Random(3)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        self._sockets: list[socket.socket] = [self._listener]
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def close(self) -> None:
        for each in self._sockets:
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(client)
            threading.Thread(target=self._serve, args=(client,), name="proxy-client", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """Forward one command and one reply at a time, as lookups and probes use a connection."""
        with socket.socket(socket.AF_UNIX) as server, client:
            try:
                server.connect(str(self._server))
                while question := self._whole(client):
                    server.sendall(question)
                    answer = server.recv(1 << 20)
                    while len(answer) > 4096 and len(answer) % 4096 == 0:
                        answer += server.recv(1 << 20)
                    if self.mood == "slow":
                        time.sleep(self._delay)
                    client.sendall(self._twist(question, answer))
            except OSError:
                return

    def _whole(self, client: socket.socket) -> bytes:
        """A complete command; its header holds the number and sizes of its strings."""
        raw = client.recv(1 << 20)
        while raw and not _complete(raw):
            raw += client.recv(1 << 20)
        return raw

    def _twist(self, question: bytes, answer: bytes) -> bytes:
        if self.mood == "junk":
            return self._random.randbytes(self._random.randint(1, 200)) + b"\r\n"
        if self.mood == "strings" and b"MGET" in question[:40]:
            count = int(question[1 : question.index(b"\r")]) - 1
            values = [self._random.randbytes(self._random.choice([0, 3, 24])) for _ in range(count)]
            return b"*%d\r\n" % count + b"".join(b"$%d\r\n%s\r\n" % (len(v), v) for v in values)
        if self.mood == "mute":
            return b""
        return answer


def _complete(raw: bytes) -> bool:
    head = re.match(rb"\*(\d+)\r\n", raw)
    if head is None:
        return False
    at = head.end()
    for _ in range(int(head[1])):
        size = re.compile(rb"\$(\d+)\r\n").match(raw, at)
        if size is None:
            return False
        at = size.end() + int(size[1]) + 2
    return len(raw) >= at
