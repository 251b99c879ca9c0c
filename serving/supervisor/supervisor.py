"""Supervisor of `baton serve`: starts every process of one machine, watches them, starts dead and hung ones again.

It answers no request and holds no state, so nothing is lost when it dies; its children then end by themselves. A child
that dies is started again after a pause, which doubles from `FIRST_PAUSE_S` to `LONGEST_PAUSE_S` and is the first one
again after the child has run for `STABLE_AFTER_S`, or for `WELL_AFTER_S` where it had hung. A child without a sign of life
(`serving.supervisor.watchdog`) is killed first. Its status file has the supervisor's name, `supervisor` where a machine
has only one. Restarts that an operator asks for are in `serving.supervisor.restart`.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.clock import Clock, SystemClock
from pipeline.errors import Conflict
from serving.runtime import status
from serving.runtime.claims import SERVE, Claim, Holder, holder_of, process_of, supervisors, using
from serving.runtime.endings import ending_path
from serving.runtime.status import ChildStatus, SupervisorStatus
from serving.supervisor import orders
from serving.supervisor.child import FIRST_PAUSE_S, HUNG, LONGEST_PAUSE_S, Child, Handed
from serving.supervisor.orders import Progress
from serving.supervisor.restart import STOP_TIMEOUT_S, Restart, next_folder

__all__ = ["ENDS", "HANDED", "Supervisor", "predecessors_ended"]

STABLE_AFTER_S = 30.0
WELL_AFTER_S = 600.0
"""Time after which a child that had hung counts as well again."""
TICK_S = 0.05
STATUS_EVERY_S = 1.0
ORDERS_EVERY_S = 0.5
HANDED = "BATON_HANDED"
"""Environment variable with what a supervisor's program leaves to the next one."""
ENDS = (signal.SIGTERM, signal.SIGINT)
"""Signals that end a supervisor."""

log = logging.getLogger(__name__)


def predecessors_ended(home: Path, roles: Sequence[str]) -> None:
    """Wait until processes of an earlier supervisor, which end by themselves, have ended.

    Raises:
        Conflict: one of them goes on; the message names it.
    """
    until = time.monotonic() + STOP_TIMEOUT_S
    told = False
    while present := [holder for role in roles if (holder := process_of(home, role)) is not None]:
        if time.monotonic() > until:
            raise Conflict(f"{present[0].role} of {home} still runs as {present[0]}; end it first")
        if not told:
            log.warning("waiting for the end of %s", ", ".join(map(str, present)))
        told = True
        time.sleep(TICK_S)


@dataclass
class Supervisor:
    """Keeps `children` running until `stop` is set.

    Args:
        alone: whether no other supervisor works on this home, so that all status files are of its children, and orders for it.
        hang_limit_s: time without a sign of life after which a child is killed; 0: no limit.
        wanted: reads the configuration again for a restart, and returns the processes that it asks for; None: the present ones.
        trial: command that ends with 0 if the installed version can run; see `Restart`.
        program: command line of this process, by which it starts its own program anew after a restart of all others; empty: it
            stays as it is. Its children go on.
        handed: by the program before, whose children this one adopts; "": none.

    Raises:
        Conflict: another supervisor of this name runs on the same home.
    """

    home: Path
    children: list[Child]
    name: str = "supervisor"
    alone: bool = True
    clock: Clock = field(default_factory=SystemClock)
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    hang_limit_s: float = 0.0
    wanted: Callable[[], list[Child]] | None = None
    trial: Sequence[str] = ()
    program: Sequence[str] = ()
    handed: str = ""
    others: list[Child] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._written: dict[str, ChildStatus] = {}
        self._written_at = 0.0
        self._complained = False
        self._orders: list[orders.Order] = []
        self._orders_at = 0.0
        self._restart: Restart | None = None

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
            if self.handed:
                self._adopt(json.loads(self.handed))
            else:
                self._sweep(folder)
            try:
                while not self._stop.wait(TICK_S):
                    self._tick()
            finally:
                self._end_all()

    def launch(self, child: Child) -> None:
        """Start a child. Raises: OSError."""
        child.start(self.home, self.environment, self.clock, self.hang_limit_s)

    def renew(self, now: Progress) -> None:
        """Start this process's own program anew, if it can be; then it does not return. Raises: OSError."""
        if not self.program:
            return
        orders.report(self.home, replace(now, doing="the supervisor starts its own program anew"))
        children = [asdict(handed) for child in self.children if (handed := child.hand_on()) is not None]
        document = json.dumps({"restart": asdict(now), "children": children})
        log.info("the supervisor starts its own program anew")
        # A signal waits until the next program can take it.
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
        try:
            os.execve(self.program[0], list(self.program), {**self.environment, HANDED: document})
        except OSError:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDS)
            raise

    def _adopt(self, document: dict[str, Any]) -> None:
        """Go on with the children of the program before."""
        children = {child.name: child for child in self.children}
        for found in (Handed(**fields) for fields in document["children"]):
            if found.name in children:
                children[found.name].adopt(found, self.clock, self.hang_limit_s)
            else:  # the configuration has lost it meanwhile
                os.kill(found.pid, signal.SIGTERM)
        before = document["restart"]
        done = Progress(**{**before, "order": orders.Order(**before["order"]), "state": "done", "doing": ""})
        with suppress(OSError):
            orders.report(self.home, done)
        log.info("the supervisor goes on with %s", ", ".join(children))

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
        """Remove the status files, endings and orders that predecessors left."""
        ours = {self.name, *(child.name for child in self.children)}
        for child in self.children:
            ending_path(self.home, child.name).unlink(missing_ok=True)
        for path in (*folder.glob("*.json"), *next_folder(self.home).glob("*.json")):
            if self.alone or path.stem in ours:
                path.unlink(missing_ok=True)
        if self.alone:
            orders.take(self.home)
            if (before := orders.progress(self.home)) is not None and not before.ended:
                ended = replace(before, state="failed", doing="", why="`baton serve` ended meanwhile")
                with suppress(OSError):
                    orders.report(self.home, ended)

    def _tick(self) -> None:
        now = self.clock.monotonic()
        for child in self.children:
            if child.held:
                continue
            child.watch(now)
            if child.ended():
                self._bury(child, now)
            if child.process is None and now >= child.due:
                self._start(child, now)
            elif child.process is not None and now - child.started > (
                WELL_AFTER_S if child.last_cause == HUNG else STABLE_AFTER_S
            ):
                self._settle(child)
        if self.alone:
            self._follow_orders(now)
        self._write_status()

    def _follow_orders(self, now: float) -> None:
        if self._restart is not None:
            if self._restart.step():
                self._restart = None
            return
        if now - self._orders_at >= ORDERS_EVERY_S:
            self._orders_at = now
            self._orders += orders.take(self.home)
        if self._orders:
            wanted = self.wanted or (lambda: list(self.children))
            self._restart = Restart(self._orders.pop(0), self, wanted, self.trial)

    def _start(self, child: Child, now: float) -> None:
        try:
            self.launch(child)
        except OSError as error:
            child.due = now + child.pause
            log.error("%s cannot be started: %s; trying again in %.1f s", child.name, error, child.pause)
            child.pause = min(2 * child.pause, LONGEST_PAUSE_S)

    def _bury(self, child: Child, now: float) -> None:
        before = child.last_exit, child.reason
        child.count(child.bury(self.home))
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
        everyone = [*self.others, *self.children]
        for stage in sorted({child.stage for child in everyone}):
            running = [c for c in everyone if c.stage == stage and c.process is not None]
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
        report = SupervisorStatus(
            pid=os.getpid(), takes_orders=self.alone, time_ms=self.clock.wall_ms(), children=children
        )
        try:
            status.write(self.home / "run" / "status", self.name, report)
        except OSError as error:  # a full disk must not end the processes that answer
            if not self._complained:
                log.error("the supervisor's status cannot be written: %s", error)
            self._complained = True
            return
        self._written, self._written_at, self._complained = children, now, False
