"""Supervisor of `baton serve`: starts every process of one machine, watches them, starts dead ones again.

It answers no request and holds no state, so nothing is lost when it dies; its children then end by themselves. A child
that dies is started again after a pause, which doubles from `FIRST_PAUSE_S` to `LONGEST_PAUSE_S` and is the first one
again after the child has run for `STABLE_AFTER_S`. Its status file has the supervisor's name, `supervisor` where a machine
has only one.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.clock import Clock, SystemClock
from pipeline.errors import Conflict
from serving.config import Config
from serving.runtime import status
from serving.runtime.process import PARENT
from serving.runtime.status import ChildStatus, SupervisorStatus

__all__ = ["Child", "Supervisor", "children_of", "running"]

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0
STABLE_AFTER_S = 30.0
TICK_S = 0.05
STOP_TIMEOUT_S = 20.0

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
    last_exit: int | None = None

    def status(self) -> ChildStatus:
        """For the supervisor's status file."""
        pid = self.process.pid if self.process else None
        return ChildStatus(pid=pid, restarts=self.restarts, last_exit=self.last_exit)


def children_of(config: Config, config_path: Path) -> list[Child]:
    """The processes of a config: lanes stop first, control last, so that late labels still find their store."""

    def child(name: str, stage: int, *command: str) -> Child:
        return Child(name, (sys.executable, "-m", "serving.cli.main", *command, "--config", str(config_path)), stage)

    lanes = [
        child(f"lane-{index}", 0, "process", "lane", "--index", str(index)) for index in range(config.engine.lanes)
    ]
    rest = [child("control", 2, "process", "control"), child("shadow", 1, "process", "shadow")]
    return [*rest, *lanes, *([child("worker", 1, "worker")] if config.worker else [])]


def running(home: Path) -> bool:
    """Whether a supervisor runs on a home."""
    try:
        with open(home / "run" / "supervisor.lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


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
        self._written = ""
        self._complained = False

    def stop(self) -> None:
        """Ask `run` to end; may be called from a signal handler."""
        self._stop.set()

    def run(self) -> None:
        """Start all, watch until stopped, then end all in order of stage. Must run in the thread that starts children:
        their death signal is tied to it."""
        run = self.home / "run"
        (run / "status").mkdir(parents=True, exist_ok=True)
        with open(run / f"{self.name}.lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Conflict(f"another `baton serve` runs on {self.home}; end it or set another home") from None
            self._sweep(run / "status")
            try:
                while not self._stop.wait(TICK_S):
                    self._tick()
            finally:
                self._end_all()

    def _sweep(self, folder: Path) -> None:
        """Remove the status files that predecessors left."""
        ours = {self.name, *(child.name for child in self.children)}
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
                child.pause = FIRST_PAUSE_S
        self._write_status()

    def _start(self, child: Child, now: float) -> None:
        try:
            # In a group of its own, so that Ctrl-C reaches the supervisor alone, which ends the children in order.
            child.process = subprocess.Popen(
                child.argv,
                env={**self.environment, PARENT: str(os.getpid())},
                stdin=subprocess.DEVNULL,
                process_group=0,
            )
        except OSError as error:
            child.due = now + child.pause
            log.error("%s cannot be started: %s; trying again in %.1f s", child.name, error, child.pause)
            child.pause = min(2 * child.pause, LONGEST_PAUSE_S)
            return
        child.started = now
        log.info("%s runs as pid %d", child.name, child.process.pid)

    def _bury(self, child: Child, now: float) -> None:
        assert child.process is not None
        child.last_exit = child.process.returncode
        child.process = None
        child.restarts += 1
        child.due = now + child.pause
        log.error("%s ended with %s; starting it again in %.1f s", child.name, child.status().last_end, child.pause)
        child.pause = min(2 * child.pause, LONGEST_PAUSE_S)

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
        text = status.dumps(SupervisorStatus(pid=os.getpid(), children=children))
        if text == self._written:
            return
        try:
            status.write(self.home / "run" / "status", self.name, text)
        except OSError as error:  # a full disk must not end the processes that answer
            if not self._complained:
                log.error("the supervisor's status cannot be written: %s", error)
            self._complained = True
            return
        self._written, self._complained = text, False
