"""Count of what is in progress, of each client and in all, with a limit on both.

A rate says how often a client may begin; this says how much of it may be unfinished: calls, open sockets, streams.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import Overloaded

__all__ = ["InProgress"]

RETRY_S = 1.0


class InProgress:
    """Bounded count. For one event loop.

    >>> sockets = InProgress("sockets", most=3, most_each=2)
    >>> with sockets.one("ann"), sockets.one("ann"), sockets.one("bob"):
    ...     sockets.total
    3

    Args:
        what: is counted, for the message.
        most: of all clients.
        most_each: of one client.
    """

    def __init__(self, what: str, most: int, most_each: int) -> None:
        self._what, self._most, self._most_each = what, most, most_each
        self._each: Counter[str] = Counter()
        self.total = 0

    @contextmanager
    def one(self, client: str) -> Iterator[None]:
        """Count one while the context lasts.

        Raises:
            Overloaded: there are too many already.
        """
        if self.total >= self._most:
            raise Overloaded(f"{self.total} {self._what} are in progress, the most at once; try again", RETRY_S)
        if self._each[client] >= self._most_each:
            raise Overloaded(
                f"{self._each[client]} {self._what} of this caller are in progress, the most at once; try again",
                RETRY_S,
            )
        self.total += 1
        self._each[client] += 1
        try:
            yield
        finally:
            self.total -= 1
            self._each[client] -= 1
            if not self._each[client]:
                del self._each[client]
