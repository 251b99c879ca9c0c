"""Sample ratio: whether the requests of each arm that were shown are the share that the split of the keys gives it.

The shown requests of a stay are counted by group of keys and arm (`outcome`). Keys are split at random, so that a group with r
requests is expected to have `share * r` of them on the candidate, and the spread between groups is the error: one busy key makes
it wide and is no mismatch, while requests as units would take it for one. The deviation at repeated looks has independent
increments, so Robbins' normal mixture gives one error over all looks of a stay, in the place of the sequential multinomial test
of Lindon and Malek (2022, "Anytime-valid inference for multinomial count data", arXiv 2011.03567), whose units would have to be
independent.

A deviation that is small against the share is shown at scale, and harms nobody: it has to be LEAST_DEVIATION of the share as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from serving.rollout.sums.outcome import GROUPS, OutcomeSums, mixture_radius

__all__ = ["LEAST_DEVIATION", "SampleRatio"]

LEAST_DEVIATION = 0.05
ERROR_FRACTION = 0.001
"""Chance that a stay of a healthy rollout is ever taken for a mismatch."""
_LEAST_GROUPS = 8.0
"""Least information of the groups, `(sum r)^2 / sum r^2`: with less, a few keys are all there is."""
_LEAST_EXPECTED_REQUESTS = 100.0
_DOUBTFUL_DEVIATIONS = 2.5
_MIXTURE_FRACTION = 0.2


@dataclass(frozen=True, slots=True)
class SampleRatio:
    """Shown requests of a stay.

    Args:
        candidate, total: that the candidate answered, and that both did.
        share: of all that the split of the keys gives the candidate.
        mismatch: shown to be another share. doubtful: it looks like another one, which one look may do by chance.
    """

    candidate: int
    total: int
    share: float
    mismatch: bool = False
    doubtful: bool = False

    @classmethod
    def of(cls, sums: OutcomeSums, share: float) -> SampleRatio:
        """Of the sums of a stay. `share`: that the split of the keys gives the candidate, 0..1."""
        requests = sums.shown().astype(np.float64)
        shown, groups = requests.sum(axis=0), requests.sum(axis=1)
        total, candidate = float(groups.sum()), float(shown[1])
        found = cls(int(candidate), int(total), share)
        if not 0 < share < 1 or min(share, 1 - share) * total < _LEAST_EXPECTED_REQUESTS:
            return found
        if total * total < _LEAST_GROUPS * float(groups @ groups):
            return found
        apart = (requests[:, 1] - share * groups) / total
        deviation, variance = float(apart.sum()), GROUPS / (GROUPS - 1) * float(apart @ apart)
        smaller = min(share, 1.0 - share)
        wide = (
            mixture_radius(1.0 / variance, _MIXTURE_FRACTION * smaller, ERROR_FRACTION / 2)
            if variance > 0
            else math.inf
        )
        much = abs(deviation) > LEAST_DEVIATION * smaller
        doubtful = much and abs(deviation) > _DOUBTFUL_DEVIATIONS * math.sqrt(variance)
        return cls(int(candidate), int(total), share, much and abs(deviation) > wide, doubtful)

    def __str__(self) -> str:
        expected = self.share * self.total
        return (
            f"{self.candidate} of {self.total} shown requests are the candidate's ({self.candidate / max(1, self.total):.1%}), and "
            f"the split of the keys gives it about {expected:.0f} ({self.share:.1%}); stable has {self.total - self.candidate} of about "
            f"{self.total - expected:.0f}"
        )
