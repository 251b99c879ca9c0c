"""Child of a supervisor: one process that is to run, with its restarts, its last end and its signs of life."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.children import python
from pipeline.clock import Clock
from serving.config import Config
from serving.runtime.endings import ENDING, ending_path, read_ending
from serving.runtime.process import PARENT
from serving.runtime.status import ChildStatus
from serving.supervisor.pulse import PULSE, Pulse
from serving.supervisor.watchdog import Watchdog, is_stopped

__all__ = ["ASKED", "CAUSES", "ENDED", "FIRST_PAUSE_S", "HUNG", "LONGEST_PAUSE_S", "Child", "children_of"]

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0
LOOK_EVERY_S = 0.5
ENDED, HUNG, ASKED = CAUSES = ("ended", "hung", "asked")
"""Why a process was started again: it ended by itself, it hung and was killed, or an operator wanted it."""

log = logging.getLogger(__name__)


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
    process: subprocess.Popen[bytes] | None = None
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
        return Child(f"lane-{index}", command(*words), 0, command(*words, "--spare"))

    rest = [Child("control", command("process", "control"), 2), Child("shadow", command("process", "shadow"), 1)]
    worker = [Child("worker", command("worker"), 1)] if config.worker else []
    return [*rest, *map(lane, range(config.engine.lanes)), *worker]
