"""Plausibility of times that come from outside: no event of a click log is older than the year 2000 or of the future.

A time outside is a clock that is wrong or a unit that is not the one said, so it is refused and never corrected.
"""

from __future__ import annotations

import numpy as np

__all__ = ["UNITS_NS", "implausible", "unit_of", "written"]

EARLIEST_MS = 946_684_800_000
"""2000-01-01 UTC, Unix milliseconds."""
LATEST_AHEAD_MS = 5 * 60_000
"""How far clocks of two machines may be apart."""
UNITS_NS = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}


def implausible(time_ms: int, now_ms: int) -> str:
    """What is wrong with a time (Unix milliseconds), in words; empty: nothing.

    >>> implausible(0, 1_700_000_000_000), implausible(1_700_000_000_000, 1_700_000_000_000)
    ('before the year 2000', '')
    """
    if time_ms < EARLIEST_MS:
        return "before the year 2000"
    return "in the future" if time_ms > now_ms + LATEST_AHEAD_MS else ""


def unit_of(value: float, now_ms: int) -> str:
    """The unit in which a number since 1970 is a plausible time; empty: there is none.

    >>> unit_of(1.7e9, 1_800_000_000_000), unit_of(1.7e15, 1_800_000_000_000), unit_of(12.0, 1_800_000_000_000)
    ('s', 'us', '')
    """
    fitting = (u for u, ns in UNITS_NS.items() if not implausible(round(value * ns / 1_000_000), now_ms))
    return next(fitting, "")


def written(time_ms: int) -> str:
    """A time (Unix milliseconds) for people, of any year.

    >>> written(1_700_000_000_000)
    '2023-11-14 22:13:20 UTC'
    """
    return f"{np.datetime_as_string(np.datetime64(time_ms, 'ms'), 's').replace('T', ' ')} UTC"
