"""Teachers as Ray actors, wherever the cluster places them. The only file of this package that knows Ray.

An actor that dies is replaced, up to a limit, while the pool goes on with the others; Ray decides on which node.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
from ray.exceptions import RayActorError, RayError

from pipeline.features import Rows
from transfer.teacher_pool import MemberGone, TeacherPool
from transfer.teacher_process import Scorer

__all__ = ["RayMember", "RayTeachers"]

F32 = npt.NDArray[np.float32]
START = 300.0
WATCH = 0.5

log = logging.getLogger(__name__)


class _Teacher:
    """What runs in the actor."""

    def __init__(self, load: Callable[[], Scorer]) -> None:
        self._score = load()

    def ready(self) -> bool:
        return True

    def score(self, rows: Rows) -> F32:
        return self._score(rows)


class RayMember:
    """One actor. Two tasks at a time, so that the next one's rows travel while it works.

    Args:
        cpus, gpus: that it needs to be placed.

    Raises:
        MemberGone: it cannot be placed or started.
    """

    slots = 2

    def __init__(self, name: str, load: Callable[[], Scorer], *, cpus: float = 1.0, gpus: float = 0.0) -> None:
        self.name = name
        actor: Any = ray.remote(_Teacher)
        self.actor = actor.options(num_cpus=cpus, num_gpus=gpus, max_restarts=0).remote(load)
        try:
            ray.get(self.actor.ready.remote(), timeout=START)
        except RayError as error:
            self.close()
            raise MemberGone(f"teacher {name} did not start: {error}") from None

    def score(self, rows: Rows) -> F32:
        try:
            logits: F32 = ray.get(self.actor.score.remote(rows))
        except RayActorError as error:
            raise MemberGone(f"the actor of teacher {self.name} is gone: {error}") from None
        return logits

    def close(self) -> None:
        ray.kill(self.actor)


class RayTeachers:
    """Keeps `count` actors in a pool, until closed.

    Args:
        address: of the cluster; it is joined where this process has not joined one.
        load: see `RayMember`.
        most_restarts: actors that may be replaced in all.
    """

    def __init__(
        self,
        pool: TeacherPool,
        load: Callable[[], Scorer],
        count: int,
        *,
        address: str = "",
        cpus: float = 1.0,
        gpus: float = 0.0,
        most_restarts: int = 100,
    ) -> None:
        if not ray.is_initialized():
            ray.init(address=address or "auto", log_to_driver=False)
        self._pool, self._load, self._count = pool, load, count
        self._cpus, self._gpus = cpus, gpus
        self._names = (f"ray-{at}" for at in itertools.count())
        self._left = most_restarts + count
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="ray-teachers", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End all actors."""
        self._stop.set()
        self._thread.join(START)
        self._pool.close()

    def _keep(self) -> None:
        while not self._stop.is_set():
            missing = self._count - len(self._pool.members)
            for _ in range(min(missing, self._left)):
                self._left -= 1
                try:
                    self._pool.join(RayMember(next(self._names), self._load, cpus=self._cpus, gpus=self._gpus))
                except MemberGone as error:
                    log.error("%s", error)
            self._stop.wait(WATCH)
