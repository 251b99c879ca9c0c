"""Calls to the kernel that processes of Baton make: end with the parent, lower the priority, raise the limit
of files, make files for the owner alone."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import threading
from contextlib import suppress

__all__ = ["PARENT", "connections_within", "die_with_parent", "private_files", "raise_descriptors", "step_back"]

PARENT = "BATON_SUPERVISOR_PID"
"""Environment variable with the pid of the supervisor, for its children."""
LOWEST_NICE = 19
"""Nice value that means: run only where no other process wants the core."""
OWN_DESCRIPTORS = 128
"""File descriptors that a process needs for itself: models, stores, pipes."""
_PDEATHSIG_OPTION = 1


def die_with_parent(sign: signal.Signals = signal.SIGTERM) -> None:
    """Have the kernel send this process `sign` when the process (on Linux: the thread) that started it ends.

    A supervisor (`PARENT`) that died before this call is noticed too, as is any parent that dies during it. On other
    systems than Linux it does nothing.
    """
    if sys.platform != "linux":
        return
    parent = int(os.environ.get(PARENT) or os.getppid())
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PDEATHSIG_OPTION, int(sign), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        os.kill(os.getpid(), sign)


def step_back(nice: int, *, thread: bool = False) -> None:
    """Lower the priority of this process to `nice`; never raises it. `thread`: only of the calling thread (Linux).

    19, the lowest, means on Linux the idle class: any other thread that wakes up gets the core at once. Otherwise a lane
    waits up to 3 ms for the end of our time slice, each time that a request moves on to another of its threads. Where a
    container forbids it, the priority stays.
    """
    who = threading.get_native_id() if thread and sys.platform == "linux" else 0
    with suppress(PermissionError):
        if os.getpriority(os.PRIO_PROCESS, who) < nice:
            os.setpriority(os.PRIO_PROCESS, who, nice)
        if nice == LOWEST_NICE and sys.platform == "linux":
            os.sched_setscheduler(who, os.SCHED_IDLE, os.sched_param(0))


def private_files() -> int:
    """Let this process and its children make files and folders for their user alone; the umask before."""
    return os.umask(0o077)


def raise_descriptors() -> int:
    """Raise this process's limit of file descriptors to its hard limit; the limit now. Children have it too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            return hard
    return soft


def connections_within(most: int, ports: int = 1) -> int:
    """Connections that each of `ports` of this process may have, `most` at most, so that descriptors are left over.

    >>> connections_within(1) == 1
    True
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    free = max(limit - OWN_DESCRIPTORS, limit // 4)
    return min(most, max(1, free // ports))
