"""Clock of a process by the traffic log's own time, so that all processes and machines that share a log agree on the time.

Its first reading is the log's; from there this process's monotonic clock goes on, and a thread compares the two once a
second. So asking costs nothing, a wall clock that is set has no part in it, and a log that is away does not matter. Where the
log's clock itself jumps, the new time counts once it has lasted a minute: a clock that is wrong for some seconds would
otherwise expire labels and date predictions into the future.
"""

from __future__ import annotations

import logging
import threading
from contextlib import suppress

from pipeline.clock import Clock, SystemClock
from pipeline.errors import NotReady
from pipeline.traffic.log import TrafficLog

__all__ = ["LogClock"]

LOOK_EVERY_S = 1.0
JUMP_MS = 2000
"""Difference beyond which the log's clock has been set; below it the two clocks drift apart."""
BELIEVED_S = 60.0
"""How long a jump must last before it counts."""

log = logging.getLogger(__name__)


class LogClock:
    """A `Clock`; `start` makes it follow the log, until `close`.

    Args:
        source: whose `now_ms` counts.
        clock: its monotonic time goes on in between.

    Raises:
        NotReady: the log cannot be reached now.
    """

    def __init__(self, source: TrafficLog, clock: Clock | None = None) -> None:
        self._log = source
        self._clock = clock or SystemClock()
        self._zero_ms, self._doubted_ms, self._doubted_at = self._read(), 0, 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log-clock", daemon=True)

    def wall_ms(self) -> int:
        """Unix milliseconds by the log's clock."""
        return self._zero_ms + round(1000 * self._clock.monotonic())

    def monotonic(self) -> float:
        """Seconds that never go back."""
        return self._clock.monotonic()

    def start(self) -> LogClock:
        """Follow the log from now on."""
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop following it."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def look(self) -> None:
        """Compare with the log's clock once. Raises: NotReady."""
        zero_ms, now = self._read(), self._clock.monotonic()
        if abs(zero_ms - self._zero_ms) <= JUMP_MS:
            self._zero_ms, self._doubted_at = zero_ms, 0.0
        elif not self._doubted_at or abs(zero_ms - self._doubted_ms) > JUMP_MS:
            self._doubted_ms, self._doubted_at = zero_ms, now
            log.warning(
                "the clock has jumped by %.0f s; predictions and labels follow it once that has lasted %.0f s",
                (zero_ms - self._zero_ms) / 1000, BELIEVED_S,
            )  # fmt: skip
        elif now - self._doubted_at >= BELIEVED_S:
            self._zero_ms, self._doubted_at = zero_ms, 0.0

    def _read(self) -> int:
        """The log's time at monotonic time 0."""
        asked = self._clock.monotonic()
        now_ms = self._log.now_ms()
        return now_ms - round(500 * (asked + self._clock.monotonic()))

    def _run(self) -> None:
        while not self._stop.wait(LOOK_EVERY_S):
            with suppress(NotReady):
                self.look()
