"""Restart of processes that an operator has ordered: one after another, while the others go on.

A lane is followed by a successor, which runs beside it: the old one is asked to end only once the new one has loaded what it
is to serve and listens on the shared port. Of all others only one can run at a time. The supervisor calls `step` again and
again; a step never waits. What fails ends the restart, and what has not been restarted yet stays as it is.
"""

from __future__ import annotations

import logging
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from pipeline.clock import Clock
from pipeline.errors import BatonError, NotFound
from serving.runtime import status
from serving.runtime.status import LaneStatus
from serving.supervisor import orders
from serving.supervisor.child import ASKED, Child
from serving.supervisor.orders import EVERYTHING, Order, Progress

__all__ = ["NEXT", "STOP_TIMEOUT_S", "Crew", "Restart", "next_folder"]

NEXT = "next"
STOP_TIMEOUT_S = 20.0
READY_LIMIT_S = 300.0
"""Time in which a new process is ready, or the restart has failed."""
LOOK_EVERY_S = 0.2
TRIAL_LIMIT_S = 120.0
_LAST = {"shadow": 1, "control": 2, "worker": 3}
"""Order of the processes that clients do not talk to, after the lanes."""

log = logging.getLogger(__name__)


class Crew(Protocol):
    """The supervisor, as a restart needs it.

    Attributes:
        children: that are kept running. others: that are about to come or to go, and end with the supervisor.
    """

    home: Path
    clock: Clock
    children: list[Child]
    others: list[Child]
    environment: Mapping[str, str]

    def launch(self, child: Child) -> None:
        """Start a child. Raises: OSError."""

    def renew(self, now: Progress) -> None:
        """Start the supervisor's own program anew, if it can be: then it does not return. Raises: OSError."""


class _Failed(Exception):
    """The restart cannot go on; the message says why, and what runs now."""


class Restart:
    """Restart under way.

    Args:
        wanted: reads the configuration again and returns the processes that it asks for. Raises: BatonError: it cannot be
            used, or needs a full stop.
        trial: command that ends with 0 if the installed version can run with the configuration; empty: no trial.
    """

    def __init__(self, order: Order, crew: Crew, wanted: Callable[[], list[Child]], trial: Sequence[str] = ()) -> None:
        self._order, self._crew, self._wanted, self._trial = order, crew, wanted, trial
        self._clock = crew.clock
        self._seconds: dict[str, float] = {}
        self._steps = self._all()
        self._written: Progress | None = None
        self._doing = ""

    def step(self) -> bool:
        """Go on as far as possible without waiting; whether the restart has ended."""
        ended = False
        try:
            self._doing = next(self._steps)
            now = Progress(order=self._order, doing=self._doing, seconds=dict(self._seconds))
        except StopIteration:
            ended, now = True, Progress(order=self._order, state="done", seconds=dict(self._seconds))
            log.info("restarted: %s", ", ".join(self._seconds) or "nothing")
        except (_Failed, BatonError, OSError) as error:
            ended = True
            now = Progress(order=self._order, state="failed", why=str(error), seconds=dict(self._seconds))
            log.error("the restart ends: %s", error)
        if now != self._written:
            with suppress(OSError):  # on a full disk it goes on unseen
                orders.report(self._crew.home, now)
            self._written = now
        return ended

    def _all(self) -> Iterator[str]:
        wanted = self._wanted()
        log.info("restart of %s, ordered by %s: %s", self._order.process, self._order.by, self._order.reason or "-")
        present = {child.name: child for child in self._crew.children}
        if self._order.process != EVERYTHING:
            if self._order.process not in present:
                raise NotFound(f"there is no process {self._order.process!r}; there are {', '.join(sorted(present))}")
            yield from self._timed(present[self._order.process])
            return
        yield from self._tried()
        names = {child.name for child in wanted}
        for child in sorted(self._crew.children, key=_turn):
            if child.name in names:
                yield from self._timed(child)
            else:
                yield from self._removed(child)
        for child in sorted(wanted, key=_turn):
            if child.name not in present:
                self._crew.children.append(child)
                yield from self._timed(child)
        self._wanted()  # it is read anew by the supervisor's next program, which nothing catches
        self._crew.renew(Progress(order=self._order, seconds=dict(self._seconds)))

    def _timed(self, child: Child) -> Iterator[str]:
        began = self._clock.monotonic()
        if child.beside and child.process is not None:
            yield from self._followed(child)
        else:
            yield from self._again(child)
        self._seconds[child.name] = round(self._clock.monotonic() - began, 1)

    def _tried(self) -> Iterator[str]:
        """Find out whether the version that is installed now runs at all, before anything is ended for it."""
        if not self._trial:
            return
        process = subprocess.Popen(
            self._trial, env=dict(self._crew.environment), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, process_group=0, text=True, errors="replace",
        )  # fmt: skip
        try:
            until = self._clock.monotonic() + TRIAL_LIMIT_S
            while process.poll() is None:
                if self._clock.monotonic() > until:
                    raise _Failed(
                        f"the installed version does not start within {TRIAL_LIMIT_S:.0f} s; nothing was restarted"
                    )
                yield "the installed version is tried"
            assert process.stderr is not None
            if process.returncode:
                last = [line for line in process.stderr.read()[-4000:].splitlines() if line.strip()][-1:]
                raise _Failed(
                    f"the installed version cannot run: {''.join(last) or process.returncode}; nothing was restarted"
                )
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.stderr is not None:
                process.stderr.close()

    def _followed(self, old: Child) -> Iterator[str]:
        """Replace a process by one that runs beside it until it is ready."""
        new = old.successor()
        (next_folder(self._crew.home) / f"{old.name}.json").unlink(missing_ok=True)
        self._crew.launch(new)
        self._crew.others.append(new)
        try:
            yield from self._ready(new, "the old one goes on")
        except BaseException:
            self._crew.others.remove(new)
            new.kill()
            if new.process is not None:
                new.process.wait()
                new.bury(self._crew.home)
            raise
        self._crew.others.remove(new)
        new.restarts, new.causes = old.restarts, old.causes  # of the meantime
        new.count(ASKED)
        self._crew.children[self._crew.children.index(old)] = new
        if old.process is not None:
            self._crew.others.append(old)
            yield from self._ended(old)
            self._crew.others.remove(old)

    def _again(self, child: Child) -> Iterator[str]:
        """End a process, then start it again."""
        child.held = True
        try:
            if child.process is not None:
                yield from self._ended(child)
                child.count(ASKED)
            self._crew.launch(child)
        finally:
            child.held = False
        yield from self._ready(child, "it is tried again and again")

    def _removed(self, child: Child) -> Iterator[str]:
        child.held = True
        yield from self._ended(child)
        self._crew.children.remove(child)

    def _ended(self, child: Child) -> Iterator[str]:
        """Ask a process to end, and kill it if it does not."""
        if child.process is None:
            return
        child.process.send_signal(signal.SIGTERM)
        until = self._clock.monotonic() + STOP_TIMEOUT_S
        killed = False
        while not child.ended():
            if not killed and self._clock.monotonic() > until:
                log.error("%s did not end within %.0f s and is killed", child.name, STOP_TIMEOUT_S)
                child.kill()
                killed = True
            yield f"{child.name} ends"
        child.bury(self._crew.home)

    def _ready(self, child: Child, otherwise: str) -> Iterator[str]:
        """Wait until a new process reports that it is ready. `otherwise`: what runs if it does not."""
        began = looked = self._clock.monotonic()
        pid = None if child.process is None else child.process.pid
        while True:
            now = self._clock.monotonic()
            child.watch(now)
            if child.ended() or child.process is None or child.process.pid != pid:
                hung = child.hung
                if child.ended():
                    child.bury(self._crew.home)
                how = f"{child.status().last_end}: {child.reason}" if child.reason else hung or child.status().last_end
                raise _Failed(f"the new {child.name} ended with {how}; {otherwise}")
            if now - looked >= LOOK_EVERY_S:
                looked = now
                ready, waits = self._look(child)
                if ready:
                    return
                if now - began > READY_LIMIT_S:
                    raise _Failed(f"the new {child.name} is not ready after {READY_LIMIT_S:.0f} s{waits}; {otherwise}")
                yield f"{child.name} starts{waits}"
            else:
                yield self._doing or f"{child.name} starts"

    def _look(self, child: Child) -> tuple[bool, str]:
        """Whether a process reports that it is ready, and what it waits for."""
        assert child.process is not None
        now_ms = self._clock.wall_ms()
        for folder in (next_folder(self._crew.home), self._crew.home / "run" / "status"):
            found = status.read_one(folder, child.name, now_ms)
            if found is None or getattr(found.status, "pid", 0) != child.process.pid:
                continue
            if not isinstance(found.status, LaneStatus) or found.status.state == "ready":
                return True, ""
            waits = [*found.status.loading, *(f"{key}: {why}" for key, why in found.status.faults.items())]
            return False, f", waiting for {'; '.join(waits)}" if waits else ""
        return False, ""


def next_folder(home: Path) -> Path:
    """Folder of the status files of processes that are to follow others of their names."""
    return home / "run" / NEXT


def _turn(child: Child) -> tuple[int, int, str]:
    return _LAST.get(child.name, 0), len(child.name), child.name
