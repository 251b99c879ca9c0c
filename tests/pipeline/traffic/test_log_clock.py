"""Clock of a process by the log's: it agrees with the log, and a jump counts once it has lasted."""

from __future__ import annotations

from typing import Any

from clocks import HandClock

from pipeline.errors import NotReady
from pipeline.traffic.clock import BELIEVED_S, LogClock

START = 1_700_000_000_000


class Source:
    """Log of which only the time is asked."""

    def __init__(self, clock: HandClock) -> None:
        self.clock, self.ahead_ms, self.away = clock, 0, False

    def now_ms(self) -> int:
        if self.away:
            raise NotReady("away")
        return START + round(1000 * self.clock.now) + self.ahead_ms


def clocks() -> tuple[HandClock, Source, LogClock]:
    hand = HandClock(100.0)
    source: Any = Source(hand)
    return hand, source, LogClock(source, hand)


def test_it_goes_on_from_the_logs_time_and_follows_its_drift() -> None:
    hand, source, clock = clocks()
    assert clock.wall_ms() == START + 100_000
    hand.now += 5
    assert clock.wall_ms() == source.now_ms()
    source.ahead_ms = 40
    clock.look()
    assert clock.wall_ms() == source.now_ms()


def test_a_jump_of_some_seconds_is_passed_by() -> None:
    hand, source, clock = clocks()
    for ahead_ms in (86_400_000, -86_400_000):
        source.ahead_ms = ahead_ms
        for _ in range(int(BELIEVED_S) - 1):
            clock.look()
            hand.now += 1
        assert clock.wall_ms() == START + round(1000 * hand.now)
        source.ahead_ms = 0
        clock.look()
        assert clock.wall_ms() == source.now_ms()


def test_a_jump_that_lasts_is_believed() -> None:
    hand, source, clock = clocks()
    source.ahead_ms = -3_600_000
    clock.look()
    hand.now += BELIEVED_S
    clock.look()
    assert clock.wall_ms() == source.now_ms()


def test_a_thread_follows_it_while_the_log_comes_and_goes(monkeypatch: Any) -> None:
    monkeypatch.setattr("pipeline.traffic.clock.LOOK_EVERY_S", 0.001)
    hand, source, clock = clocks()
    source.away = True
    clock.start()
    source.ahead_ms, source.away = 1500, False
    for _ in range(10_000):
        if clock.wall_ms() == source.now_ms():
            break
        clock._stop.wait(0.001)
    clock.close()
    assert clock.wall_ms() == source.now_ms()
    assert clock.monotonic() == hand.now
