"""Bound on a difference of LogLoss: nats per row, or a percentage of the entropy of the click rate.

The entropy is the LogLoss of a constant prediction, so a percentage of it asks for the same at any click rate; a number of nats
that is strict where every sixth row is clicked allows a constant prediction where one of a thousand is.
"""

from __future__ import annotations

import math
import re
from typing import Annotated

from pydantic import BeforeValidator

__all__ = ["VACUOUS_FRACTION", "LossBound", "entropy", "nats"]

VACUOUS_FRACTION = 0.1
"""Of the entropy: a bound from which on hardly any candidate is worse."""
_PERCENT = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*%\s*")


def _checked(value: object) -> object:
    if isinstance(value, str):
        found = _PERCENT.fullmatch(value)
        if found is None or not 0 <= float(found[1]) <= 100:
            raise ValueError(
                f'{value!r} is neither a number of nats per row nor a percentage of the entropy such as "0.5%"'
            )
        return f"{float(found[1]):g}%"
    return value


LossBound = Annotated[float | str, BeforeValidator(_checked)]


def entropy(clicks: float, rows: float) -> float:
    """Entropy of a click rate, nats per row; 0 without rows.

    >>> round(entropy(160, 1000), 3), round(entropy(1, 1000), 4)
    (0.44, 0.0079)
    """
    rate = clicks / rows if rows > 0 else 0.0
    return -sum(p * math.log(p) for p in (rate, 1.0 - rate) if p > 0)


def nats(bound: float | str, clicks: float, rows: float) -> float:
    """A bound in nats per row, for traffic with so many clicks and rows.

    >>> nats(0.002, 1, 1000), round(nats("0.5%", 160, 1000), 5)
    (0.002, 0.0022)
    """
    return float(bound[:-1]) / 100.0 * entropy(clicks, rows) if isinstance(bound, str) else float(bound)
