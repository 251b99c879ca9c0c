"""Reserve of a Redis with `maxmemory`: the memory that the traffic log leaves to others, and where it stops for them.

The state may share the server, and a full Redis refuses its weights and leases too. So the log, which is what grows, stops
first: new predictions and scores at the reserve, labels at half of it, so that what was predicted can still be joined and
removed. What deletes is never held back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pipeline.clock import Clock
from pipeline.errors import LogFull
from pipeline.redis.server import RedisServer
from pipeline.traffic.redis.scripts import FEEDBACK, INSERT, SCORES, SETTLE

__all__ = ["Reserve", "reserve_bytes"]

LOOK_EVERY_S = 1.0
_LEAST_BYTES = 16 << 20
_LEAST_FRACTION = 0.05
# Part of the reserve that one process may write before it looks again: others write too, and stored bytes need room around.
_UNSEEN_FRACTION = 1 / 16
_SHARES = {INSERT: 1.0, SCORES: 1.0, FEEDBACK: 0.5, SETTLE: 0.5}


def reserve_bytes(maxmemory: int, wanted: int | None) -> int:
    """Bytes below `maxmemory` that the log leaves free: those wanted, or the larger of 5 % and 16 MiB; half at most.

    >>> [reserve_bytes(mib << 20, None) >> 20 for mib in (10, 100, 1000)], reserve_bytes(100, 90), reserve_bytes(0, None)
    ([5, 16, 50], 50, 0)
    """
    if wanted is None:
        wanted = max(int(_LEAST_FRACTION * maxmemory), _LEAST_BYTES)
    return min(wanted, maxmemory // 2)


class Reserve:
    """Watch over the memory of the log's server, for one process; usable from several threads.

    Args:
        look: asks the server of its memory; called about once a second while something is written.
        wanted: bytes of the reserve; None: see `reserve_bytes`. Without a `maxmemory` there is none.
    """

    def __init__(self, look: Callable[[], RedisServer], wanted: int | None, clock: Clock) -> None:
        self._look = look
        self._wanted = wanted
        self._clock = clock
        self._looked_s = -LOOK_EVERY_S
        self._unseen_bytes = 0
        self._free_bytes = 0
        self._reserve_bytes = 0

    def check(self, script: str, arguments: Sequence[Any]) -> None:
        """Check that a script may run with these arguments.

        Raises:
            LogFull: it makes the log grow, which has come to its reserve. And what `look` raises.
        """
        share = _SHARES.get(script)
        if share is None:
            return
        now_s = self._clock.monotonic()
        if now_s - self._looked_s >= LOOK_EVERY_S or self._unseen_bytes > _UNSEEN_FRACTION * self._reserve_bytes > 0:
            server = self._look()
            self._looked_s, self._unseen_bytes = now_s, 0
            self._reserve_bytes = reserve_bytes(server.max_bytes, self._wanted)
            self._free_bytes = max(0, server.max_bytes - server.used_bytes)
        if self._free_bytes < share * self._reserve_bytes:
            raise LogFull(
                f"the log's Redis is {self._free_bytes >> 20} MiB below its maxmemory; the log stops at a reserve of "
                f"{int(share * self._reserve_bytes) >> 20} MiB, so that weights and kills can still be written: give it memory, "
                "or shorten retention"
            )
        self._unseen_bytes += sum(len(argument) for argument in arguments if isinstance(argument, bytes))
