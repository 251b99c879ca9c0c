"""Circuit breaker: when it opens, which request is the trial while it is half open, how often it probes."""

from __future__ import annotations

import random

from clocks import HandClock

from pipeline.embedding.redis.breaker import CircuitBreaker


def make(clock: HandClock, **settings: float) -> CircuitBreaker:
    return CircuitBreaker(clock, random.Random(0), threshold=3, pause=1.0, longest_pause=4.0, **settings)  # type: ignore[arg-type]


def test_failures_in_a_row_open_it_and_others_do_not() -> None:
    breaker = make(HandClock(100.0))
    for _ in range(5):
        breaker.failed()
        breaker.failed()
        breaker.succeeded()
    assert breaker.state == "closed"
    for _ in range(3):
        assert breaker.allow()
        breaker.failed()
    assert (breaker.state, breaker.allow(), breaker.opened) == ("open", False, 1)


def test_one_request_tries_after_a_probe_that_went_well() -> None:
    clock = HandClock(100.0)
    breaker = make(clock)
    for _ in range(3):
        breaker.failed()
    assert not breaker.due()
    clock.now += 1.0
    assert breaker.due()
    breaker.probed(True)
    assert [breaker.allow() for _ in range(4)] == [True, False, False, False]
    breaker.unused()
    assert [breaker.allow() for _ in range(2)] == [True, False]
    breaker.succeeded()
    assert breaker.state == "closed"
    assert breaker.allow()


def test_a_failed_trial_opens_it_again() -> None:
    clock = HandClock(100.0)
    breaker = make(clock)
    for _ in range(3):
        breaker.failed()
    clock.now += 1.0
    breaker.probed(True)
    assert breaker.allow()
    breaker.failed()
    assert (breaker.state, breaker.opened, breaker.due()) == ("open", 2, False)


def test_pauses_grow_to_their_limit_with_jitter() -> None:
    clock = HandClock(100.0)
    breaker = make(clock)
    for _ in range(3):
        breaker.failed()
    pauses = []
    for _ in range(6):
        start = clock.now
        while not breaker.due():
            clock.now += 0.01
        pauses.append(clock.now - start)
        breaker.probed(False)
    for pause, longest in zip(pauses, (1, 2, 4, 4, 4, 4), strict=True):
        assert longest / 2 - 0.02 <= pause <= longest + 0.02
    assert len({round(pause, 1) for pause in pauses[2:]}) > 1
