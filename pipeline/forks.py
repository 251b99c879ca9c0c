"""Guard of what one process alone may use, in a child that was forked from it.

A child of `os.fork` has its parent's connections, and locks without the threads that would release them. SQLite forbids the
first, the second wait forever.
"""

from __future__ import annotations

import os
import threading

from pipeline.errors import Conflict

__all__ = ["ProcessLock"]


class ProcessLock:
    """Reentrant lock of a resource of this process.

    Args:
        what: the resource, in words.

    Raises:
        Conflict: on entry, in a process that was forked after the lock was made; it does not wait.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._pid = os.getpid()
        self._lock = threading.RLock()

    def check(self) -> None:
        """Raise Conflict in another process than the one that opened the resource."""
        if os.getpid() != self._pid:
            raise Conflict(
                f"{self._what} was opened by process {self._pid}, from which this one ({os.getpid()}) was forked: open it "
                "in the child, or start processes by spawn"
            )

    def __enter__(self) -> None:
        self.check()
        self._lock.acquire()

    def __exit__(self, *exception: object) -> None:
        self._lock.release()
