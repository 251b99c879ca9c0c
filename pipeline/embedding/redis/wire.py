"""Connections to Redis for lookups: each lookup ends by its deadline, whatever the server does.

redis-py is used where waiting is allowed (`RedisAddress.client`: loading, sweeping, figures). A lookup may not wait: a
`Link` sends one MGET and reads its reply into an array up to a deadline. A late link is closed, since its reply would be
taken for that of the next lookup. `Links` is the pool; a thread of its own opens links and probes a server that was down,
so no request waits for connecting. Rows and their kernels: `rows`.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections import deque

import numpy as np

from pipeline.arrays import I32, I64, U8
from pipeline.clock import Clock
from pipeline.embedding.redis.breaker import CircuitBreaker
from pipeline.embedding.redis.rows import DONE_STATUS, KEY_BYTES, MORE_STATUS, REFUSED_STATUS, scan
from pipeline.errors import DeadlineExceeded
from pipeline.redis.address import RedisAddress, Unusable

__all__ = ["Late", "Link", "Links"]

SLACK_BYTES = 64
WORD_BYTES = 8  # that `scan` may read beyond the reply
TICK_S = 0.02

log = logging.getLogger(__name__)


class Late(DeadlineExceeded):
    """Redis did not answer in time."""


class Link:
    """Connection with the buffers of one lookup; used by one thread at a time."""

    def __init__(self, made: socket.socket, clock: Clock) -> None:
        self._socket = made
        self._clock = clock
        self.cells: I32 = np.zeros(0, np.int32)
        self.unique: I64 = np.zeros(0, np.int64)
        self.places: I32 = np.zeros(0, np.int32)
        self.starts: I64 = np.zeros(0, np.int64)
        self.sizes: I32 = np.zeros(0, np.int32)
        self.command: U8 = np.zeros(0, np.uint8)
        self.reply: U8 = np.zeros(0, np.uint8)
        self._state = np.zeros(2, np.int64)

    def reserve(self, ids: int, value_bytes: int) -> None:
        """Reserve buffers for a lookup of at most `ids` ids with values of at most `value_bytes`; clears `cells`."""
        if len(self.unique) < ids:
            size = 1 << max(9, ids - 1).bit_length()
            self.cells = np.zeros(2 * size, np.int32)
            self.unique = np.empty(size, np.int64)
            self.places = np.empty(size, np.int32)
            self.starts = np.empty(size + 1, np.int64)
            self.sizes = np.empty(size + 1, np.int32)
            self.command = np.empty((size + 1) * (KEY_BYTES + 7) + 4 * SLACK_BYTES, np.uint8)
        else:
            self.cells.fill(0)
        needed = len(self.starts) * (value_bytes + 16) + 4 * SLACK_BYTES
        if len(self.reply) < needed:
            self.reply = np.empty(needed, np.uint8)

    def ask(self, size: int, values: int, deadline: float) -> None:
        """Send `command[:size]`, read `values` values: places into `starts` and `sizes`, bytes into `reply`.

        Raises:
            Late: the reply is not complete by `deadline` (monotonic seconds). Unusable: an error, or not a reply to MGET.
            After either the link must be dropped.
        """
        state, reply = self._state, self.reply
        starts, sizes = self.starts[:values], self.sizes[:values]
        state[:] = 0
        filled = 0
        try:
            self._socket.settimeout(self._left(deadline))
            self._socket.sendall(self.command[:size].data)
            while True:
                self._socket.settimeout(self._left(deadline))
                got = self._socket.recv_into(reply[filled:-WORD_BYTES].data)
                if got == 0:
                    raise Unusable("redis closed the connection")
                filled += got
                found = scan(reply, filled, state, starts, sizes)
                if found == DONE_STATUS:
                    return
                if found == REFUSED_STATUS:
                    raise Unusable(f"redis refused: {reply[: min(filled, 200)].tobytes()!r}")
                if found != MORE_STATUS or filled == len(reply) - WORD_BYTES:
                    raise Unusable("redis answered what is not an answer to MGET")
        except TimeoutError:
            raise Late("redis did not answer in time") from None
        except OSError as error:
            raise Unusable(f"redis: {error}") from None

    def _left(self, deadline: float) -> float:
        left = deadline - self._clock.monotonic()
        if left <= 0:
            raise Late("redis did not answer in time")
        return left

    def close(self) -> None:
        self._socket.close()


class Links:
    """Pool of at most `most` open links to one Redis, and the thread that opens them.

    Args:
        breaker: decides when to probe a server that failed.
        timeout: seconds for each step of connecting.
    """

    def __init__(self, address: RedisAddress, breaker: CircuitBreaker, clock: Clock, *, most: int, timeout: float):
        self._pid = os.getpid()
        self._address = address
        self._breaker = breaker
        self._clock = clock
        self._permits: deque[None] = deque([None] * most)  # to open one more link
        self._timeout = timeout
        self._idle: deque[Link] = deque()
        self._wanted = threading.Event()
        self._stop = threading.Event()
        self._complaint = ""
        while self._permits and self._open():
            pass
        self._thread = threading.Thread(target=self._run, name="redis-connect", daemon=True)
        self._thread.start()

    def take(self) -> Link | None:
        """An open link; None when there is none now, and then one is being opened. A forked child has none: two processes
        on one connection would read each other's rows."""
        if os.getpid() != self._pid:
            return None
        try:
            return self._idle.pop()
        except IndexError:
            self._wanted.set()
            return None

    def give(self, link: Link) -> None:
        """Return a link to the pool after a complete reply."""
        self._idle.append(link)

    def drop(self, link: Link) -> None:
        """Close a link whose reply was late or wrong."""
        link.close()
        self._permits.append(None)
        self._wanted.set()

    def close(self) -> None:
        """Stop the thread and close the idle links."""
        self._stop.set()
        self._wanted.set()
        self._thread.join(self._timeout * 4 + 1)
        while self._idle:
            self._idle.pop().close()

    def _run(self) -> None:
        while not self._stop.is_set():
            if self._breaker.state == "open":
                self._stop.wait(TICK_S)
                if self._breaker.due():
                    # Old links may be connected to a server that is gone, so the probe opens a new one.
                    while self._idle:
                        self.drop(self._idle.pop())
                    self._breaker.probed(self._open())
            elif self._wanted.wait(1.0):
                self._wanted.clear()
                while self._permits and not self._stop.is_set():
                    if not self._open():
                        self._breaker.failed()
                        self._stop.wait(TICK_S)
                        self._wanted.set()
                        break

    def _open(self) -> bool:
        """Open one link; False when that fails."""
        try:
            self._permits.pop()
        except IndexError:
            return True
        try:
            link = Link(self._address.connect(self._timeout), self._clock)
        except (OSError, Unusable) as error:
            self._permits.append(None)
            if str(error) != self._complaint:
                self._complaint = str(error)
                log.warning("redis at %s cannot be used: %s", self._address.url, error)
            return False
        if self._complaint:
            self._complaint = ""
            log.warning("redis at %s answers again", self._address.url)
        self._idle.append(link)
        return True
