"""Pool of generated blocks that simulated traffic is drawn from.

Rows have known true probabilities, two calibrated arms of equal quality know different things of each row, and the rows of a
request share a cause that neither arm sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pipeline.arrays import F64
from pipeline.calibration import sigmoid
from pipeline.metrics import auc, row_logloss
from serving.rollout.sums import selection

__all__ = ["POOL_KEYS", "REQUEST_ROWS", "USUAL_CLICK_FRACTION", "Pool", "pool"]

REQUEST_ROWS = 10
POOL_KEYS = 800
USUAL_CLICK_FRACTION = 0.2
_BASE_LOGIT = -1.65
_CHUNKS = 100


@dataclass(frozen=True, slots=True)
class Pool:
    """Complete blocks `[POOL, COLUMNS]`, and sums over the first 0..100 percent of their requests `[POOL, 101]`."""

    lines: F64
    served_rows: F64
    served_clicks: F64
    served: F64
    served_stable: F64

    def draw(self, rng: np.random.Generator, weight: float) -> F64:
        """One block with its served columns for a weight in percent."""
        at = int(rng.integers(len(self.lines)))
        chunk = round(weight / 100 * _CHUNKS)
        line: F64 = self.lines[at].copy()
        line[selection.SERVED_ROWS] = self.served_rows[at, chunk]
        line[selection.SERVED_CLICKS] = self.served_clicks[at, chunk]
        line[selection.SERVED] = self.served[at, chunk]
        line[selection.SERVED_STABLE] = self.served_stable[at, chunk]
        return line


@lru_cache(maxsize=128)
def pool(
    rows: int, bias: float = 0.0, *, worse: bool = False, jumped: bool = False, rate: float = USUAL_CLICK_FRACTION
) -> Pool:
    """Blocks of `rows` rows whose candidate has this bias and, if `worse`, an AUC lower by 0.01.

    Args:
        jumped: clicks are 8 % more frequent than both arms think. rate: of clicks, about.
    """
    rng = np.random.default_rng([rows, worse, jumped, *([] if rate == USUAL_CLICK_FRACTION else [round(1e6 * rate)])])
    shape = (POOL_KEYS, rows)
    known_c = 0.27 if worse else 0.4  # spread of what only that arm knows, in log-odds; 0.4 for both: equal AUC
    known_s, shared, unseen = 0.4, 0.9, 0.3
    base = rng.normal(
        _BASE_LOGIT + np.log(rate / (1 - rate) * (1 - USUAL_CLICK_FRACTION) / USUAL_CLICK_FRACTION), shared, shape
    )
    only_c, only_s = rng.normal(0, 0.4, shape), rng.normal(0, known_s, shape)
    requests = -(-rows // REQUEST_ROWS)
    cause = np.repeat(rng.normal(0, unseen, (POOL_KEYS, requests)), REQUEST_ROWS, axis=1)[:, :rows]
    truth = sigmoid(base + only_c + only_s + cause)
    if jumped:
        truth = truth * 1.08
    clicks = (rng.random(shape) < truth).astype(np.float64)
    # What the candidate sees of its own cause; the rest is noise to it. Expected clicks given what is seen: calibrated.
    part = (known_c / 0.4) ** 2
    seen = part * only_c + np.sqrt(part * (1 - part)) * rng.normal(0, 0.4, shape) if worse else only_c
    stable = _expected(base + only_s, np.hypot(0.4, unseen))
    candidate = _expected(base + seen, np.sqrt(known_s**2 + unseen**2 + 0.16 * (1 - part)))
    # Exact by construction, so that the random error of the pool is not a bias that all runs share.
    stable *= clicks.sum() / (1.08 if jumped else 1.0) / stable.sum()
    candidate *= (1.0 + bias) * clicks.sum() / (1.08 if jumped else 1.0) / candidate.sum()
    np.clip(candidate, 0.0, 0.999, out=candidate)
    lines = np.zeros((POOL_KEYS, selection.COLUMNS))
    lines[:, selection.ROWS] = lines[:, selection.EXPOSED] = rows
    lines[:, selection.CLICKS] = clicks.sum(1)
    lines[:, selection.STABLE], lines[:, selection.CANDIDATE] = stable.sum(1), candidate.sum(1)
    lines[:, selection.LOSS_DELTA] = (row_logloss(clicks, candidate) - row_logloss(clicks, stable)).sum(1)
    both = (clicks.sum(1) > 0) & (clicks.sum(1) < rows)
    apart = np.full(POOL_KEYS, np.nan)
    apart[both] = [auc(y, c) - auc(y, s) for y, c, s in zip(clicks[both], candidate[both], stable[both], strict=True)]
    lines[:, selection.AUC_DELTA] = apart - np.nanmean(apart) - (0.01 if worse else 0.0)
    ends = np.round(np.linspace(0, rows, _CHUNKS + 1)).astype(int)

    def sums(values: F64) -> F64:
        total = np.concatenate([np.zeros((POOL_KEYS, 1)), np.cumsum(values, axis=1)], axis=1)
        taken: F64 = total[:, ends]
        return taken

    return Pool(lines, sums(np.ones(shape)), sums(clicks), sums(candidate), sums(stable))


def _expected(logits: F64, spread: float) -> F64:
    """Mean of sigmoid(logits + spread * z) over standard normal z, by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(9)
    grid = np.linspace(-12, 12, 2401)
    table = (sigmoid(grid[:, None] + spread * nodes) * weights).sum(1) / weights.sum()
    found: F64 = np.interp(logits, grid, table)
    return found
