"""What every process of ours does about its place among the others: die with its parent, step back, say how it is."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.disk import replacing

__all__ = ["PARENT", "die_with_parent", "step_back", "write_status"]

PARENT = "BATON_SUPERVISOR_PID"
"""Environment variable by which a supervisor tells its children who it is."""
LOWEST_NICE = 19
"""Nice value of who wants only what nobody else does."""
_PDEATHSIG_OPTION = 1


def die_with_parent(sign: signal.Signals = signal.SIGTERM) -> None:
    """Have the kernel send us `sign` when the process (on Linux: the thread) that started us ends.

    A supervisor (`PARENT`) that died before this call is seen too, as is any parent that dies during it. Elsewhere than
    on Linux it does nothing.
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
    """Lower our priority to `nice`; never raises it. With `thread` only that of the calling thread (Linux).

    19, the lowest, stands on Linux for the idle class: whoever wakes up gets the core at once. Else a lane would wait up to
    3 ms for the end of our time slice, however nice we are, each time that a request moves on to another of its threads.
    A container that forbids even this only costs the politeness.
    """
    who = threading.get_native_id() if thread and sys.platform == "linux" else 0
    with suppress(PermissionError):
        if os.getpriority(os.PRIO_PROCESS, who) < nice:
            os.setpriority(os.PRIO_PROCESS, who, nice)
        if nice == LOWEST_NICE and sys.platform == "linux":
            os.sched_setscheduler(who, os.SCHED_IDLE, os.sched_param(0))


def write_status(path: Path, status: Mapping[str, Any]) -> None:
    """Write a JSON file that a reader sees whole or not at all."""
    with replacing(path) as staging:
        staging.write_text(json.dumps(status))
