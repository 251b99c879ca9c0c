"""Pool of connections, which chooses the connection for a call.

One HTTP/2 connection always ends in the same lane, so a client has several to each target, and takes the one with the
fewest calls in progress, in turn if there is a tie. A connection that failed rests for a moment if there are others, and for
twice as long each time in a row, as does one whose calls nobody answers. The pool knows neither messages nor whether its
channels are sync or async.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from typing import Any

from pipeline.clock import Clock
from pipeline.errors import InvalidInput
from serving.client.options import Options
from serving.runtime.loopback import is_loopback

__all__ = ["Connection", "Pool", "check_targets"]

REST_S = 1.0
LONGEST_REST_S = 30.0
SILENT_S = 1.0
"""Time without any answer after which a connection with calls in progress is passed by: its server may hang."""


class Connection:
    """Connection to a target. `calls`: in progress; `rests_until`: monotonic seconds; `failures`: in a row; `waits_since`:
    monotonic seconds of its last answer, or of the first call in progress where that is later."""

    __slots__ = ("calls", "channel", "failures", "rests_until", "stub", "target", "waits_since")

    def __init__(self, target: str, channel: Any, stub: Any) -> None:
        self.target, self.channel, self.stub = target, channel, stub
        self.calls = self.failures = 0
        self.rests_until = self.waits_since = 0.0

    def passed_by(self, now: float) -> bool:
        """Whether others are taken before it: it rests, or nothing has been heard of it for a while."""
        return self.rests_until > now or (self.calls > 0 and now - self.waits_since > SILENT_S)


class Pool:
    """All connections of a client. Safe for several threads.

    Args:
        targets: as `check_targets` returns them.
        open: makes a channel to a target. stub: makes the methods of a channel.
    """

    def __init__(
        self,
        targets: Sequence[str],
        options: Options,
        open: Callable[[str], Any],
        stub: Callable[[Any], Any],
        clock: Clock,
    ) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._turn = 0
        # Targets alternate, so that a tie goes to another host.
        self.connections = [
            Connection(target, channel, stub(channel))
            for _ in range(options.connections)
            for target in targets
            for channel in [open(target)]
        ]

    def take(self, tried: Collection[Connection] = ()) -> Connection:
        """The connection for a call, until `give_back`; not one of `tried` or their targets, if there are others."""
        now = self._clock.monotonic()
        hosts = {connection.target for connection in tried}
        with self._lock:
            count = len(self.connections)
            self._turn = (self._turn + 1) % count
            turn = self._turn

            def cost(place: int) -> tuple[bool, bool, bool, int, int]:
                connection = self.connections[place]
                return (
                    connection.passed_by(now),
                    connection in tried,
                    connection.target in hosts,
                    connection.calls,
                    (place - turn) % count,
                )

            chosen = self.connections[min(range(count), key=cost)]
            if not chosen.calls:
                chosen.waits_since = now
            chosen.calls += 1
        return chosen

    def give_back(self, connection: Connection, failed: bool = False) -> None:
        """End a call; `failed`: there was no connection, no server that is ready, or none that answered in time."""
        now = self._clock.monotonic()
        with self._lock:
            connection.calls -= 1
            if not failed:
                connection.failures, connection.rests_until, connection.waits_since = 0, 0.0, now
            elif connection.rests_until <= now:  # else it is one of many calls that failed together
                rest_s = min(REST_S * 2.0**connection.failures, LONGEST_REST_S)
                connection.failures, connection.rests_until = connection.failures + 1, now + rest_s


def check_targets(targets: str | Sequence[str], options: Options) -> list[str]:
    """The targets as a list: `host:port` each; `unix:` and `dns:` names as gRPC knows them.

    Raises:
        InvalidInput: there is no target, or a token would go to another machine unencrypted.
    """
    named = [targets] if isinstance(targets, str) else list(targets)
    if not named or not all(named):
        raise InvalidInput("name at least one target, as host:port", "target")
    if options.token is not None and options.tls is None and not options.clear_token:
        for target in named:
            if not is_loopback(target):
                raise InvalidInput(
                    f"the token would go to {target} unencrypted: set tls, or clear_token where something else encrypts",
                    "token",
                )
    return named
