"""Rate limits per client: a token bucket each, for a bounded number of clients."""

from __future__ import annotations

import ipaddress
import threading
from collections import OrderedDict

from pipeline.clock import Clock

__all__ = ["ClientLimit", "client_of_address"]


class ClientLimit:
    """A token bucket per client that holds `burst` and gains `rate` per second; the client not seen longest is dropped.

    A dropped client starts again with a full bucket; an attacker with `clients` identities has that many buckets anyway.

    >>> from pipeline.clock import SystemClock
    >>> limit = ClientLimit(1.0, 2.0, SystemClock())
    >>> limit.take("ann"), limit.take("ann"), limit.take("ann") > 0
    (0.0, 0.0, True)
    """

    def __init__(self, rate: float, burst: float, clock: Clock, clients: int = 10_000) -> None:
        self._rate = rate
        self._burst = burst
        self._now = clock.monotonic
        self._clients = clients
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, client: str, cost: float = 1.0) -> float:
        """Take `cost` from the client's bucket; returns 0, or the seconds until it holds 1 when it was refused.

        A bucket may go below zero: a large request passes like a small one and is followed by a longer pause.
        """
        now = self._now()
        with self._lock:
            level = self._level(client, now)
            if level < 1:
                return (1 - level) / self._rate
            self._put(client, level - cost, now)
            return 0.0

    def wait(self, client: str) -> float:
        """The result of `take`, without taking anything."""
        with self._lock:
            level = self._level(client, self._now())
        return 0.0 if level >= 1 else (1 - level) / self._rate

    def _level(self, client: str, now: float) -> float:
        level, seen = self._levels.get(client, (self._burst, now))
        return min(self._burst, level + (now - seen) * self._rate)

    def _put(self, client: str, level: float, now: float) -> None:
        self._levels[client] = (level, now)
        self._levels.move_to_end(client)
        if len(self._levels) > self._clients:
            self._levels.popitem(last=False)


def client_of_address(address: str) -> str:
    """Client key of an IP address: of IPv6 its first 64 bits, since a household has 2^64 addresses.

    >>> client_of_address("192.0.2.7"), client_of_address("2001:db8:1:2:3:4:5:6"), client_of_address("::ffff:192.0.2.7")
    ('192.0.2.7', '2001:db8:1:2::/64', '192.0.2.7')
    """
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, 64), strict=False))
