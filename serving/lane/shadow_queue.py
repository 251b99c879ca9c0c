"""Queue from the primary lanes to the shadow lane: packed prediction records over a Unix socket. A lane never waits.

On the wire: length of the record (4 bytes), length of its trace context (1 byte), little endian, then trace context and
record. Both ends hold a bounded queue, drop the oldest record when it is full, and count every drop with a reason. The
shadow lane scores dropped records later from the traffic log.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path

from pipeline.traffic.drops import Drops

__all__ = ["HANDOFF_REASONS", "MAX_RECORD_BYTES", "ShadowReceiver", "ShadowSender"]

HANDOFF_REASONS = ("queue_full", "no_shadow", "too_large")

MAX_RECORD_BYTES = 64 << 20
RECONNECT_S = 0.2
SEND_TIMEOUT_S = 2.0
_HEAD = struct.Struct("<IB")
_PATH_BYTES = 100  # a Unix socket's address holds 108 bytes


class ShadowSender:
    """Sending end, in a lane; it has its own thread.

    Args:
        path: the shadow lane's socket; it may come and go.
        capacity: most records that wait.
    """

    def __init__(self, path: Path, capacity: int) -> None:
        self._path = path
        self._capacity = capacity
        self._queue: deque[tuple[bytes, str]] = deque()
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._connected = False
        self.sent = 0
        self._dropped = Drops()
        self._thread = threading.Thread(target=self._run, name="shadow-sender", daemon=True)
        self._thread.start()

    def offer(self, record: bytes, traceparent: str = "") -> bool:
        """Queue a record; False when it is too large. A full queue drops its oldest record.

        Args:
            traceparent: W3C trace context that its scoring continues; "" where the request is not traced.
        """
        with self._changed:
            if len(record) > MAX_RECORD_BYTES:
                self._dropped.add("too_large", (record,))
                return False
            if len(self._queue) >= self._capacity:
                oldest, _ = self._queue.popleft()
                self._dropped.add("queue_full" if self._connected else "no_shadow", (oldest,))
            self._queue.append((record, traceparent))
            self._changed.notify()
            return True

    @property
    def dropped(self) -> Counter[str]:
        """Records dropped, by reason."""
        return self._dropped.reasons

    @property
    def dropped_of(self) -> Counter[tuple[str, str]]:
        """Records dropped, by endpoint and reason."""
        return self._dropped.endpoints

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def close(self) -> None:
        """Send the waiting records if the shadow lane is connected, then end."""
        self._stopping.set()
        with self._changed:
            self._changed.notify()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with _socket() as connection:
                    with _address(self._path) as address:
                        connection.connect(address)
                    connection.settimeout(SEND_TIMEOUT_S)
                    self._connected = True
                    self._send_all(connection)
            except OSError:
                pass
            finally:
                self._connected = False
            self._stopping.wait(RECONNECT_S)

    def _send_all(self, connection: socket.socket) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._stopping.is_set(), 1.0)
                if not self._queue:
                    if self._stopping.is_set():
                        return
                    continue
                record, traceparent = self._queue.popleft()
            trace = traceparent.encode()
            try:
                connection.sendall(_HEAD.pack(len(record), len(trace)) + trace + record)
            except OSError:
                with self._changed:
                    self._dropped.add("no_shadow", (record,))
                raise
            self.sent += 1


class ShadowReceiver:
    """Receiving end, in the shadow lane: listens, and queues the records of all lanes.

    Args:
        path: of the socket; a file that an earlier process left is replaced.
        capacity: most records that wait.
    """

    def __init__(self, path: Path, capacity: int) -> None:
        self._path = path
        self._capacity = capacity
        self._queue: deque[tuple[bytes, str]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._connections: set[socket.socket] = set()
        self.received = 0
        self._dropped = Drops()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        self._listener = _socket()
        with _address(path) as address:
            self._listener.bind(address)
        path.chmod(0o600)
        self._listener.listen()
        threading.Thread(target=self._accept, name="shadow-accept", daemon=True).start()

    def take(self, limit: int, timeout: float) -> list[tuple[bytes, str]]:
        """Up to `limit` records with their trace contexts, in order; waits up to `timeout` seconds for the first."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed, timeout)
            return [self._queue.popleft() for _ in range(min(limit, len(self._queue)))]

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def dropped(self) -> Counter[str]:
        """Records dropped, by reason."""
        return self._dropped.reasons

    @property
    def dropped_of(self) -> Counter[tuple[str, str]]:
        """Records dropped, by endpoint and reason."""
        return self._dropped.endpoints

    @property
    def lanes(self) -> int:
        """Number of connected lanes."""
        return len(self._connections)

    def close(self) -> None:
        """Stop listening and close all connections; waiting records can still be taken."""
        with self._changed:
            self._closed = True
            connections = list(self._connections)
            self._changed.notify_all()
        self._path.unlink(missing_ok=True)
        for open_socket in (self._listener, *connections):
            with contextlib.suppress(OSError):
                open_socket.shutdown(socket.SHUT_RDWR)
            open_socket.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._changed:
                self._connections.add(connection)
            threading.Thread(target=self._read, args=(connection,), name="shadow-read", daemon=True).start()

    def _read(self, connection: socket.socket) -> None:
        try:
            with connection, connection.makefile("rb", buffering=1 << 18) as stream:
                while head := stream.read(_HEAD.size):
                    if len(head) < _HEAD.size:
                        return
                    size, trace = _HEAD.unpack(head)
                    if size > MAX_RECORD_BYTES:
                        return
                    data = stream.read(trace + size)
                    if len(data) < trace + size:
                        return
                    self._put(data[trace:], data[:trace].decode("ascii", "replace"))
        except OSError:
            pass
        finally:
            with self._changed:
                self._connections.discard(connection)

    def _put(self, record: bytes, traceparent: str) -> None:
        with self._changed:
            if len(self._queue) >= self._capacity:
                oldest, _ = self._queue.popleft()
                self._dropped.add("queue_full", (oldest,))
            self._queue.append((record, traceparent))
            self.received += 1
            self._changed.notify()


def _socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)


@contextlib.contextmanager
def _address(path: Path) -> Iterator[str]:
    """Socket address for a path of any length; a long path goes through a handle on its folder."""
    if len(os.fsencode(path)) <= _PATH_BYTES:
        yield str(path)
        return
    handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{handle}/{path.name}"
    finally:
        os.close(handle)
