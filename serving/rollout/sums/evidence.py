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

__all__ = [
    "Limits",
    "Test",
    "Verdict",
    "attempt_error",
    "finite",
    "fraction_above",
    "fraction_worse",
    "mean_limits",
    "radius",
    "shown",
    "test_limits",
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


def mean_limits(mean: float, variance: float, values: int, blocks: int, error: float) -> Limits:
    """Limits of a mean, each one-sided at `error`; infinite below two values.

    Args:
        mean, variance: of `values` values, by value. blocks: that were merged into the values.

    Merged blocks have the limits of the same sequence, looked at less often: its variance is estimated from the values, and
    what it has gathered so far counts in blocks, so that no look spends another error because blocks were merged.
    """
    if values < 2:
        return Limits(mean, -math.inf, math.inf, blocks)
    wide = radius(blocks, error) * math.sqrt(variance * (blocks / values))
    return Limits(mean, mean - wide, mean + wide, blocks)


def test_limits(found: Limits, values: int, error: float, at_least: int) -> Test:
    """Test that a mean of `values` values is below 0, by its limits: HOLDS or BREACHED each at `error`, else OPEN.

    OPEN also before `at_least` blocks and before LEAST_VALUES values.
    """
    verdict = Verdict.OPEN
    if found.blocks >= at_least and values >= min(LEAST_VALUES, at_least):
        verdict = Verdict.HOLDS if found.high < 0 else Verdict.BREACHED if found.low > 0 else Verdict.OPEN
    return Test(verdict, found, error, at_least)


def fraction_above(hits: int, trials: int, most: float, error: float) -> Verdict:
    """Test that a fraction lies below `most`: BREACHED where Wilson's lower limit exceeds it, OPEN where only the estimate
    does.

    For counters of failed, late or slow requests, which need no labels. Without a trial it HOLDS: silence is no failure.
    """
    if trials <= 0 or hits <= most * trials:
        return Verdict.HOLDS
    return Verdict.BREACHED if _wilson(hits, trials, error)[0] > most else Verdict.OPEN


def fraction_worse(hits: int, trials: int, other_hits: int, other_trials: int, error: float) -> bool:
    """Whether a fraction is shown to be larger than another one: the lower limit of their difference is above 0.

    Newcombe's hybrid score interval (1998, method 10), which holds for few and for rare events.

    >>> fraction_worse(60, 1000, 8, 1000, 0.001), fraction_worse(60, 1000, 55, 1000, 0.001)
    (True, False)
    """
    if trials <= 0 or other_trials <= 0:
        return False
    p, q = hits / trials, other_hits / other_trials
    low, high = _wilson(hits, trials, error)[0], _wilson(other_hits, other_trials, error)[1]
    return p - q > math.hypot(p - low, high - q)


def _wilson(hits: int, trials: int, error: float) -> tuple[float, float]:
    """Wilson's limits of a fraction, each one-sided at `error`."""
    z = math.sqrt(-2.0 * math.log(min(2.0 * error, 0.5)))  # above the normal quantile (Chernoff), on the safe side
    p = hits / trials
    centre, spread = p + z * z / (2 * trials), 1 + z * z / trials
    wide = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    return (centre - wide) / spread, (centre + wide) / spread


def finite(value: float) -> float | None:
    """The value as a plain number of ten digits; None for NaN and infinity, which JSON does not have.

    Beyond ten digits a figure depends on the order in which blocks were added up.
    """
    return float(f"{value:.10g}") if math.isfinite(value) else None


def shown(value: float | None, digits: int = 4) -> str:
    """A signed figure in a message; "unknown" where there is none.

    >>> shown(0.02), shown(-0.00012, 5), shown(None), shown(math.nan)
    ('+0.0200', '-0.00012', 'unknown', 'unknown')
    """
    return f"{value:+.{digits}f}" if value is not None and math.isfinite(value) else "unknown"
