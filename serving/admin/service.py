"""Common part of the services, whose methods are the admin verbs: stores, clock, and reports of the processes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pipeline.clock import Clock
from pipeline.errors import NotReady
from serving.admin.requests import Mutation
from serving.config import Config
from serving.config.principal import Principal
from serving.rollout.controller import RolloutController
from serving.rollout.store import Who
from serving.runtime import status
from serving.runtime.roster import ProcessState, roster_of
from serving.runtime.status import LaneStatus, Statuses
from serving.wiring.backends import Backends

__all__ = ["Parts", "ProcessReports", "Service"]

STOP_WAIT_S = 2.0
"""Longest wait of an emergency verb for the rollout loop."""


class ProcessReports:
    """Reader of the status files; every call reads them again.

    Args:
        config: names the folder of the files, and the processes that should run.
    """

    def __init__(self, config: Config, clock: Clock) -> None:
        self._config = config
        self._clock = clock

    def all(self) -> Statuses:
        """Every status, those of dead processes too."""
        return status.read(self._config.status, self._clock.wall_ms())

    def roster(self) -> list[ProcessState]:
        """State of every process."""
        return roster_of(self._config, self._clock.wall_ms())

    def lanes(self) -> dict[str, LaneStatus]:
        """Lanes that still report, by name."""
        return {name: lane.status for name, lane in self.all().fresh().lanes.items()}

    def ready(self) -> tuple[bool, list[str]]:
        """Whether all lanes and the shadow lane answer, and the names of those that do not."""
        fresh = self.all().fresh()
        # Counted, since lanes of replicas that come and go are not numbered from 0.
        ready = {name for name, lane in fresh.lanes.items() if lane.status.state == "ready"}
        lanes = self._config.engine.lanes
        names = [f"lane-{index}" for index in range(lanes)] if len(ready) < lanes else []
        missing = [name for name in names if name not in ready]
        if fresh.shadow is None:
            missing.append("shadow")
        return not missing, missing


@dataclass(frozen=True, slots=True)
class Parts:
    """What every service works on.

    Args:
        processes: reports of the machine's processes.
        lock: held while `controller` is used or traffic is moved, by the rollout loop too.
    """

    config: Config
    backends: Backends
    controller: RolloutController
    processes: ProcessReports
    clock: Clock
    lock: threading.RLock


class Service:
    """A group of verbs; see `serving.admin.verbs`."""

    def __init__(self, parts: Parts) -> None:
        backends = parts.backends
        self._config = parts.config
        self._store = backends.store
        self._traffic = backends.traffic
        self._repository = backends.repository
        self._kill = backends.kill
        self._secret = backends.secret
        self._controller = parts.controller
        self._processes = parts.processes
        self._clock = parts.clock
        self._lock = parts.lock

    @contextmanager
    def _stopping(self, endpoint: Callable[[], str], request: Mutation, by: Principal) -> Iterator[None]:
        """Context of a change that takes all traffic from a candidate: where it cannot be stored, the kill switch does it.

        Raises:
            NotReady: the first error, and what was done instead.
        """
        try:
            with self._between_passes():
                yield
        except NotReady as error:
            name = endpoint()
            try:
                self._kill.engage(name, f"{request.reason or 'no reason given'}; {error}", by.name)
            except NotReady as second:
                raise NotReady(
                    f"{error}. The kill switch was tried instead: {second}. Run `baton endpoint kill {name} --home HOME` on "
                    "every machine"
                ) from error
            raise NotReady(
                f"{error}. So the kill switch of {name!r} is engaged instead, and its candidate gets nothing. Mend the "
                f"cause, then take the switch back: `baton endpoint kill {name} --release`"
            ) from error

    @contextmanager
    def _between_passes(self) -> Iterator[None]:
        """Context that holds the lock of the rollout loop, for emergencies: it waits for it no longer than `STOP_WAIT_S`.

        Raises:
            NotReady: a pass has not ended by then.
        """
        if not self._lock.acquire(timeout=STOP_WAIT_S):
            raise NotReady(f"the rollout loop has not ended its pass within {STOP_WAIT_S:.0f} s")
        try:
            yield
        finally:
            self._lock.release()

    def _who(self, by: Principal, request: Mutation) -> Who:
        """Author of a change, for the audit."""
        return Who(by.name, request.reason, self._clock.wall_ms())
