"""Child of a supervisor: one process that is to run, with its restarts, its last end and its signs of life.

A supervisor that starts its own program anew keeps its children: each is handed on as a `Handed`, and adopted by the next program.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from pipeline.children import python
from pipeline.clock import Clock
from serving.config import Config
from serving.runtime.endings import ENDING, ending_path, read_ending
from serving.runtime.process import PARENT
from serving.runtime.status import ChildStatus
from serving.supervisor.pulse import PULSE, Pulse
from serving.supervisor.watchdog import Watchdog, is_stopped

__all__ = [
    "ASKED",
    "CAUSES",
    "ENDED",
    "FIRST_PAUSE_S",
    "HUNG",
    "LONGEST_PAUSE_S",
    "Child",
    "Handed",
    "children_of",
    "trial_of",
]

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0
LOOK_EVERY_S = 0.5
POLL_S = 0.02
SPARE_OPTION = "--spare"
ENDED, HUNG, ASKED = CAUSES = ("ended", "hung", "asked")
"""Why a process was started again: it ended by itself, it hung and was killed, or an operator wanted it."""

log = logging.getLogger(__name__)


class Process(Protocol):
    """Process of a child, as `subprocess.Popen` has it."""

    pid: int
    returncode: int | None

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, sig: int) -> None: ...

    def kill(self) -> None: ...


class _Adopted:
    """Process that an earlier program of this process has started."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                pid, status = self.pid, 0
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        until = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if until is not None and time.monotonic() > until:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            time.sleep(POLL_S)
        return code

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Handed:
    """Child that runs, for the next program of its supervisor. `pulse`: descriptor of its signs of life; `spare`: it began beside
    the one before it; the others are as of `Child`."""

    name: str
    pid: int
    pulse: int | None
    spare: bool
    started_ms: int
    restarts: int
    causes: Mapping[str, int]
    last_exit: int | None
    reason: str
    last_cause: str


@dataclass
class Child:
    """A process to keep running.

    Args:
        stage: children of a lower stage are stopped first.
        beside: command of a successor that may run beside it; empty: only one of this name can run at a time.
    """

    name: str
    argv: Sequence[str]
    stage: int
    beside: Sequence[str] = ()
    process: Process | None = None
    started: float = 0.0
    restarts: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    pause: float = FIRST_PAUSE_S
    due: float = 0.0
    started_ms: int = 0
    last_exit: int | None = None
    reason: str = ""
    settled: bool = True
    """Whether it has not ended since it last ran for long enough."""
    repeats: bool = False
    """Whether it ends again and again for one reason, which has been logged."""
    last_cause: str = ""
    """Cause of its last restart."""
    hung: str = ""
    """Why it was killed as one that hangs; "" once it has ended."""
    held: bool = False
    """Whether a restart deals with it, so that the supervisor leaves it alone."""
    _pulse: Pulse | None = None
    _watchdog: Watchdog | None = None
    _looked: float = 0.0

    def status(self) -> ChildStatus:
        """For the supervisor's status file."""
        return ChildStatus(
            pid=self.process.pid if self.process else None,
            started_ms=self.started_ms,
            restarts=self.restarts,
            causes=dict(self.causes),
            last_exit=self.last_exit,
            reason=self.reason,
        )

    def successor(self) -> Child:
        """The next process of this name, which may run before this one has ended; not started."""
        return replace(self, argv=self.beside, beside=self.argv, process=None, held=False, hung="", _pulse=None)

    def start(self, home: Path, environment: Mapping[str, str], clock: Clock, limit_s: float) -> None:
        """Start the process.

        Args:
            limit_s: time without a sign of life after which it has hung; 0: no limit.

        Raises:
            OSError: it cannot be started.
        """
        pulse = Pulse.make() if limit_s else None
        try:
            # In a group of its own, so that Ctrl-C reaches the supervisor alone, which ends the children in order.
            self.process = subprocess.Popen(
                self.argv,
                env={
                    **environment,
                    PARENT: str(os.getpid()),
                    ENDING: str(ending_path(home, self.name)),
                    **({PULSE: str(pulse.descriptor)} if pulse is not None else {}),
                },
                stdin=subprocess.DEVNULL,
                process_group=0,
                pass_fds=(pulse.descriptor,) if pulse is not None else (),
            )
        except OSError:
            if pulse is not None:
                pulse.close()
            raise
        self._pulse, self._watchdog = pulse, Watchdog(limit_s)
        self.started, self.started_ms = clock.monotonic(), clock.wall_ms()
        self._looked = self.started
        log.log(logging.DEBUG if self.repeats else logging.INFO, "%s runs as pid %d", self.name, self.process.pid)

    def hand_on(self) -> Handed | None:
        """What the next program needs to know of the process; None where it does not run."""
        if self.process is None:
            return None
        if self._pulse is not None:
            os.set_inheritable(self._pulse.descriptor, True)
        return Handed(
            name=self.name, pid=self.process.pid, pulse=None if self._pulse is None else self._pulse.descriptor,
            spare=SPARE_OPTION in self.argv, started_ms=self.started_ms, restarts=self.restarts, causes=dict(self.causes),
            last_exit=self.last_exit, reason=self.reason, last_cause=self.last_cause,
        )  # fmt: skip

    def adopt(self, found: Handed, clock: Clock, limit_s: float) -> None:
        """Go on with a process that an earlier program has started. `limit_s`: as of `start`."""
        if found.spare != (SPARE_OPTION in self.argv):
            self.argv, self.beside = self.beside, self.argv
        self.process = _Adopted(found.pid)
        self.started_ms, self.restarts, self.causes = found.started_ms, found.restarts, Counter(found.causes)
        self.last_exit, self.reason, self.last_cause = found.last_exit, found.reason, found.last_cause
        self.started = self._looked = clock.monotonic()
        if found.pulse is not None:
            os.set_inheritable(found.pulse, False)
            self._pulse, self._watchdog = Pulse(found.pulse), Watchdog(limit_s)
            if not limit_s:
                self._pulse.close()
                self._pulse = None

    def ended(self) -> bool:
        """Whether the process that was started has ended."""
        return self.process is not None and self.process.poll() is not None

    def watch(self, now: float) -> None:
        """Kill the process if it has hung. `now`: monotonic seconds."""
        if self.process is None or self._pulse is None or self._watchdog is None or now - self._looked < LOOK_EVERY_S:
            return
        passed_s, self._looked = now - self._looked, now
        why = self._watchdog.look(self._pulse.signs(), is_stopped(self.process.pid), passed_s)
        if not why or self.hung:
            return
        self.hung = why
        log.error("%s (pid %d) hangs and is killed: %s", self.name, self.process.pid, why)
        self.kill()

    def kill(self) -> None:
        """Kill the process with all that it has started."""
        if self.process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.kill()

    def bury(self, home: Path) -> str:
        """Note how the process ended, which then is no more; the cause."""
        assert self.process is not None
        noted = read_ending(ending_path(home, self.name))
        self.reason = noted.reason if noted is not None and noted.pid == self.process.pid else self.hung
        self.last_exit = self.process.returncode
        cause = HUNG if self.hung else ENDED
        self.process, self.hung = None, ""
        if self._pulse is not None:
            self._pulse.close()
            self._pulse = None
        return cause

    def count(self, cause: str) -> None:
        """Count a restart."""
        self.last_cause = cause
        self.restarts += 1
        self.causes[cause] += 1


def children_of(config: Config, config_path: Path) -> list[Child]:
    """The processes of a config: lanes stop first, control last, so that late labels still find their store."""

    def command(*words: str) -> tuple[str, ...]:
        return python("-m", "serving.cli.main", *words, "--config", str(config_path))

    def lane(index: int) -> Child:
        words = "process", "lane", "--index", str(index)
        return Child(f"lane-{index}", command(*words), 0, command(*words, SPARE_OPTION))

    rest = [Child("control", command("process", "control"), 2), Child("shadow", command("process", "shadow"), 1)]
    worker = [Child("worker", command("worker"), 1)] if config.worker else []
    return [*rest, *map(lane, range(config.engine.lanes)), *worker]


def trial_of(config_path: Path) -> tuple[str, ...]:
    """Command that ends with 0 if the installed version can run with a configuration."""
    return python("-m", "serving.cli.main", "process", "trial", "--config", str(config_path))
