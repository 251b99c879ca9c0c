"""Watchdog: decides when a process that runs has hung.

Time is the supervisor's own: it adds up what passed between two of its looks, and no more than `LOOK_S` of each. So a machine
that was suspended, or a supervisor that was stopped itself, has lost no patience with anybody when it goes on.
"""

from __future__ import annotations

from collections.abc import Iterable

import psutil

from serving.supervisor.pulse import Sign

__all__ = ["START_S", "Watchdog", "is_stopped"]

START_S = 300.0
"""Time in which a process has given its first sign of life: it imports libraries and opens its stores."""
LOOK_S = 1.0
"""Longest time that passes between two looks, whatever a clock says."""


class Watchdog:
    """Patience with one process, from its start to its end.

    Args:
        limit_s: time without a sign of life after which it has hung.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._starting_s = self._stopped_s = 0.0
        self._rounds: dict[str, int] = {}
        self._silent_s: dict[str, float] = {}

    def look(self, signs: Iterable[Sign], stopped: bool, passed_s: float) -> str:
        """Why the process counts as hung; "": it does not.

        Args:
            stopped: whether a signal has stopped it: then it does no long work either.
            passed_s: since the last look, by any clock.
        """
        passed_s = min(max(passed_s, 0.0), LOOK_S)
        if not stopped:
            self._stopped_s = 0.0
        elif (stopped_s := self._stopped_s + passed_s) > self._limit_s:
            return f"stopped by a signal, without a sign of life for {stopped_s:.0f} s"
        else:
            self._stopped_s = stopped_s
        seen = False
        for sign in signs:
            seen = True
            silent_s = 0.0
            if self._rounds.get(sign.loop) == sign.rounds:
                silent_s = self._silent_s.get(sign.loop, 0.0) + passed_s
            self._rounds[sign.loop], self._silent_s[sign.loop] = sign.rounds, silent_s
            if silent_s > max(self._limit_s, sign.limit_s):
                return f"without a sign of life for {silent_s:.0f} s: {sign.loop}"
        if not seen:
            self._starting_s += passed_s
            if self._starting_s > max(START_S, self._limit_s):
                return f"without a first sign of life for {self._starting_s:.0f} s after its start"
        return ""


def is_stopped(pid: int) -> bool:
    """Whether a signal has stopped a process."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    except psutil.Error:
        return False
