"""Admission control, by simulation: a queue in front of workers of unknown speed, on a simulated clock."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engine.admission import INTERVAL_S, Admission, ServiceTime

PER_EVENT, PER_ROW = 0.0004, 0.000006  # one event of 100 rows: 1 ms


@dataclass
class Simulated:
    """Poisson arrivals at a rate for some seconds; what became of them."""

    workers: int = 1
    deadline: float = 0.1
    rows: tuple[int, ...] = (100,)
    at_the_door: bool = False
    contention: float = 1.0  # how much longer it takes until the worker is free than it measured
    now: float = 0.0
    waits: list[float] = field(default_factory=list)
    good: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    longest: int = 0

    def __post_init__(self) -> None:
        self.admission = Admission(1, self.workers)
        self.rng = np.random.default_rng(0)
        self.queue: list[tuple[float, int, float]] = []
        self.busy: list[float] = []

    def load(self, rate: float, seconds: float) -> Simulated:
        until = self.now + seconds
        arrival = self.now
        while (arrival := arrival + float(self.rng.exponential(1 / rate))) < until:
            self._work(arrival)
            self.now = arrival
            self._arrive(int(self.rng.choice(self.rows)))
        self._work(until)
        self.now = until
        return self

    def _arrive(self, rows: int) -> None:
        waiting = (len(self.queue), sum(n for _, n, _ in self.queue))
        if self.at_the_door and self.admission.hopeless(self.now, self.deadline, *waiting):
            self.refused.append(self.now)
            return
        if not self.queue:
            self.admission.filled(self.now, self.now + self.deadline)
            admitted, estimate = True, 0.0
        else:
            admitted, estimate = self.admission.admit(self.now, self.now + self.deadline, *waiting, rows)
        if not admitted:
            self.refused.append(self.now)
            return
        self.queue.append((self.now, rows, estimate))
        self.longest = max(self.longest, len(self.queue))
        self._start(self.now)

    def _work(self, until: float) -> None:
        while self.busy and self.busy[0] <= until:
            self._start(heapq.heappop(self.busy))

    def _start(self, now: float) -> None:
        while self.queue and len(self.busy) < self.workers:
            came, rows, estimate = self.queue.pop(0)
            if not self.queue:
                self.admission.emptied()
            if now >= came + self.deadline:
                continue
            self.admission.waited(estimate, now - came)
            service = (PER_EVENT + rows * PER_ROW) * float(self.rng.uniform(0.8, 1.2))
            self.admission.executed(0, 1, rows, service)
            service *= self.contention
            heapq.heappush(self.busy, now + service)
            self.waits.append(now - came + service)
            if now + service <= came + self.deadline:
                self.good.append(now + service)


@pytest.mark.parametrize("deadline", [0.02, 0.1, 1.0])
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(("at_the_door", "rows"), [(False, (100,)), (True, (100,)), (False, (1, 500))])
def test_three_times_the_capacity_costs_no_goodput(
    deadline: float, workers: int, at_the_door: bool, rows: tuple[int, ...]
) -> None:
    peak = workers / (PER_EVENT + np.mean(rows) * PER_ROW)
    run = Simulated(workers, deadline, rows, at_the_door).load(0.5 * peak, 2.0)
    assert not run.refused or (deadline == 0.02 and len(run.refused) < 0.02 * len(run.good))
    run.good.clear()
    run.load(3 * peak, 4.0)
    assert len(run.good) > 0.9 * peak * 4
    assert np.quantile(run.waits, 0.99) < deadline
    per_second = np.histogram(run.good, bins=4, range=(2.0, 6.0))[0]
    assert per_second.min() > 0.8 * peak  # it does not swing
    assert run.longest < 2 * deadline * peak
    run.refused.clear()
    run.load(0.5 * peak, 2.0)
    assert sum(at > 7.0 for at in run.refused) <= 0.01 * peak  # it is over when the load is


def test_waits_that_turn_out_longer_than_measured_work_are_allowed_for() -> None:
    """Workers that share cores or wait for each other are slower together than each by itself."""

    run = Simulated(deadline=0.1, contention=2.0).load(1500, 5.0)
    assert np.quantile(run.waits, 0.99) < 0.1
    assert len(run.good) > 0.9 * 500 * 5


def test_nothing_is_refused_while_the_queue_is_empty() -> None:
    admission = Admission(1, 1)
    admission.executed(0, 1, 100, 60.0)  # something took a minute
    assert admission.admit(0.0, 0.001, 0, 0, 100) == (True, 0.0)
    assert not admission.admit(0.0, 0.001, 1, 100, 100)[0]
    assert not admission.hopeless(0.0, 0.001, 0, 0)
    for _ in range(200):  # what is let in is measured, and it is forgotten
        admission.executed(0, 1, 100, 0.001)
    assert admission.admit(0.0, 0.01, 1, 100, 100)[0]


def test_less_time_than_answers_take_of_late_is_hopeless_until_that_is_forgotten() -> None:
    admission = Admission(1, 1)
    for _ in range(200):
        admission.answered(0.0, 0.1)
    assert admission.hopeless(0.0, 0.15, 0, 0)  # though nothing waits: it waited where nobody saw it
    assert not admission.hopeless(0.0, 0.25, 0, 0)
    assert not admission.hopeless(5.0, 0.15, 0, 0)  # nobody was answered since, so nobody knows
    for _ in range(200):
        admission.answered(5.0, 0.01)
    assert not admission.hopeless(5.0, 0.15, 0, 0)


def test_a_closed_loop_of_many_callers_is_no_overload() -> None:
    admission = Admission(1, 1)
    admission.executed(0, 1, 500, 0.0035)
    admission.filled(0.0, 10.0)
    assert admission.standing(1.0)  # 31 of 32 callers always wait
    assert admission.admit(1.0, 11.0, 31, 31 * 500, 500)[0]
    assert not admission.hopeless(1.0, 10.0, 31, 31 * 500)


def test_a_standing_queue_gets_half_of_the_time_that_a_burst_gets() -> None:
    admission = Admission(1, 1)
    admission.executed(0, 1, 0, 0.001)
    admission.filled(0.0, 0.1)
    assert admission.admit(0.5 * INTERVAL_S, 0.5 * INTERVAL_S + 0.1, 78, 0, 0)[0]
    assert not admission.admit(2 * INTERVAL_S, 2 * INTERVAL_S + 0.1, 78, 0, 0)[0]
    assert admission.admit(2 * INTERVAL_S, 2 * INTERVAL_S + 0.1, 48, 0, 0)[0]
    admission.emptied()
    assert admission.standing(2.5 * INTERVAL_S)  # somebody was refused just now
    assert not admission.standing(4 * INTERVAL_S)


@given(
    st.floats(1e-5, 1e-2),
    st.floats(1e-7, 1e-4),
    st.lists(st.tuples(st.integers(1, 32), st.integers(1, 1000)), min_size=20, max_size=40),
)
def test_the_cost_of_events_and_rows_is_told_apart(
    per_event: float, per_row: float, batches: list[tuple[int, int]]
) -> None:
    service = ServiceTime()
    for events, rows in batches:
        service.executed(events, events * rows, events * per_event + events * rows * per_row)
    assert service.per_event >= 0
    assert service.per_row >= 0
    sizes = {rows for _, rows in batches}
    if max(sizes) > 20 * min(sizes) and len(sizes) > 10:
        assert service.per_event == pytest.approx(per_event, rel=0.01, abs=per_row)
        assert service.per_row == pytest.approx(per_row, rel=0.01, abs=per_event / 1000)
    # Whatever it makes of them, what it has seen last it would have foreseen.
    if len(sizes) == 1:
        events, rows = batches[-1]
        estimate = events * service.per_event + events * rows * service.per_row
        assert estimate == pytest.approx(events * (per_event + rows * per_row))


def test_runs_of_a_plan_add_up() -> None:
    admission = Admission(2, 2)
    admission.executed(0, 1, 0, 0.002)
    admission.executed(1, 1, 0, 0.004)
    assert admission.wait(10, 0) == pytest.approx(0.03)
    assert admission.retry_after(10, 0) == pytest.approx(0.03)
    assert (admission.retry_after(0, 0), admission.retry_after(10**6, 0)) == (0.01, 10.0)
