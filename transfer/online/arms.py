"""Follower of an endpoint's arms: runs a worker for the present pair of teacher and student, another one when it changes.

Every pair has its own checkpoints. A new pair starts at the place of the pair before it; a pair that comes back goes on
from its own place. Next stop: `transfer.online.worker`.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.clock import Clock, SystemClock
from pipeline.errors import BatonError, InvalidInput
from transfer.online.worker import Worker, report

__all__ = ["Arms", "Follower"]

READ_EVERY_S = 1.0
"""Seconds between two reads of the arms."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Arms:
    """Bundles of an endpoint's arms. `retired`: the student has all traffic for good and does not need its teacher."""

    teacher: str
    student: str
    retired: bool = False


class Follower:
    """Runs the worker of the present arms.

    Args:
        arms: reads them; None while there is no student.
        make: a worker for arms that starts after a position of the log unless it has a checkpoint.
        clock: for the time between two reads.
        status: file that says what is waited for while there is no worker; None: no file.
        alive: called again and again by the thread that learns or waits.
    """

    def __init__(
        self,
        arms: Callable[[], Arms | None],
        make: Callable[[Arms, int], Worker],
        clock: Clock | None = None,
        status: Path | None = None,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        self._read, self._make = arms, make
        self._alive = alive
        self._clock = clock or SystemClock()
        self._status = status
        self._arms: Arms | None = None
        self._read_at: float | None = None
        self.worker: Worker | None = None
        """Of the present pair; None while there is none, or none that can learn."""

    def run(self, stop: threading.Event, begin: int = 0) -> None:
        """Work until `stop` is set.

        Args:
            begin: position of the log that the first pair starts after unless it has a checkpoint.

        Raises:
            InvalidInput: the arms cannot be read at the very start.
        """
        position = begin
        waiting = ""
        while not stop.is_set():
            arms = self._present()
            self.worker = None
            if arms is not None:
                try:
                    self.worker = self._make(arms, position)
                except InvalidInput as error:
                    # Serving does not need it, and a process that ends is started again for nothing.
                    waiting = f"nothing is learned from {arms.teacher} and {arms.student}: {error}"
                    log.error("%s", waiting)
            else:
                waiting = "there is no student to teach; waiting for a candidate"
                log.info("%s", waiting)
            self._work(arms, stop, waiting, position)
            if self.worker is not None:
                position = self.worker.place.position

    def _work(self, arms: Arms | None, stop: threading.Event, waiting: str, position: int) -> None:
        """Run the worker, or report what is waited for, until the pair changes or `stop` is set."""

        def leave() -> bool:
            self._alive()
            present = self._present()
            if stop.is_set() or _pair(present) != _pair(arms):
                return True
            if self.worker is not None and present is not None:
                self.worker.retire_teacher(present.retired)
            return False

        if self.worker is not None:
            log.info("learning from %s", _pair(arms))
            self.worker.run(leave, stop.wait)
            return
        while not leave():
            self.idle(waiting, position)
            stop.wait(READ_EVERY_S)

    def idle(self, waiting: str, position: int, state: str = "waiting") -> None:
        """Write the status of a process without a worker. `position`: the log must keep the rows after this place, at
        which the next worker starts."""
        self._alive()
        if self._status is None:
            return
        status: dict[str, Any] = {
            "time_ms": self._clock.wall_ms(),
            "pid": os.getpid(),
            "state": state,
            "waiting": waiting,
            "position": position,
            "committed": position,
        }
        report(self._status, status)

    def _present(self) -> Arms | None:
        """The arms, read once per `READ_EVERY_S`; the last known ones where they cannot be read."""
        now = self._clock.monotonic()
        if self._read_at is None:
            self._read_at, self._arms = now, self._read()
        elif now - self._read_at >= READ_EVERY_S:
            self._read_at = now
            try:
                self._arms = self._read()
            except BatonError as error:
                log.warning("the arms cannot be read: %s", error)
        return self._arms


def _pair(arms: Arms | None) -> tuple[str, str] | None:
    return None if arms is None else (arms.teacher, arms.student)
