"""Forks of a process that has clients: what a child may still use.

gRPC keeps threads and locks, and a child of `os.fork` gets the locks without the threads: a call there waits forever, past
its deadline, whether its channel is the parent's or a new one. So a child begins without connections. Where its parent had
not used gRPC yet, it opens its own; else its calls fail at once. gRPC's own support for forks (GRPC_ENABLE_FORK_SUPPORT)
changes nothing here: it does nothing while a thread is in a call.
"""

from __future__ import annotations

import os
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from pipeline.errors import Conflict

__all__ = ["begin", "follow"]

_TASKS = Path("/proc/self/task")
_THREADS = ("event_engine", "grpc_")
"""What the names of gRPC's threads begin with, whoever in this process uses it."""


class Client(Protocol):
    """What keeps connections."""

    @property
    def opened(self) -> Any: ...

    def reset(self) -> None: ...


class _Process:
    """What this process knows of itself. `used`: it has used gRPC; `broken_since`: pid of the one that had, and forked."""

    used = False
    broken_since: int | None = None


_clients: weakref.WeakSet[Any] = weakref.WeakSet()
_inherited: list[Any] = []
"""Connections of the parent. Kept, since closing them here would wait for threads that only the parent has."""


def follow(client: Client) -> None:
    """Reset a client in children of this process."""
    _clients.add(client)


def begin() -> None:
    """Note that connections are opened.

    Raises:
        Conflict: they would not work in this process.
    """
    if _Process.broken_since is not None:
        raise Conflict(
            f"process {os.getpid()} was forked from process {_Process.broken_since} when that had used gRPC, which does not "
            "work in such a child: call no client before the fork (a client may be made before it), or start processes by "
            "spawn or forkserver"
        )
    _Process.used = True


def _before_fork() -> None:
    for comm in _TASKS.glob("*/comm"):  # none on other systems
        with suppress(OSError):  # a thread that ended just now
            _Process.used |= comm.read_text().startswith(_THREADS)


def _in_child() -> None:
    if _Process.used and _Process.broken_since is None:
        _Process.broken_since = os.getppid()
    for client in list(_clients):
        _inherited.append(client.opened)
        client.reset()


os.register_at_fork(before=_before_fork, after_in_child=_in_child)
