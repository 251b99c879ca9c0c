"""Listening sockets of a gRPC server in this process, closed so that no client notices where others share the port.

A connection that the kernel has made and nobody has accepted yet is reset when its listener is closed. So a listener first
stops taking new ones: a filter of the socket drops the first packet of each, which the client sends again after a second, and
the kernel then gives it to another listener. What has begun is accepted meanwhile. And a server of gRPC that is stopped fails the
calls that clients send before they learn of it. So they are asked to leave while it still answers.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import socket
import stat
import struct
import sys
import termios
import time
from contextlib import suppress

__all__ = ["ask_to_leave", "let_in_no_more"]

SETTLE_S = 0.3
"""Time in which connections that were accepted last have begun to speak. With the filter it stays below the second after which a
client tries again."""
LOOK_EVERY_S = 0.02
LONGEST_S = 0.7
ASKS_COUNT = 10
ASK_EVERY_S = 0.01
_GOAWAY_FRAME = bytes.fromhex("000008 07 00 00000000 7fffffff 00000000")
"""Length, type, flags, stream; the last stream that is looked at: any; no error."""
_ATTACH_FILTER_OPTION = 26  # SO_ATTACH_FILTER
_INFO_BYTES = 104
_WAITING_BYTES = slice(24, 28)  # tcpi_unacked: of a listener, connections that wait to be accepted
_PROGRAM_WORDS = (
    (0x30, 0, 0, 13),  # load the byte of the flags
    (0x54, 0, 0, 0x12),  # SYN and ACK alone
    (0x15, 0, 1, 0x02),  # a SYN that begins a connection?
    (0x06, 0, 0, 0),  # drop it
    (0x06, 0, 0, 0xFFFFFFFF),  # let pass all else
)
"""Classic BPF over the TCP header: code, jump if true, jump if false, operand."""


async def let_in_no_more(port: int) -> None:
    """Take no new connection on a port any more, wait until those that had begun are accepted and speak, and close its listeners.

    It ends within a second. The server goes on with its connections; its descriptors of the listeners are those of sockets
    without use from then on, which it closes when it is stopped. On other systems than Linux nothing is done.
    """
    if sys.platform != "linux":
        return
    found = _sockets(port, listening=True)
    listeners = list(found.values())
    try:
        for listener in listeners:
            _filter(listener)
        loop = asyncio.get_running_loop()
        began = quiet = loop.time()
        while (now := loop.time()) - began < LONGEST_S and now - quiet < SETTLE_S:
            if any(_waiting(listener) for listener in listeners):
                quiet = now
            await asyncio.sleep(LOOK_EVERY_S)
        for descriptor in found:
            with socket.socket() as unused:
                os.dup2(unused.fileno(), descriptor, inheritable=False)
    finally:
        for listener in listeners:
            listener.close()


def ask_to_leave(port: int) -> None:
    """Send every client of a port HTTP/2's GOAWAY for all streams to come: it begins no further call on its connection, and those in
    progress go on. Only for connections without TLS, whose frames are known to nobody but the server.

    A frame goes out only where all that was sent before has arrived, and so never into the middle of another one.
    """
    if sys.platform != "linux":
        return
    waiting = list(_sockets(port, listening=False).values())
    for _ in range(ASKS_COUNT):
        waiting = [one for one in waiting if not _said_goodbye(one)]
        if not waiting:
            return
        time.sleep(ASK_EVERY_S)
    for one in waiting:
        one.close()


def _said_goodbye(connection: socket.socket) -> bool:
    """Whether the frame is sent, or cannot be: the connection has ended."""
    try:
        unsent = struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)))[0]
        if unsent:
            return False
        connection.send(_GOAWAY_FRAME, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    except OSError:
        pass
    connection.close()
    return True


def _sockets(port: int, *, listening: bool) -> dict[int, socket.socket]:
    """Copies of the sockets of this process that listen on a port, or whose connections came in there, by their descriptors."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if not stat.S_ISSOCK(os.stat(int(name)).st_mode):
                continue
            copy = socket.socket(fileno=os.dup(int(name)))
            if _is_of(copy, port) and listening == bool(copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)):
                found[int(name)] = copy
            else:
                copy.close()
    return found


def _is_of(copy: socket.socket, port: int) -> bool:
    if copy.family not in (socket.AF_INET, socket.AF_INET6) or copy.type != socket.SOCK_STREAM:
        return False
    return bool(copy.getsockname()[1] == port)


def _filter(listener: socket.socket) -> None:
    program = b"".join(struct.pack("HBBI", *step) for step in _PROGRAM_WORDS)
    memory = ctypes.create_string_buffer(program)
    with suppress(OSError):  # a kernel that has none closes as before
        listener.setsockopt(
            socket.SOL_SOCKET, _ATTACH_FILTER_OPTION, struct.pack("HL", len(_PROGRAM_WORDS), ctypes.addressof(memory))
        )


def _waiting(listener: socket.socket) -> int:
    with suppress(OSError):
        info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
        return int.from_bytes(info[_WAITING_BYTES], sys.byteorder)
    return 0
