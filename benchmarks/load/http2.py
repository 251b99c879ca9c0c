"""HTTP/2 connection (RFC 9113) for gRPC calls, unary or as a stream of request and answer pairs.

It never waits: `call` and `send` write what the socket and the peer's windows take and keep the rest, `readable` and
`writable` are called when the socket is. What we receive is never held back by flow control.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence

from benchmarks.load import hpack

__all__ = ["CANCELLED", "INTERNAL", "UNAVAILABLE", "Connection", "ConnectionLost", "Stream", "message"]

CANCELLED, UNKNOWN, RESOURCE_EXHAUSTED, INTERNAL, UNAVAILABLE = 1, 2, 8, 13, 14
"""gRPC status codes."""
OF_RESET = {7: UNAVAILABLE, 8: CANCELLED, 11: RESOURCE_EXHAUSTED, 12: 7}
"""What gRPC makes of HTTP/2 error codes; all others are INTERNAL."""

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
HEADER_TABLE_SIZE, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 1, 4, 5

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DEFAULT_WINDOW = 65_535
LARGEST_WINDOW = (1 << 31) - 1
REPLENISH = 1 << 30
RECEIVE_BYTES = 1 << 18
KNOWN_BLOCKS = 4096
MOST_PARTS = 512
"""Buffers of one `sendmsg`; the kernel takes 1,024."""

_HEADER = struct.Struct(">HBBBL")
_SETTING = struct.Struct(">HL")
_WORD = struct.Struct(">L")

Done = Callable[["Stream", int, bytes], None]


class ConnectionLost(Exception):
    """The peer closed the connection or broke the protocol."""


def message(body: bytes) -> memoryview:
    """Frame a serialised message for DATA frames: the flag for no compression, its length, itself."""
    return memoryview(b"\x00" + _WORD.pack(len(body)) + body)


class Stream:
    """Stream of one call. `tag` is the caller's; an answer that is kept lies in `answer` until it is handed over."""

    __slots__ = ("answer", "at", "body", "closes", "id", "number", "received", "status", "tag", "window")

    def __init__(self, tag: float, number: int, window: int, closes: bool) -> None:
        self.tag = tag
        self.number = number
        self.id = number.to_bytes(4, "big")
        self.window = window
        self.closes = closes
        self.body: memoryview = memoryview(b"")
        self.at = 0
        self.received = 0
        self.answer = b""
        self.status = UNKNOWN


class Connection:
    """Connects at once.

    Args:
        address: host and port.
        path: `/package.Service/Method`.
        done: called with the stream, the gRPC status and the answer's bytes when a call ends, and for every answer of
            a stream of several.
        metadata: headers of every call, `grpc-timeout` among them.
        several: calls are streams of request and answer pairs.

    Raises:
        OSError: nobody listens there.
    """

    def __init__(
        self,
        address: tuple[str, int],
        path: str,
        done: Done,
        *,
        metadata: Sequence[tuple[str, str]] = (),
        several: bool = False,
    ) -> None:
        self.socket = socket.create_connection(address, 10.0)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.streams: dict[int, Stream] = {}
        self.closing = False
        """The peer takes no new calls on this connection."""
        self._done = done
        self._several = several
        block = hpack.encode(
            [
                (":method", "POST"),
                (":scheme", "http"),
                (":path", path),
                (":authority", f"{address[0]}:{address[1]}"),
                ("te", "trailers"),
                ("content-type", "application/grpc"),
                *metadata,
            ]
        )
        self._open = _frame_start(len(block), HEADERS, END_HEADERS)
        self._block = block
        self._next = 1
        self._window = DEFAULT_WINDOW
        self._stream_window = DEFAULT_WINDOW
        self._largest_frame = 16_384
        self._blocked: deque[Stream] = deque()
        self._in = b""
        self._out = b""
        self._consumed = 0
        self._headers: tuple[int, int, bytes] | None = None
        # Blocks stand for themselves (see hpack), so equal bytes are decoded once.
        self._known: dict[bytes, dict[bytes, bytes]] = {}
        settings = _SETTING.pack(HEADER_TABLE_SIZE, 0) + _SETTING.pack(INITIAL_WINDOW_SIZE, LARGEST_WINDOW)
        self._write(
            [
                PREFACE,
                _frame(SETTINGS, 0, 0, settings),
                _frame(WINDOW_UPDATE, 0, 0, _WORD.pack(LARGEST_WINDOW - DEFAULT_WINDOW)),
            ]
        )

    @property
    def wants_write(self) -> bool:
        """Whether bytes wait for the socket."""
        return bool(self._out)

    def call(self, tag: float, body: memoryview) -> Stream:
        """Start a call with its (first) request."""
        stream = Stream(tag, self._next, self._stream_window, not self._several)
        self._next += 2
        self.streams[stream.number] = stream
        parts: list[bytes | memoryview] = [self._open + stream.id + self._block]
        self._put(stream, body, parts)
        return stream

    def send(self, stream: Stream, tag: float, body: memoryview) -> None:
        """Send the next request of a stream whose last one was answered."""
        stream.tag = tag
        self._put(stream, body, [])

    def close(self) -> None:
        """Drop the connection; callers of open calls are not notified."""
        self.socket.close()

    def writable(self) -> None:
        """Write what waits for the socket.

        Raises:
            ConnectionLost: the peer is gone.
        """
        waiting, self._out = self._out, b""
        self._write([waiting])

    def readable(self) -> None:
        """Read what has arrived and call `done` for every answer in it.

        Raises:
            ConnectionLost: the peer is gone or sent what is not HTTP/2.
        """
        try:
            data = self.socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            raise ConnectionLost(str(error)) from None
        if not data:
            raise ConnectionLost("the peer closed the connection")
        if self._in:
            data = self._in + data
        at, end = 0, len(data)
        while end - at >= 9:
            high, low, kind, flags, number = _HEADER.unpack_from(data, at)
            stop = at + 9 + (high << 8 | low)
            if stop > end:
                break
            self._frame(kind, flags, number & LARGEST_WINDOW, data[at + 9 : stop])
            at = stop
        self._in = data[at:]

    # --- sending -----------------------------------------------------------------------------------------------------

    def _put(self, stream: Stream, body: memoryview, parts: list[bytes | memoryview]) -> None:
        stream.body, stream.at = body, 0
        if self._blocked or not self._fill(stream, parts):
            self._blocked.append(stream)
        if parts:
            self._write(parts)

    def _fill(self, stream: Stream, parts: list[bytes | memoryview]) -> bool:
        """Add frames as far as the windows allow; whether the whole body is added."""
        body, at = stream.body, stream.at
        left = len(body) - at
        while left:
            size = min(left, self._largest_frame, self._window, stream.window)
            if size <= 0:
                stream.at = at
                return False
            left -= size
            parts.append(_frame_start(size, DATA, END_STREAM if stream.closes and not left else 0) + stream.id)
            parts.append(body[at : at + size])
            at += size
            self._window -= size
            stream.window -= size
        return True

    def _unblock(self) -> None:
        parts: list[bytes | memoryview] = []
        for _ in range(len(self._blocked)):
            stream = self._blocked.popleft()
            if stream.number in self.streams and not self._fill(stream, parts):
                self._blocked.append(stream)
        if parts:
            self._write(parts)

    def _write(self, parts: Sequence[bytes | memoryview]) -> None:
        if self._out:
            self._out += b"".join(parts)
            return
        if len(parts) > MOST_PARTS:
            parts = [b"".join(parts)]
        try:
            sent = self.socket.sendmsg(parts)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise ConnectionLost(str(error)) from None
        if sent < sum(map(len, parts)):
            self._out = b"".join(parts)[sent:]

    # --- receiving ---------------------------------------------------------------------------------------------------

    def _frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind == DATA:
            self._data(flags, number, payload)
        elif kind == HEADERS:
            if flags & PADDED:
                payload = payload[1 : len(payload) - payload[0]]
            if flags & PRIORITY:
                payload = payload[5:]
            self._header_block(flags, flags, number, payload)
        elif kind == CONTINUATION:
            if self._headers is None or self._headers[0] != number:
                raise ConnectionLost("a CONTINUATION without its HEADERS")
            _, first, before = self._headers
            self._header_block(first, flags, number, before + payload)
        elif kind == WINDOW_UPDATE:
            grown = _WORD.unpack(payload)[0] & LARGEST_WINDOW
            if not number:
                self._window += grown
            elif number in self.streams:
                self.streams[number].window += grown
            if self._blocked:
                self._unblock()
        elif kind == PING:
            if not flags & ACK:
                self._write([_frame(PING, ACK, 0, payload)])
        elif kind == SETTINGS:
            if not flags & ACK:
                self._settings(payload)
        elif kind == RST_STREAM:
            stream = self.streams.pop(number, None)
            if stream is not None:
                self._done(stream, OF_RESET.get(_WORD.unpack(payload)[0], INTERNAL), b"")
        elif kind == GOAWAY:
            self.closing = True
            last = _WORD.unpack_from(payload)[0] & LARGEST_WINDOW
            for stream in [s for s in self.streams.values() if s.number > last]:
                del self.streams[stream.number]
                self._done(stream, UNAVAILABLE, b"")

    def _data(self, flags: int, number: int, payload: bytes) -> None:
        size = len(payload)
        self._consumed += size
        if self._consumed > REPLENISH:
            self._write([_frame(WINDOW_UPDATE, 0, 0, _WORD.pack(self._consumed))])
            self._consumed = 0
        stream = self.streams.get(number)
        if stream is None:
            return
        if flags & PADDED:
            payload = payload[1 : size - payload[0]]
        stream.answer = stream.answer + payload if stream.answer else payload
        if self._several:
            stream.received += size
            if stream.received > REPLENISH:
                self._write([_frame(WINDOW_UPDATE, 0, number, _WORD.pack(stream.received))])
                stream.received = 0
            answer = stream.answer
            if len(answer) >= 5 and len(answer) >= 5 + _WORD.unpack_from(answer, 1)[0]:
                stream.answer = b""
                self._done(stream, 0, answer[5:])
        if flags & END_STREAM:  # without trailers: nobody said that the call went well
            del self.streams[number]
            self._done(stream, INTERNAL, b"")

    def _header_block(self, first: int, flags: int, number: int, block: bytes) -> None:
        if not flags & END_HEADERS:
            self._headers = (number, first, block)
            return
        self._headers = None
        if not first & END_STREAM:
            return
        stream = self.streams.pop(number, None)
        if stream is None:
            return
        found = self._known.get(block)
        if found is None:
            try:
                found = hpack.decode(block)
            except hpack.HeaderError as error:
                raise ConnectionLost(str(error)) from None
            if len(self._known) < KNOWN_BLOCKS:
                self._known[block] = found
        status = int(found.get(b"grpc-status", UNKNOWN))
        self._done(stream, status, found.get(b"grpc-message", b"") if status else stream.answer[5:])

    def _settings(self, payload: bytes) -> None:
        for key, value in _SETTING.iter_unpack(payload):
            if key == INITIAL_WINDOW_SIZE:
                for stream in self.streams.values():
                    stream.window += value - self._stream_window
                self._stream_window = value
            elif key == MAX_FRAME_SIZE:
                self._largest_frame = value
        self._write([_frame(SETTINGS, ACK, 0, b"")])
        if self._blocked:
            self._unblock()


def _frame_start(size: int, kind: int, flags: int) -> bytes:
    """Frame header without the stream's number."""
    return size.to_bytes(3, "big") + bytes((kind, flags))


def _frame(kind: int, flags: int, number: int, payload: bytes) -> bytes:
    return _frame_start(len(payload), kind, flags) + number.to_bytes(4, "big") + payload
