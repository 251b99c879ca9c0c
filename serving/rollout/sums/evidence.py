"""Sequential tests on block sums: one-sided confidence limits that hold at every look, and verdicts from them.

Rows of one request are correlated, so the unit is a block: all requests of one interval of prediction time. The limits
are asymptotic confidence sequences (Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas 2024, "Time-uniform central limit
theory and asymptotic confidence sequences", Theorem 2.2 and its one-sided form): after enough blocks, the chance that a
limit is *ever* wrong is below its error, so any number of looks and any stopping time are allowed.

This file knows arrays of block sums only. `blocks` selects the blocks, `reconcile` acts on a verdict.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from pipeline.arrays import F64

__all__ = [
    "Limits",
    "Test",
    "Verdict",
    "attempt_error",
    "finite",
    "fraction_above",
    "limits",
    "radius",
    "shown",
    "test_below",
    "test_merged",
    "tuned_rho",
]


TUNED_BLOCKS = 200
"""Number of blocks at which the limits are tightest; within a factor of five of it they lose less than a tenth."""
LEAST_VALUES = 20
"""Fewest values, blocks or merged ones, from which a variance is estimated."""
_FAR_BLOCKS = 1 << 22


class Verdict(StrEnum):
    """Verdict on a statement."""

    HOLDS = "holds"
    BREACHED = "breached"
    OPEN = "inconclusive"


@dataclass(frozen=True, slots=True)
class Limits:
    """Mean of `blocks` values with a lower and an upper limit; the chance that a limit is ever wrong is at most its error."""

    mean: float
    low: float
    high: float
    blocks: int


@dataclass(frozen=True, slots=True)
class Test:
    """Verdict on "the mean is below 0", each side at `error`; OPEN before `at_least` blocks."""

    verdict: Verdict
    limits: Limits
    error: float
    at_least: int

    def missing(self) -> int | None:
        """Number of further blocks needed at the present mean and spread; None where no number is enough."""
        found, lacking = self.limits, self.at_least - self.limits.blocks
        if self.verdict is Verdict.HOLDS:
            return 0
        if lacking > 0:
            return lacking
        if not math.isfinite(found.high - found.mean):
            return None
        deviation = (found.high - found.mean) / radius(found.blocks, self.error)
        if found.mean >= 0 or radius(_FAR_BLOCKS, self.error) * deviation > -found.mean:
            return None
        low, high = found.blocks, _FAR_BLOCKS
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if radius(middle, self.error) * deviation < -found.mean else (middle, high)
        return high - found.blocks


def attempt_error(confidence: float, attempt: int) -> float:
    """Error of attempt j = 1, 2, ...: `alpha / (j (j + 1))`; all attempts together spend alpha."""
    return (1.0 - confidence) / (attempt * (attempt + 1))


def tuned_rho(error: float, blocks: int = TUNED_BLOCKS) -> float:
    """The rho that makes the one-sided radius about the smallest after `blocks` (same paper, Appendix B.2, at 2 alpha)."""
    wide = -2.0 * math.log(min(2.0 * error, 0.5))
    return math.sqrt((wide + math.log(wide + 1.0)) / blocks)


@lru_cache(maxsize=1 << 16)
def radius(blocks: int, error: float) -> float:
    """One-sided radius after `blocks`, in standard deviations of one block.

    >>> round(radius(200, 0.0125) * 200**0.5, 2)
    3.28
    """
    spread = blocks * tuned_rho(error) ** 2
    return math.sqrt(2.0 * (spread + 1.0) / (blocks * spread) * math.log1p(math.sqrt(spread + 1.0) / (2.0 * error)))


def limits(values: F64, error: float, blocks: int | None = None) -> Limits:
    """Limits of the mean of float64 `[t]` block values, each one-sided at `error`; infinite below two values.

    Args:
        blocks: number of blocks that were merged into the values; None: none were.

    Merged blocks have the limits of the same sequence, looked at less often: its variance is estimated from the values, and
    what it has gathered so far counts in blocks, so that no look spends another error because blocks were merged.
    """
    t = len(values)
    gathered = t if blocks is None else blocks
    if t < 2:
        return Limits(float(values[0]) if t else math.nan, -math.inf, math.inf, gathered)
    mean = float(values.sum()) / t
    apart = values - mean
    wide = radius(gathered, error) * math.sqrt(float(apart @ apart) / (t - 1) * (gathered / t))
    return Limits(mean, mean - wide, mean + wide, gathered)


def test_below(values: F64, error: float, at_least: int) -> Test:
    """Test that the mean of block values `[t]` is below 0: HOLDS or BREACHED each at `error`, else OPEN.

    Before `at_least` blocks the verdict is OPEN.
    """
    return test_merged(values, error, at_least, len(values))


def test_merged(values: F64, error: float, at_least: int, blocks: int) -> Test:
    """As `test_below`, of values `[t]` that `blocks` blocks were merged into; OPEN also before LEAST_VALUES values."""
    found = limits(values, error, blocks)
    verdict = Verdict.OPEN
    if found.blocks >= at_least and len(values) >= min(LEAST_VALUES, at_least):
        verdict = Verdict.HOLDS if found.high < 0 else Verdict.BREACHED if found.low > 0 else Verdict.OPEN
    return Test(verdict, found, error, at_least)


def fraction_above(hits: int, trials: int, most: float, error: float) -> Verdict:
    """Test that a fraction lies below `most`: BREACHED where Wilson's lower limit exceeds it, OPEN where only the estimate
    does.

    For counters of failed, late or slow requests, which need no labels. Without a trial it HOLDS: silence is no failure.
    """
    if trials <= 0 or hits <= most * trials:
        return Verdict.HOLDS
    z = math.sqrt(-2.0 * math.log(min(2.0 * error, 0.5)))  # above the normal quantile (Chernoff), on the safe side
    p = hits / trials
    centre = p + z * z / (2 * trials)
    wide = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    return Verdict.BREACHED if (centre - wide) / (1 + z * z / trials) > most else Verdict.OPEN


def finite(value: float) -> float | None:
    """The value as a plain number; None for NaN and infinity, which JSON does not have."""
    return float(value) if math.isfinite(value) else None


def shown(value: float | None, digits: int = 4) -> str:
    """A signed figure in a message; "unknown" where there is none.

    >>> shown(0.02), shown(-0.00012, 5), shown(None), shown(math.nan)
    ('+0.0200', '-0.00012', 'unknown', 'unknown')
    """
    return f"{value:+.{digits}f}" if value is not None and math.isfinite(value) else "unknown"
