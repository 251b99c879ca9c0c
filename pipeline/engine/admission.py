"""Admission control: an event that is expected to miss its deadline in the queue is refused, from measured service times.

The expected wait is Little's law on the measured service: the work that is queued, over the rate at which the workers
do it (`ServiceTime`), times the ratio of measured to expected waits. An event is refused when wait and own work exceed
`BURST_FRACTION` of the time to its deadline. A standing queue, one that has not been empty for `INTERVAL_S`, is overload
and not a burst: then the limit is `STANDING_FRACTION`, so that admitted events finish well before their deadlines. The
sign of overload, a standing queue and not a long one, and the interval are from CoDel (Nichols and Jacobson, "Controlling
Queue Delay", ACM Queue 2012); its use for requests, by the time when the queue was last empty, from Maurer, "Fail at
Scale", ACM Queue 2015. Their fixed target of 5 ms is not used: where callers give deadlines, a queue is too long when it
costs an answer, and a closed loop of 32 callers is no overload.

No event is refused while the queue is empty, so a wrong estimate cannot lock callers out: the next event is admitted and
measured. The exception is an event with less time left than recent answers took, as when requests have waited long before
the engine; that measurement decays within seconds, so it cannot lock callers out either. This file takes no lock: the
engine calls it under its own, except `hopeless`, which is safe without.
"""

from __future__ import annotations

import math

__all__ = ["INTERVAL_S", "Admission", "ServiceTime"]

INTERVAL_S = 0.1
BURST_FRACTION = 0.8
STANDING_FRACTION = 0.5
TELLING_SAMPLES = 4
RETRY_S = (0.01, 10.0)
DECAY_FACTOR = 0.95
NEW_FRACTION = 0.05
BUDGET_DECAY_FRACTION = 0.01
LONGEST_BUDGET_S = 1e6
STRETCH_FACTORS = (0.25, 4.0)
MARGIN_FACTOR = 2.0
HALF_LIFE_S = 1.0


class ServiceTime:
    """Service time of one worker per event and per row in seconds: least squares over past executions, decaying.

    An execution of k events with r rows in all took `k * per_event + r * per_row`. Where all events are of one size
    the two cannot be separated, and all is counted as `per_event`: a larger event is then estimated too low, which costs
    little, rather than too high, which would keep it out.

    >>> service = ServiceTime()
    >>> for rows in (10, 100, 10, 100):
    ...     service.executed(1, rows, 0.001 + rows * 1e-5)
    >>> round(service.per_event, 6), round(service.per_row, 8)
    (0.001, 1e-05)
    """

    __slots__ = ("_ee", "_er", "_es", "_rr", "_rs", "per_event", "per_row")

    def __init__(self) -> None:
        self._ee = self._er = self._rr = self._es = self._rs = 0.0
        self.per_event = 0.0
        self.per_row = 0.0

    def executed(self, events: int, rows: int, seconds: float) -> None:
        """Add one execution."""
        self._ee = ee = self._ee * DECAY_FACTOR + events * events
        self._er = er = self._er * DECAY_FACTOR + events * rows
        self._rr = rr = self._rr * DECAY_FACTOR + rows * rows
        self._es = es = self._es * DECAY_FACTOR + events * seconds
        self._rs = rs = self._rs * DECAY_FACTOR + rows * seconds
        determinant = ee * rr - er * er
        if determinant > 1e-3 * ee * rr:
            per_event = (es * rr - rs * er) / determinant
            per_row = (rs * ee - es * er) / determinant
            if per_event >= 0 and per_row >= 0:
                self.per_event, self.per_row = per_event, per_row
                return
            if per_event < 0:
                self.per_event, self.per_row = 0.0, rs / rr
                return
        self.per_event, self.per_row = es / ee, 0.0


class Admission:
    """Admission control of one engine.

    Args:
        runs: of the plan; each is measured separately, and an event goes through all.
        workers: threads that share the work.
    """

    def __init__(self, runs: int, workers: int) -> None:
        self._services = [ServiceTime() for _ in range(runs)]
        self._workers = workers
        self._stretch = 1.0
        self._filled = math.inf
        self._refused = -math.inf
        self._budget = 0.0
        self._takes = 0.0
        self._answered = -math.inf
        self.per_event = 0.0
        self.per_row = 0.0

    def executed(self, run: int, events: int, rows: int, seconds: float) -> None:
        """Add the execution of a batch of a run."""
        service = self._services[run]
        self.per_event -= service.per_event
        self.per_row -= service.per_row
        service.executed(events, rows, seconds)
        self.per_event += service.per_event
        self.per_row += service.per_row

    def filled(self, now: float, deadline: float) -> None:
        """An event with this deadline enters the empty queue."""
        self._filled = now
        self._allow(deadline - now)

    def emptied(self) -> None:
        """The queue is empty."""
        self._filled = math.inf

    def waited(self, estimate: float, seconds: float) -> None:
        """An event left the queue for a worker after `seconds`; `estimate` is the result of `admit` when it came."""
        if estimate > 0:
            found = min(max(seconds / estimate, STRETCH_FACTORS[0]), STRETCH_FACTORS[1])
            self._stretch += (found - self._stretch) * NEW_FRACTION

    def wait(self, events: int, rows: int) -> float:
        """Expected wait in seconds of an event behind `events` others with `rows` rows."""
        return self._work(events, rows) * self._stretch

    def _work(self, events: int, rows: int) -> float:
        return (events * self.per_event + rows * self.per_row) / self._workers

    def standing(self, now: float) -> bool:
        """Whether the queue is long because of overload rather than of a burst."""
        return now - self._filled > INTERVAL_S or now - self._refused < INTERVAL_S

    def admit(self, now: float, deadline: float, events: int, rows: int, own_rows: int) -> tuple[bool, float]:
        """Whether an event is admitted, and the seconds of work before it (0: the queue is too short to learn from).

        Args:
            deadline: of the event.
            events, rows: ahead of it.
            own_rows: of the event.
        """
        left = deadline - now
        self._allow(left)
        if not events:
            return True, 0.0
        work = self._work(events, rows)
        wait = work * self._stretch
        service = self.per_event + own_rows * self.per_row
        if wait + service <= left * (STANDING_FRACTION if self.standing(now) else BURST_FRACTION):
            return True, work if events >= TELLING_SAMPLES * self._workers else 0.0
        self._refused = now
        return False, work

    def _allow(self, left: float) -> None:
        if left > self._budget:
            self._budget = min(left, LONGEST_BUDGET_S)
        else:
            self._budget += (left - self._budget) * BUDGET_DECAY_FRACTION

    def answered(self, now: float, seconds: float) -> None:
        """Add the time that an answer took for its caller, without waiting in the queue."""
        self._takes += (seconds - self._takes) * NEW_FRACTION
        self._answered = now

    def hopeless(self, now: float, left: float, events: int, rows: int) -> bool:
        """Whether any event would be refused now, so that the request need not be read.

        True when even the longest recent budget, or `left`, is too short.
        """
        wait = self.wait(events, rows)
        if events and wait > self._budget * STANDING_FRACTION and self.standing(now):
            self._refused = now
            return True
        takes = self._takes * math.exp2((self._answered - now) / HALF_LIFE_S)
        return left < wait + MARGIN_FACTOR * takes

    def retry_after(self, events: int, rows: int) -> float:
        """Seconds after which it makes sense to come again."""
        return min(max(self.wait(events, rows), RETRY_S[0]), RETRY_S[1])
