"""Fixed scale of the sums of evidence: they are integers, so that they add, subtract and merge exactly, in any order.

One row of a probability or a label is at most UNITS, so a line holds the sums of 2^32 rows with room to spare; `checked`
refuses more rather than let a sum wrap around. Rounding a score to 1 / UNITS moves it by less than float32 does from 1/128 on.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.arrays import I64, Array
from pipeline.errors import InvalidInput

__all__ = ["AUC_UNITS", "MOST_UNITS", "NAT_UNITS", "SQUARE_UNITS", "UNITS", "checked", "fixed"]

UNITS = 1 << 30
"""Of a probability or a label."""
SQUARE_UNITS = 1 << 16
"""Of the square of a request's clicks, which may be millions."""
NAT_UNITS = 1 << 26
"""Of LogLoss, whose rows are at most 17 nats."""
AUC_UNITS = 1 << 40
"""Of a difference of AUC, one per block."""
MOST_UNITS = 1 << 62
"""Largest sum; the sum of any two fits an int64."""


def fixed(values: npt.ArrayLike, unit: int) -> I64:
    """Numbers as whole multiples of 1 / unit: `[n]` -> int64 `[n]`.

    >>> fixed([0.5, 1.0], 4).tolist()
    [2, 4]
    """
    found: I64 = np.rint(np.asarray(values, np.float64) * unit).astype(np.int64)
    return found


def checked(sums: Array) -> None:
    """Check that sums are far from wrapping around.

    Raises:
        InvalidInput: they are not.
    """
    if sums.size and max(int(sums.max()), -int(sums.min())) > MOST_UNITS:
        raise InvalidInput("a block has more labelled rows than its sums can hold; shorten block", "analysis.block")
