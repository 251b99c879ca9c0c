"""Bounded writer between a serving lane and the traffic log: answers never wait for a disk.

Predictions wait while the log cannot be reached or takes no more; those that do not fit the queue are dropped and counted.
Feedback is answered only once it is committed, and refused after a few tries, since its sender still has it. One thread
commits all that has come since its last commit, so commits grow with the load. It knows the `TrafficLog` protocol only.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from pipeline.clock import Clock
from pipeline.errors import InvalidInput, LogFull, NotReady, Overloaded
from pipeline.forks import ProcessLock
from pipeline.traffic.drops import Drops
from pipeline.traffic.log import FeedbackEntry, FeedbackReply, TrafficLog
from pipeline.traffic.observing import Observed, ObservedReply, append_observed

__all__ = ["DROP_REASONS", "TrafficWriter", "WriterCounters", "WriterLimits"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
DROP_REASONS = ("full", "reserve", "store", "invalid", "closed", "error")
"""See `WriterCounters`."""
LOG_AGAIN_S = 0.5
"""Pause between two attempts at a log that failed every try."""


class _Submission(NamedTuple):
    """Entries whose sender waits for replies: feedback, or predictions that were answered elsewhere."""

    entries: Sequence[Any]
    future: Future[Any]
    observed: bool = False


@dataclass(frozen=True, slots=True)
class WriterCounters:
    """Totals since the start of the writer, and the queues now.

    Args:
        offered: predictions offered; committed: of these, written; dropped: of these, lost, by reason: `full` (queue),
            `reserve` (the same while the log is at its reserve), `store` (the log failed every try while the writer was
            closed), `invalid` (not a record), `closed`, `error` (an unexpected exception).
        feedback: feedback entries committed; observed: predictions answered elsewhere, committed; refused: entries of
            either refused or failed, by reason: `full`, `reserve`, `store`, `error`.
        commits: transactions; retries: further tries after the store failed.
        queued, queued_bytes, queued_feedback: in the queues, with the predictions that are just being written.
        away: why the log cannot be written now, "": it can.
    """

    offered: int = 0
    committed: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    feedback: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
    commits: int = 0
    retries: int = 0
    queued: int = 0
    queued_bytes: int = 0
    queued_feedback: int = 0
    observed: int = 0
    away: str = ""


@dataclass(frozen=True, slots=True)
class WriterLimits:
    """Bounds of the queues and of a commit.

    Args:
        capacity: predictions in the queue, with those that are just being written; capacity_bytes: their bytes.
        feedback_capacity: feedback entries in the queue.
        batch: predictions of one commit at most; feedback entries too, but a submission is never split.
        delay_s: how long the first prediction of a batch waits for others. Feedback is written at once.
        tries: how often a commit is tried while the log fails, `backoff_s` apart, doubling. Then feedback is refused, and
            predictions are tried again when there is feedback, or `LOG_AGAIN_S` later.
    """

    capacity: int = 10_000
    capacity_bytes: int = 128 << 20
    feedback_capacity: int = 10_000
    batch: int = 256
    delay_s: float = 0.02
    tries: int = 4
    backoff_s: float = 0.05

    def __post_init__(self) -> None:
        if self.tries < 1:
            raise ValueError(f"tries is 1 or more, not {self.tries}")


class TrafficWriter:
    """Writes predictions and feedback of one lane from a thread of its own. It does not close the log.

    Args:
        log: only this writer's thread calls it.
    """

    def __init__(self, log: TrafficLog, clock: Clock, limits: WriterLimits | None = None) -> None:
        self._log = log
        self._clock = clock
        self._limits = limits or WriterLimits()
        self._records: deque[bytes] = deque()
        self._bytes = 0
        self._feedback: deque[_Submission] = deque()
        self._entries = 0
        self._owner = ProcessLock("the writer of the traffic log")
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._given_up: NotReady | None = None
        self._away: NotReady | None = None
        self._offered = self._committed = self._commits = self._retries = 0
        self._written_feedback = self._written_observed = 0
        self._dropped = Drops()
        self._refused: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._run, name="traffic-writer", daemon=True)
        self._thread.start()

    def offer(self, record: bytes) -> bool:
        """Queue a packed prediction record; False when it was dropped. Never blocks."""
        self._owner.check()
        limits = self._limits
        with self._changed:
            self._offered += 1
            if self._closing.is_set():
                self._dropped.add("closed", (record,))
                return False
            if len(self._records) >= limits.capacity or self._bytes + len(record) > limits.capacity_bytes:
                self._dropped.add("reserve" if isinstance(self._away, LogFull) else "full", (record,))
                return False
            self._records.append(record)
            self._bytes += len(record)
            if len(self._records) in (1, limits.batch):
                self._changed.notify()
            return True

    def feedback(self, entries: Sequence[FeedbackEntry]) -> Future[list[FeedbackReply]]:
        """Queue feedback; the future has a reply per entry once all of it is committed.

        Predictions offered before are committed before it. The future raises NotReady when the store fails every try.

        Raises:
            Overloaded: too much feedback waits already.
            NotReady: the writer is closed.
        """
        return self._submit(entries, False)

    def observe(self, told: Sequence[Observed]) -> Future[list[ObservedReply]]:
        """`feedback` for predictions that were answered elsewhere; feedback given later is committed after them."""
        return self._submit(told, True)

    def _submit(self, entries: Sequence[Any], observed: bool) -> Future[Any]:
        self._owner.check()
        future: Future[Any] = Future()
        with self._changed:
            if self._closing.is_set():
                raise NotReady("the traffic log's writer is closed; send the feedback to another replica")
            # A first submission is taken whatever its size: the server limits the size of a request, not the queue.
            if self._entries and self._entries + len(entries) > self._limits.feedback_capacity:
                self._refused["full"] += len(entries)
                raise Overloaded(f"{self._entries} feedback entries wait to be written; send it again later")
            self._feedback.append(_Submission(entries, future, observed))
            self._entries += len(entries)
            self._changed.notify()
        return future

    def counters(self) -> WriterCounters:
        """Totals and queues at this moment."""
        with self._changed:
            return WriterCounters(
                self._offered,
                self._committed,
                dict(self._dropped.reasons),
                self._written_feedback,
                dict(self._refused),
                self._commits,
                self._retries,
                len(self._records),
                self._bytes,
                self._entries,
                self._written_observed,
                "" if self._away is None else str(self._away),
            )

    def dropped(self) -> Mapping[tuple[str, str], int]:
        """Predictions dropped so far, by endpoint ("": of what is no record) and reason."""
        with self._changed:
            return dict(self._dropped.endpoints)

    def close(self) -> None:
        """Write the queues, then end the thread. Later offers are dropped; so are the queues if the store fails now."""
        with self._changed:
            self._closing.set()
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._records or self._feedback or self._closing.is_set()):
                    self._changed.wait()
                if not self._records and not self._feedback:
                    return
                self._changed.wait_for(self._ready, self._limits.delay_s)
                waiting = len(self._records)
                submissions = list(self._feedback)
                self._feedback.clear()
                self._entries = 0
            try:
                away = self._write_predictions(waiting)
                if away is None or isinstance(away, LogFull):  # labels go on for longer than predictions
                    self._write_feedback(submissions)
                else:
                    self._fail([s for s in submissions if s.future.set_running_or_notify_cancel()], "store", away)
                if away is not None:
                    self._wait_for_log(away)
            except Exception:
                # Nothing above should raise; an unexpected exception must not end the lane's only writer silently.
                logger.exception("traffic writer: unexpected fault; it goes on")
                for submission in submissions:
                    if not submission.future.done():
                        submission.future.set_exception(NotReady("the feedback could not be written; send it again"))

    def _ready(self) -> bool:
        return bool(self._feedback) or len(self._records) >= self._limits.batch or self._closing.is_set()

    def _write_predictions(self, count: int) -> NotReady | None:
        """Write the `count` oldest predictions; the error if the log cannot be reached, and then they stay in the queue."""
        singly = 0
        while count:
            with self._changed:
                records = list(islice(self._records, min(1 if singly else self._limits.batch, count)))
            reason = ""
            try:
                self._try(partial(self._log.append_predictions, records))
            except NotReady as error:
                return error
            except InvalidInput as error:
                if len(records) > 1:  # one bad record must not take its neighbours along
                    singly = len(records)
                    continue
                logger.error("traffic writer: a prediction was dropped: %s", error)
                reason = "invalid"
            except Exception:
                logger.exception("traffic writer: %d predictions were dropped", len(records))
                reason = "error"
            self._settle(len(records), reason)
            count -= len(records)
            singly = max(0, singly - len(records))
        if self._away:
            logger.warning("traffic writer: the traffic log is back")
            self._away = None
        return None

    def _settle(self, count: int, reason: str) -> None:
        """Remove the oldest predictions from the queue: they are written, or dropped for a reason."""
        with self._changed:
            records = [self._records.popleft() for _ in range(count)]
            self._bytes -= sum(map(len, records))
            if reason:
                self._dropped.add(reason, records)
            else:
                self._committed += count

    def _wait_for_log(self, error: NotReady) -> None:
        if self._closing.is_set():  # a shutdown does not wait for the store
            logger.error("traffic writer: %d predictions were dropped: %s", len(self._records), error)
            self._settle(len(self._records), _reason_of(error))
            return
        if type(self._away) is not type(error):  # logged once, not at every attempt
            logger.error("traffic writer: predictions wait in memory, up to %d: %s", self._limits.capacity, error)
        self._away = error
        with self._changed:
            self._changed.wait_for(lambda: self._feedback or self._closing.is_set(), LOG_AGAIN_S)

    def _write_feedback(self, submissions: list[_Submission]) -> None:
        wanted = [submission for submission in submissions if submission.future.set_running_or_notify_cancel()]
        group: list[_Submission] = []
        size = 0
        for submission in wanted:
            other = group and group[-1].observed != submission.observed
            if other or size + len(submission.entries) > self._limits.batch:
                self._commit_feedback(group)
                group, size = [], 0
            group.append(submission)
            size += len(submission.entries)
        self._commit_feedback(group)

    def _commit_feedback(self, submissions: list[_Submission]) -> None:
        entries = [entry for submission in submissions for entry in submission.entries]
        observed = bool(submissions) and submissions[0].observed
        try:
            replies = self._try(partial(self._append, entries, observed)) if entries else []
        except NotReady as error:
            logger.error("traffic writer: %d feedback entries failed: %s", len(entries), error)
            self._fail(submissions, _reason_of(error), error)
        except Exception as error:
            if len(submissions) > 1:  # one bad submission must not take the others along
                for submission in submissions:
                    self._commit_feedback([submission])
                return
            logger.exception("traffic writer: %d feedback entries failed", len(entries))
            self._fail(submissions, "error", error)
        else:
            with self._changed:
                if observed:
                    self._written_observed += len(entries)
                else:
                    self._written_feedback += len(entries)
            at = 0
            for part, future, _ in submissions:
                future.set_result(replies[at : at + len(part)])
                at += len(part)

    def _append(self, entries: Sequence[Any], observed: bool) -> list[Any]:
        now_ms = self._clock.wall_ms()
        if observed:
            return append_observed(self._log, entries, now_ms)
        return self._log.append_feedback(entries, now_ms)

    def _fail(self, submissions: list[_Submission], reason: str, error: Exception) -> None:
        with self._changed:
            self._refused[reason] += sum(len(submission.entries) for submission in submissions)
        for submission in submissions:
            submission.future.set_exception(error)

    def _try(self, commit: Callable[[], T]) -> T:
        """Commit, with a few tries while the store fails. When closing, once all tries of a commit failed, later ones fail at once."""
        if self._given_up is not None:
            raise self._given_up
        wait_s = self._limits.backoff_s
        for left in range(self._limits.tries - 1, -1, -1):
            try:
                result = commit()
            except LogFull:
                raise  # it lasts longer than all tries
            except NotReady as error:
                if not left:
                    self._given_up = error if self._closing.is_set() else None
                    raise
                with self._changed:
                    self._retries += 1
                self._closing.wait(wait_s)
                wait_s *= 2
            else:
                break
        with self._changed:
            self._commits += 1
        return result


def _reason_of(error: NotReady) -> str:
    return "reserve" if isinstance(error, LogFull) else "store"
