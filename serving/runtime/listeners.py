"""Listening sockets of this process, closed so that no client notices where others share the port.

A connection that the kernel has made and nobody has accepted yet is reset when its listener is closed. So a listener first
stops taking new ones: a filter of the socket drops the first packet of each, which the client sends again after a second, and
the kernel then gives it to another listener. What has begun is accepted meanwhile.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import stat
import struct
import sys
from contextlib import suppress

__all__ = ["let_in_no_more"]

SETTLE_S = 0.3
"""Time in which connections that were accepted last have begun to speak. With the filter it stays below the second after which a
client tries again."""
LOOK_EVERY_S = 0.02
LONGEST_S = 0.7
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
    """Take no new connection on a port any more, and wait until those that had begun are accepted and speak.

    It ends within a second. On other systems than Linux it does nothing.
    """
    if sys.platform != "linux":
        return
    listeners = _listeners(port)
    try:
        for listener in listeners:
            _filter(listener)
        loop = asyncio.get_running_loop()
        began = quiet = loop.time()
        while (now := loop.time()) - began < LONGEST_S and now - quiet < SETTLE_S:
            if any(_waiting(listener) for listener in listeners):
                quiet = now
            await asyncio.sleep(LOOK_EVERY_S)
    finally:
        for listener in listeners:
            listener.close()


def _listeners(port: int) -> list[socket.socket]:
    """Copies of the sockets of this process that listen on a port."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if not stat.S_ISSOCK(os.stat(int(name)).st_mode):
                continue
            copy = socket.socket(fileno=os.dup(int(name)))
            if _listens(copy, port):
                found.append(copy)
            else:
                copy.close()
    return found


def _listens(copy: socket.socket, port: int) -> bool:
    if copy.family not in (socket.AF_INET, socket.AF_INET6) or copy.type != socket.SOCK_STREAM:
        return False
    return bool(copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)) and copy.getsockname()[1] == port


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
