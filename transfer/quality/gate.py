"""The quality gate: checks of a new version on rows that no version was trained on, before it may serve.

The version is compared on the same rows with the version that serves and with the one at which the current rollout step
began, so that margins cannot add up over many versions. NaN and exploding logits never pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.arrays import F32
from pipeline.bundle.bundle import GateReport
from pipeline.metrics import auc, bias, logloss
from transfer.quality.levels import level_variance, relative

__all__ = ["GateLimits", "bias_error_of", "judge"]


# No calibrated click model says one in 10^13: a logit beyond this is a training accident.
LARGEST_LOGIT = 30.0
_FIGURES = {"auc": auc, "logloss": logloss, "bias": bias}


@dataclass(frozen=True, slots=True)
class GateLimits:
    """Limits: tolerated loss in LogLoss and AUC against a reference, largest |bias|, fewest rows of each
    class, clicked or not."""

    logloss_margin: float = 0.002
    auc_margin: float = 0.003
    bias: float = 0.05
    min_positives: int = 100


def bias_error_of(scores: F32, labels: F32, stands_for: F32 | None = None) -> float:
    """Standard error of the bias, from the labels' noise and, of a sampled log, that of which rows were kept. Arguments as of
    `judge`."""
    counts = np.ones(len(labels)) if stands_for is None else relative(stands_for)
    noise = level_variance(scores.astype(np.float64), labels, counts)
    return float(np.sqrt(noise.sum()) / max(1.0, float(counts @ labels)))


def judge(
    logits: F32,
    scores: F32,
    labels: F32,
    references: Mapping[str, F32],
    limits: GateLimits,
    *,
    bias_error: float = 0.0,
    stands_for: F32 | None = None,
) -> GateReport:
    """Whether a version may serve.

    Args:
        logits, scores: of the new version, float32 `[n]`, before and after calibration, on held-out rows.
        labels: float32 `[n]`.
        references: name -> scores of a version to compare with, on the same rows.
        bias_error: standard error of the bias on these rows; a |bias| within 2 of it of the limit is not held against
            the version (few rows cannot show a small bias).
        stands_for: rows of the traffic that each row of a sampled log stands for, float32 `[n]`. AUC, LogLoss and bias are of
            these; rows and clicks are counted as they are there.

    Returns:
        the report: `passed`, the reasons where it did not, and all figures.
    """
    figures: dict[str, float | None] = {"rows": float(len(labels)), "positives": float(labels.sum())}
    reasons: list[str] = []
    if not np.isfinite(logits).all() or not np.isfinite(scores).all():
        return GateReport(passed=False, reasons=("some scores are not finite",), figures=figures)
    largest = float(np.abs(logits).max(initial=0.0))
    figures["largest_logit"] = largest
    if largest > LARGEST_LOGIT:
        reasons.append(f"the largest |logit| is {largest:.1f}, above {LARGEST_LOGIT:g}: training has blown up")
    positives = int(labels.sum())
    if min(positives, len(labels) - positives) < max(1, limits.min_positives):
        reasons.append(
            f"{positives} clicks among {len(labels)} held-out rows: at least {limits.min_positives} of both classes are needed"
        )
        return GateReport(passed=False, reasons=tuple(reasons), figures=figures)
    own = {name: figure(labels, scores, stands_for) for name, figure in _FIGURES.items()}
    figures |= own
    allowed = limits.bias + 2 * bias_error
    if abs(own["bias"]) > allowed:
        reasons.append(f"bias {own['bias']:+.3f} is beyond {allowed:.3f}")
    for name, reference in references.items():
        reference_auc, reference_logloss = (figure(labels, reference, stands_for) for figure in (auc, logloss))
        figures |= {f"{name}_auc": reference_auc, f"{name}_logloss": reference_logloss}
        if own["auc"] < reference_auc - limits.auc_margin:
            reasons.append(
                f"AUC {own['auc']:.4f} is more than {limits.auc_margin:g} below the {name} version's {reference_auc:.4f}"
            )
        if own["logloss"] > reference_logloss + limits.logloss_margin:
            reasons.append(
                f"LogLoss {own['logloss']:.4f} is more than {limits.logloss_margin:g} above the {name} version's {reference_logloss:.4f}"
            )
    return GateReport(passed=not reasons, reasons=tuple(reasons), figures=figures)
