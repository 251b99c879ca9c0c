"""Signs of life of a process: counters in memory that it shares with its supervisor.

Every loop that does the work of a process has a counter and raises it as it goes round. The counters are written without a
call to the kernel, a file or a lock, so a full disk or a slow store never silences a process that works. The supervisor reads
them and judges (`serving.supervisor.watchdog`). A process without a supervisor counts for nobody.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache

__all__ = ["PULSE", "Heart", "Pulse", "Sign", "own_heart"]

PULSE = "BATON_PULSE"
"""Environment variable with the descriptor of the shared memory, for a supervisor's child."""
_LOOPS_COUNT = 16
_LOOP = struct.Struct("<QQ48s")  # rounds, limit in milliseconds, name
_ROUNDS = struct.Struct("<Q")
_SIZE_BYTES = _LOOPS_COUNT * _LOOP.size


@dataclass(frozen=True, slots=True)
class Sign:
    """A loop as its supervisor sees it. `limit_s`: time that one round may take; 0: the limit of the installation."""

    loop: str
    rounds: int
    limit_s: float


class Heart:
    """Counter of one loop, for the thread that runs it."""

    __slots__ = ("_at", "_memory", "_rounds")

    def __init__(self, memory: mmap.mmap | None, at: int) -> None:
        self._memory, self._at = memory, at
        self._rounds = 0

    def beat(self) -> None:
        """Say that the loop goes round."""
        if self._memory is not None:
            self._rounds += 1
            _ROUNDS.pack_into(self._memory, self._at, self._rounds)

    @contextmanager
    def long(self, limit_s: float) -> Iterator[None]:
        """Let the rounds within take `limit_s` seconds."""
        before = self._limit(round(1000 * limit_s))
        try:
            yield
        finally:
            self.beat()
            self._limit(before)

    def _limit(self, limit_ms: int) -> int:
        if self._memory is None:
            return 0
        place = self._at + _ROUNDS.size
        (before,) = _ROUNDS.unpack_from(self._memory, place)
        _ROUNDS.pack_into(self._memory, place, limit_ms)
        return int(before)


class Pulse:
    """Shared memory of the counters of one process.

    Args:
        descriptor: of the memory; closed by `close`, by the supervisor alone.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, _SIZE_BYTES)
        self._used = 0

    @classmethod
    def make(cls) -> Pulse | None:
        """Memory for a new child; None where the system has none of this kind."""
        if sys.platform != "linux":
            return None
        descriptor = os.memfd_create("baton-pulse")
        os.ftruncate(descriptor, _SIZE_BYTES)
        return cls(descriptor)

    def heart(self, loop: str, limit_s: float = 0.0) -> Heart:
        """A counter for a loop of this process, from now on. `limit_s`: time that a round may take; 0: the usual one."""
        at = self._used * _LOOP.size
        self._used += 1
        if self._used > _LOOPS_COUNT:
            raise ValueError(f"a process has {_LOOPS_COUNT} loops at most")
        _LOOP.pack_into(self._memory, at, 0, round(1000 * limit_s), loop.encode()[:48])
        return Heart(self._memory, at)

    def signs(self) -> list[Sign]:
        """The loops that have begun."""
        found = []
        for at in range(_LOOPS_COUNT):
            rounds, limit_ms, name = _LOOP.unpack_from(self._memory, at * _LOOP.size)
            if loop := name.rstrip(b"\0").decode(errors="replace"):
                found.append(Sign(loop, rounds, limit_ms / 1000))
        return found

    def close(self) -> None:
        """Give the memory back."""
        self._memory.close()
        with suppress(OSError):
            os.close(self.descriptor)


def own_heart(loop: str, limit_s: float = 0.0) -> Heart:
    """Counter of a loop of this process; of no effect where no supervisor listens."""
    pulse = _own()
    return Heart(None, 0) if pulse is None else pulse.heart(loop, limit_s)


@cache
def _own() -> Pulse | None:
    descriptor = os.environ.pop(PULSE, "")  # processes that this one starts do not have it
    if not descriptor:
        return None
    try:
        return Pulse(int(descriptor))
    except (ValueError, OSError):
        return None
