"""Elastic pool of teachers that score rows, after EDL-Dist (arXiv 2207.06667, "Elastic Deep Learning").

Rows are fed in tasks; members take tasks when they are free, so a fast one takes more. A member tries a failed task again,
`TRIES` times in all. Then the task is put back for another member, and the failing member leaves. Members may join and
leave at any time; only the first answer to a task counts. Logits come back in order, each row once, or an error says why
they cannot.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from threading import Semaphore
from typing import Protocol

import numpy as np

from pipeline.arrays import F32
from pipeline.clock import Clock, SystemClock
from pipeline.errors import BatonError, DataError, NotReady
from pipeline.features import Rows

__all__ = ["TRIES", "Member", "MemberGone", "PoolCounters", "TeacherPool"]

TRIES = 3
PART_ROWS = 4096
MAX_FAILED_MEMBERS = 3
"""Number of members that fail on a task before the task counts as bad."""


log = logging.getLogger(__name__)


class MemberGone(NotReady):
    """Error of a member that will not answer again."""


class Member(Protocol):
    """Protocol of one teacher, local or remote. Its methods are called from up to `slots` threads at a time."""

    name: str
    slots: int

    def score(self, rows: Rows) -> F32:
        """Logits of some rows, float32 `[n]`.

        Raises:
            MemberGone: another try is useless. Any other exception: it may help.
        """

    def close(self) -> None:
        """Release it; a second call does nothing."""


@dataclass
class PoolCounters:
    """Counters of a pool: rows fed and returned, tasks tried again and put back, members joined and lost."""

    fed: int = 0
    returned: int = 0
    tries_again: int = 0
    put_back: int = 0
    joined: int = 0
    lost: int = 0


@dataclass(eq=False)
class _Task:
    at: int
    rows: Rows
    given_back: int = 0


class TeacherPool:
    """Pool that feeds its members; `join` and `leave` may be called at any time, from any thread.

    Args:
        patience: seconds that work waits without any member before it fails.
        ahead: tasks fed beyond those that members hold, so that no member waits for the feeder.
    """

    def __init__(self, *, patience: float = 60.0, ahead: int = 2, clock: Clock | None = None) -> None:
        self._patience = patience
        self._ahead = ahead
        self._now = (clock or SystemClock()).monotonic
        self._changed = threading.Condition()
        self._waiting: deque[_Task] = deque()
        self._done: dict[int, F32] = {}
        self._failure: BatonError | None = None
        self._members: dict[str, Member] = {}
        self._threads: list[threading.Thread] = []
        self._scoring = False
        self.counters = PoolCounters()

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the present members."""
        with self._changed:
            return tuple(self._members)

    def join(self, member: Member) -> None:
        """Give a member work from now on; it is closed when it leaves."""
        with self._changed:
            self._members[member.name] = member
            self.counters.joined += 1
            at_work = Semaphore(member.slots - 1)
            for slot in range(member.slots):
                thread = threading.Thread(
                    target=self._work, args=(member, at_work), name=f"teacher-{member.name}-{slot}", daemon=True
                )
                self._threads.append(thread)
                thread.start()
            self._changed.notify_all()

    def leave(self, name: str) -> None:
        """Give a member no more work; it finishes its tasks and is closed."""
        with self._changed:
            self._members.pop(name, None)
            self._changed.notify_all()

    def score(self, chunks: Iterable[Rows]) -> Iterator[F32]:
        """Logits of chunks, float32 `[n]` each, in their order; holds a bounded number of chunks.

        Raises:
            NotReady: no member was there for as long as `patience`.
            DataError: a chunk that several members failed on, one after the other.
        """
        with self._changed:
            if self._scoring:
                raise RuntimeError("a pool scores one stream of chunks at a time")
            self._scoring = True
        fed = taken = 0
        source = iter(chunks)
        more = True
        try:
            while more or taken < fed:
                while more and fed - taken < self._room():
                    rows = next(source, None)
                    if rows is None:
                        more = False
                        break
                    self._feed(_Task(fed, rows))
                    fed += 1
                if taken < fed:
                    yield self._take(taken)
                    taken += 1
        finally:
            with self._changed:
                self._waiting.clear()
                self._done.clear()
                self._failure = None
                self._scoring = False

    def spread(self, rows: Rows) -> F32:
        """Logits of rows that are in memory, float32 `[n]`, scored in parts by all members. Raises: as `score`."""
        parts = (rows.take(np.arange(at, min(at + PART_ROWS, len(rows)))) for at in range(0, len(rows), PART_ROWS))
        return np.concatenate([np.empty(0, np.float32), *self.score(parts)])

    def close(self) -> None:
        """Close all members."""
        with self._changed:
            members = list(self._members.values())
            self._members.clear()
            self._changed.notify_all()
        for member in members:
            member.close()
        for thread in self._threads:
            thread.join(5.0)

    def _room(self) -> int:
        with self._changed:
            return self._ahead + sum(member.slots for member in self._members.values())

    def _feed(self, task: _Task) -> None:
        with self._changed:
            self.counters.fed += len(task.rows)
            self._waiting.append(task)
            self._changed.notify()

    def _take(self, at: int) -> F32:
        """Wait for the answer to a task."""
        alone_since: float | None = None
        with self._changed:
            while at not in self._done:
                if self._failure is not None:
                    raise self._failure
                now = self._now()
                alone_since = None if self._members else alone_since if alone_since is not None else now
                if alone_since is not None and now - alone_since >= self._patience:
                    raise NotReady(f"no teacher has been there to score rows for {self._patience:g} s")
                self._changed.wait(self._patience / 10 if alone_since is not None else None)
            logits = self._done.pop(at)
            self.counters.returned += len(logits)
            return logits

    def _work(self, member: Member, at_work: Semaphore) -> None:
        while (task := self._next(member)) is not None:
            try:
                logits = self._try(member, task)
            except Exception as error:
                self._give_back(member, task, error)
                break
            with self._changed:
                self._done.setdefault(task.at, logits)
                self._changed.notify_all()
        if not at_work.acquire(blocking=False):  # the last of its threads
            member.close()

    def _next(self, member: Member) -> _Task | None:
        with self._changed:
            while self._members.get(member.name) is member:
                if self._waiting:
                    return self._waiting.popleft()
                self._changed.wait()
        return None

    def _try(self, member: Member, task: _Task) -> F32:
        for left in reversed(range(TRIES)):
            try:
                logits = np.asarray(member.score(task.rows), np.float32)
                if logits.shape != (len(task.rows),):
                    raise DataError(f"{member.name} answered {logits.shape} to {len(task.rows)} rows", "teacher")
                return logits
            except MemberGone:
                raise
            except Exception as error:
                if not left:
                    raise
                log.warning("%s failed on a task, which it is given again: %s", member.name, error)
                with self._changed:
                    self.counters.tries_again += 1
        raise AssertionError("unreachable")

    def _give_back(self, member: Member, task: _Task, error: Exception) -> None:
        """Put the task at the front of the queue, since all after it wait for it; the member leaves."""
        log.error("teacher %s is given up: %s", member.name, error)
        with self._changed:
            first = self._members.pop(member.name, None) is not None
            if first:
                self.counters.lost += 1
            if not isinstance(error, MemberGone):
                task.given_back += 1
            if task.given_back >= MAX_FAILED_MEMBERS:
                self._failure = DataError(
                    f"{task.given_back} teachers in turn could not score chunk {task.at}: {error}", "teacher"
                )
            self._waiting.appendleft(task)
            self.counters.put_back += 1
            self._changed.notify_all()
        if first:
            member.close()
