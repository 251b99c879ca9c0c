"""A worker for whoever the arms of the endpoint are now: when they change, another one, without a restart.

Every pair of teacher and student has its own checkpoints. A pair that comes for the first time starts where the one
before it stood; one that comes back goes on where it left. Next stop: `transfer.online.worker`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.clock import Clock, SystemClock
from pipeline.errors import BatonError, InvalidInput
from transfer.online.worker import Worker

__all__ = ["Arms", "Follower"]

LOOK_EVERY_S = 1.0
"""Seconds between two looks at the arms."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Arms:
    """Bundles of the arms that answer. `retired`: the student has all traffic for good and needs its teacher no more."""

    teacher: str
    student: str
    retired: bool = False


class Follower:
    """Runs the worker of the present arms.

    Args:
        arms: gives them, None while there is no student.
        make: a worker for arms that starts after a position of the log unless it has a checkpoint.
        clock: tells when to look again.
    """

    def __init__(
        self, arms: Callable[[], Arms | None], make: Callable[[Arms, int], Worker], clock: Clock | None = None
    ) -> None:
        self._read, self._make = arms, make
        self._clock = clock or SystemClock()
        self._arms: Arms | None = None
        self._looked: float | None = None
        self.worker: Worker | None = None
        """Of the present pair; None while there is none, or none that can learn."""

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set.

        Raises:
            InvalidInput: the arms cannot be read at the very start, or the first pair cannot be worked with.
        """
        began = False
        position = 0
        while not stop.is_set():
            arms = self._look()
            self.worker = None
            if arms is not None:
                try:
                    self.worker = self._make(arms, position)
                except InvalidInput as error:
                    if not began:
                        raise
                    log.error("nothing is learned from %s and %s: %s", arms.teacher, arms.student, error)
            else:
                log.info("there is no student to teach; waiting for a candidate")
            began = True
            self._work(arms, stop)
            if self.worker is not None:
                position = self.worker.place.position

    def _work(self, arms: Arms | None, stop: threading.Event) -> None:
        """Until the pair changes or `stop` is set."""

        def leave() -> bool:
            now = self._look()
            if stop.is_set() or _pair(now) != _pair(arms):
                return True
            if self.worker is not None and now is not None:
                self.worker.retire_teacher(now.retired)
            return False

        if self.worker is not None:
            log.info("learning from %s", _pair(arms))
            self.worker.run(leave, stop.wait)
            return
        while not leave():
            stop.wait(LOOK_EVERY_S)

    def _look(self) -> Arms | None:
        """The arms, read again now and then; those known where they cannot be read."""
        now = self._clock.monotonic()
        if self._looked is None:
            self._looked, self._arms = now, self._read()
        elif now - self._looked >= LOOK_EVERY_S:
            self._looked = now
            try:
                self._arms = self._read()
            except BatonError as error:
                log.warning("the arms cannot be read: %s", error)
        return self._arms


def _pair(arms: Arms | None) -> tuple[str, str] | None:
    return None if arms is None else (arms.teacher, arms.student)
