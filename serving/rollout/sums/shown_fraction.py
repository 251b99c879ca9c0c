"""Shown fraction: whether callers report the answers of both arms as shown alike.

Only what was shown has labels. Where the reports of one arm's answers get lost, its labels are those of the answers that are left,
and a rollout that looked at them alone would be judged on a choice that nobody made. So answered and shown requests of a stay are
counted by group of keys and arm (`outcome`). The difference of the two fractions has the error of its spread between groups, and at
least that of independent requests, and is tested at all looks of a stay with one error, as the sample ratio is (`sample_ratio`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from serving.rollout.sums.outcome import GROUPS, OutcomeSums, mixture_radius
from serving.rollout.sums.sample_ratio import ERROR_FRACTION, LEAST_DEVIATION

__all__ = ["ShownFraction"]

_LEAST_REQUESTS = 100.0
_DOUBTFUL_DEVIATIONS = 2.5
_MIXTURE_FRACTION = 0.2


@dataclass(frozen=True, slots=True)
class ShownFraction:
    """Answered and shown requests of a stay, of stable and of the candidate.

    Args:
        mismatch: the fractions are shown to differ. doubtful: they look so, which one look may do by chance.
    """

    answered: tuple[int, int]
    shown: tuple[int, int]
    mismatch: bool = False
    doubtful: bool = False

    @classmethod
    def of(cls, sums: OutcomeSums) -> ShownFraction:
        """Of the sums of a stay."""
        answered, shown = sums.answered().astype(np.float64), sums.shown().astype(np.float64)
        of_all, of_shown = answered.sum(axis=0), shown.sum(axis=0)
        counts = (int(of_all[0]), int(of_all[1])), (int(of_shown[0]), int(of_shown[1]))
        both = float(of_shown.sum() / max(of_all.sum(), 1.0))
        if of_all.min() < _LEAST_REQUESTS or not 0 < both < 1:
            return cls(*counts)
        fractions = of_shown / of_all
        apart = (shown - fractions * answered) / of_all
        spread = apart[:, 1] - apart[:, 0]
        independent = both * (1.0 - both) * float((1.0 / of_all).sum())
        variance = max(GROUPS / (GROUPS - 1) * float(spread @ spread), independent)
        deviation = abs(float(fractions[1] - fractions[0]))
        if deviation < LEAST_DEVIATION * both:
            return cls(*counts)
        wide = mixture_radius(1.0 / variance, _MIXTURE_FRACTION * both, ERROR_FRACTION / 2)
        return cls(*counts, deviation > wide, deviation > _DOUBTFUL_DEVIATIONS * math.sqrt(variance))

    def __str__(self) -> str:
        parts = [
            f"{shown:,} of {answered:,} answers of {arm} ({shown / max(1, answered):.1%})"
            for arm, answered, shown in zip(("stable", "the candidate"), self.answered, self.shown, strict=True)
        ]
        return f"{parts[1]} were reported as shown, and {parts[0]}"
