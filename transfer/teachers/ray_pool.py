"""Teachers as Ray actors on a cluster. The only file of this package that imports Ray.

An actor that dies is replaced, up to a limit, while the pool goes on with the others; Ray chooses the node. An actor
without a free node waits in Ray's queue, where an autoscaler sees it, and joins when a node is there.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from pipeline.arrays import F32
from pipeline.clock import SystemClock
from pipeline.errors import BatonError, NotReady
from pipeline.features import Rows
from transfer.teachers.pool import MemberGone, TeacherPool
from transfer.teachers.process import Scorer

__all__ = ["RayMember", "RayTeachers"]

START_TIMEOUT_S = 300.0
END_TIMEOUT_S = 30.0
WATCH_S = 0.5

log = logging.getLogger(__name__)


class _Teacher:
    """The actor. It returns the error of a teacher that cannot be loaded, since Ray would turn it into a traceback."""

    def __init__(self, load: Callable[[], Scorer]) -> None:
        self._trouble = ""
        try:
            self._score = load()
        except Exception as error:
            self._trouble = f"{type(error).__name__}: {error}"

    def trouble(self) -> str:
        """Why it cannot score; empty where it can."""
        return self._trouble

    def score(self, rows: Rows) -> F32:
        return self._score(rows)


class RayMember:
    """One actor, which begins to start. Two tasks at a time, so that the next one's rows travel while it works.

    Args:
        cpus, gpus: that it needs to be placed.

    Attributes:
        trouble: Ray's reference to why it did not start; there once it has started, or failed to.
    """

    slots = 2

    def __init__(self, name: str, load: Callable[[], Scorer], *, cpus: float = 1.0, gpus: float = 0.0) -> None:
        self.name = name
        actor: Any = ray.remote(_Teacher)
        self.actor = actor.options(num_cpus=cpus, num_gpus=gpus, max_restarts=0).remote(load)
        self.trouble: Any = self.actor.trouble.remote()

    def started(self) -> None:
        """Wait until it can score.

        Raises:
            MemberGone: it did not start.
        """
        try:
            trouble = ray.get(self.trouble)
        except RayError as error:
            trouble = str(error)
        if trouble:
            raise MemberGone(f"teacher {self.name} did not start: {trouble}")

    def score(self, rows: Rows) -> F32:
        try:
            logits: F32 = ray.get(self.actor.score.remote(rows))
        except RayActorError as error:
            raise MemberGone(f"the actor of teacher {self.name} is gone: {error}") from None
        except RayTaskError as error:
            raise BatonError(f"{type(error.cause).__name__}: {error.cause}") from None
        return logits

    def close(self) -> None:
        ray.kill(self.actor)


class RayTeachers:
    """Keeps `count` actors in a pool, until closed. The first one is ready when the constructor returns.

    Args:
        address: of the cluster; it is joined where this process has not joined one.
        load: what each actor calls to get its teacher; must survive pickling.
        cpus, gpus: that an actor needs to be placed.
        most_restarts: actors that may be replaced in all.
        start: seconds that the first actor may take to be placed and to load.

    Raises:
        MemberGone: an actor could not load its teacher, before any could.
        NotReady: none was there in time.
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
        start: float = START_TIMEOUT_S,
    ) -> None:
        if not ray.is_initialized():
            ray.init(address=address or "auto", log_to_driver=False)
        self._pool, self._load, self._count = pool, load, count
        self._cpus, self._gpus = cpus, gpus
        self._names = (f"ray-{at}" for at in itertools.count())
        self._left = most_restarts + count
        self._starting: dict[Any, RayMember] = {}
        self._joined: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="ray-teachers", daemon=True)
        try:
            self._first(start)
        except BaseException:
            self._end()
            raise
        self._thread.start()

    def close(self) -> None:
        """End all actors."""
        self._stop.set()
        self._thread.join(END_TIMEOUT_S)
        self._end()

    def _end(self) -> None:
        for member in self._starting.values():
            member.close()
        self._pool.close()

    def _first(self, limit: float) -> None:
        now = SystemClock().monotonic
        until = now() + limit
        while not self._joined:
            failures = self._step()
            if failures and not self._joined:
                raise failures[0]
            if now() > until:
                raise NotReady(
                    f"the cluster has started no teacher within {limit:g} s; each needs {self._cpus:g} CPUs and "
                    f"{self._gpus:g} GPUs of one node"
                )

    def _keep(self) -> None:
        while not self._stop.is_set():
            try:
                failures = self._step()
            except RayError as error:
                log.error("the cluster does not answer: %s", error)
                self._stop.wait(WATCH_S)
                continue
            for failure in failures:
                log.error("%s", failure)

    def _step(self) -> list[MemberGone]:
        """Start actors for those that are gone, and add those that have started to the pool; takes `WATCH_S` seconds at most.
        The failures to start."""
        self._joined &= set(self._pool.members)
        missing = self._count - len(self._joined) - len(self._starting)
        for _ in range(min(missing, self._left)):
            self._left -= 1
            member = RayMember(next(self._names), self._load, cpus=self._cpus, gpus=self._gpus)
            self._starting[member.trouble] = member
        if not self._starting:
            self._stop.wait(WATCH_S)
            return []
        refs = list(self._starting)
        started, _ = ray.wait(refs, num_returns=len(refs), timeout=WATCH_S)
        failures = []
        for ref in started:
            member = self._starting.pop(ref)
            try:
                member.started()
            except MemberGone as error:
                member.close()
                failures.append(error)
                continue
            self._pool.join(member)
            self._joined.add(member.name)
        return failures
