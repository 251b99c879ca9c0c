"""Supervisor of `baton serve`: starts every process of one machine, watches them, starts dead ones again.

It answers no request and holds no state, so nothing is lost when it dies; its children then end by themselves. A child
that dies is started again after a pause, which doubles from `FIRST_PAUSE_S` to `LONGEST_PAUSE_S` and is the first one
again after the child has run for `STABLE_AFTER_S`. Its status file has the supervisor's name, `supervisor` where a machine
has only one.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.children import python
from pipeline.clock import Clock, SystemClock
from pipeline.errors import Conflict
from serving.config import Config
from serving.runtime import status
from serving.runtime.claims import SERVE, Claim, Holder, holder_of, role_lock, supervisors, using
from serving.runtime.endings import ENDING, ending_path, read_ending
from serving.runtime.process import PARENT
from serving.runtime.status import ChildStatus, SupervisorStatus

__all__ = ["Child", "Supervisor", "children_of", "predecessors_ended"]

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0
STABLE_AFTER_S = 30.0
TICK_S = 0.05
STOP_TIMEOUT_S = 20.0
STATUS_EVERY_S = 1.0

log = logging.getLogger(__name__)


@dataclass
class Child:
    """A process to keep running. `stage`: children of a lower stage are stopped first."""

    name: str
    argv: Sequence[str]
    stage: int
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    restarts: int = 0
    pause: float = FIRST_PAUSE_S
    due: float = 0.0
    started_ms: int = 0
    last_exit: int | None = None
    reason: str = ""
    settled: bool = True
    """Whether it has not ended since it last ran for `STABLE_AFTER_S`."""
    repeats: bool = False
    """Whether it ends again and again for one reason, which has been logged."""

    def status(self) -> ChildStatus:
        """For the supervisor's status file."""
        return ChildStatus(
            pid=self.process.pid if self.process else None,
            started_ms=self.started_ms,
            restarts=self.restarts,
            last_exit=self.last_exit,
            reason=self.reason,
        )


def children_of(config: Config, config_path: Path) -> list[Child]:
    """The processes of a config: lanes stop first, control last, so that late labels still find their store."""

    def child(name: str, stage: int, *command: str) -> Child:
        return Child(name, python("-m", "serving.cli.main", *command, "--config", str(config_path)), stage)

    lanes = [
        child(f"lane-{index}", 0, "process", "lane", "--index", str(index)) for index in range(config.engine.lanes)
    ]
    rest = [child("control", 2, "process", "control"), child("shadow", 1, "process", "shadow")]
    return [*rest, *lanes, *([child("worker", 1, "worker")] if config.worker else [])]


def predecessors_ended(home: Path, roles: Sequence[str]) -> None:
    """Wait until processes of an earlier supervisor, which end by themselves, have ended.

    Raises:
        Conflict: one of them goes on; the message names it.
    """
    until = time.monotonic() + STOP_TIMEOUT_S
    told = False
    while present := [holder for role in roles if (holder := holder_of(role_lock(home, role))) is not None]:
        if time.monotonic() > until:
            raise Conflict(f"{present[0].role} of {home} still runs as {present[0]}; end it first")
        if not told:
            log.warning("waiting for the end of %s", ", ".join(map(str, present)))
        told = True
        time.sleep(TICK_S)


@dataclass
class Supervisor:
    """Keeps `children` running until `stop` is set.

    Raises:
        Conflict: another supervisor of this name runs on the same home.
    """

    home: Path
    children: list[Child]
    name: str = "supervisor"
    alone: bool = True
    """Whether no other supervisor works on this home, so that all status files are of its children."""
    clock: Clock = field(default_factory=SystemClock)
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._written: dict[str, ChildStatus] = {}
        self._written_at = 0.0
        self._complained = False

    def stop(self) -> None:
        """Ask `run` to end; may be called from a signal handler."""
        self._stop.set()

    def run(self, ready: Callable[[], AbstractContextManager[object]] = nullcontext) -> None:
        """Start all, watch until stopped, then end all in order of stage. Must run in the thread that starts children:
        their death signal is tied to it.

        Args:
            ready: entered before the first child starts, once no other supervisor of this name can; left after the last
                one has ended.
        """
        folder = self.home / "run" / "status"
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            stack.enter_context(using(self.home))
            stack.callback(self._claim().release)
            stack.enter_context(ready())
            self._sweep(folder)
            try:
                while not self._stop.wait(TICK_S):
                    self._tick()
            finally:
                self._end_all()

    def _claim(self) -> Claim:
        role = SERVE if self.alone else self.name
        path = self.home / "run" / f"{self.name}.lock"
        try:
            claim = Claim.take(path, self.name, Holder.here(self.home, role))
        except Conflict:
            first = holder_of(path) or "unknown"
            raise Conflict(f"another `baton serve` runs on {self.home}: {first}; end it or set another home") from None
        others = [other for other in supervisors(self.home) if other.role != role]
        if not self.alone:
            others = [other for other in others if other.role == SERVE]
        if others:
            claim.release()
            raise Conflict(f"{self.home} is in use by {', '.join(map(str, others))}; end that or set another home")
        return claim

    def _sweep(self, folder: Path) -> None:
        """Remove the status files and endings that predecessors left."""
        ours = {self.name, *(child.name for child in self.children)}
        for child in self.children:
            ending_path(self.home, child.name).unlink(missing_ok=True)
        for path in folder.glob("*.json"):
            if self.alone or path.stem in ours:
                path.unlink(missing_ok=True)

    def _tick(self) -> None:
        now = self.clock.monotonic()
        for child in self.children:
            if child.process is not None and child.process.poll() is not None:
                self._bury(child, now)
            if child.process is None and now >= child.due:
                self._start(child, now)
            elif child.process is not None and now - child.started > STABLE_AFTER_S:
                self._settle(child)
        self._write_status()

    def _start(self, child: Child, now: float) -> None:
        try:
            # In a group of its own, so that Ctrl-C reaches the supervisor alone, which ends the children in order.
            child.process = subprocess.Popen(
                child.argv,
                env={
                    **self.environment,
                    PARENT: str(os.getpid()),
                    ENDING: str(ending_path(self.home, child.name)),
                },
                stdin=subprocess.DEVNULL,
                process_group=0,
            )
        except OSError as error:
            child.due = now + child.pause
            log.error("%s cannot be started: %s; trying again in %.1f s", child.name, error, child.pause)
            child.pause = min(2 * child.pause, LONGEST_PAUSE_S)
            return
        child.started, child.started_ms = now, self.clock.wall_ms()
        log.log(logging.DEBUG if child.repeats else logging.INFO, "%s runs as pid %d", child.name, child.process.pid)

    def _bury(self, child: Child, now: float) -> None:
        assert child.process is not None
        before = child.last_exit, child.reason
        noted = read_ending(ending_path(self.home, child.name))
        child.reason = noted.reason if noted is not None and noted.pid == child.process.pid else ""
        child.last_exit = child.process.returncode
        child.process = None
        child.restarts += 1
        child.due = now + child.pause
        child.repeats = not child.settled and before == (child.last_exit, child.reason)
        child.settled = False
        why = f": {child.reason}" if child.reason else ""
        log.log(
            logging.DEBUG if child.repeats else logging.ERROR,
            "%s ended with %s%s; starting it again in %.1f s, then at least every %.0f s",
            *(child.name, child.status().last_end, why, child.pause, LONGEST_PAUSE_S),
        )
        child.pause = min(2 * child.pause, LONGEST_PAUSE_S)

    def _settle(self, child: Child) -> None:
        """Note that a child has stayed: what ends it from now on is news."""
        if child.repeats:
            log.info("%s runs again, after %d restarts", child.name, child.restarts)
        child.pause, child.settled, child.repeats = FIRST_PAUSE_S, True, False

    def _end_all(self) -> None:
        for stage in sorted({child.stage for child in self.children}):
            running = [c for c in self.children if c.stage == stage and c.process is not None]
            for child in running:
                assert child.process is not None
                child.process.send_signal(signal.SIGTERM)
            deadline = self.clock.monotonic() + STOP_TIMEOUT_S
            for child in running:
                assert child.process is not None
                try:
                    child.process.wait(max(0.1, deadline - self.clock.monotonic()))
                except subprocess.TimeoutExpired:
                    log.error("%s did not end within %.0f s and is killed", child.name, STOP_TIMEOUT_S)
                    child.process.kill()
                    child.process.wait()

    def _write_status(self) -> None:
        children = {child.name: child.status() for child in self.children}
        now = self.clock.monotonic()
        if children == self._written and now - self._written_at < STATUS_EVERY_S:
            return
        report = SupervisorStatus(pid=os.getpid(), time_ms=self.clock.wall_ms(), children=children)
        try:
            status.write(self.home / "run" / "status", self.name, report)
        except OSError as error:  # a full disk must not end the processes that answer
            if not self._complained:
                log.error("the supervisor's status cannot be written: %s", error)
            self._complained = True
            return
        self._written, self._written_at, self._complained = children, now, False
