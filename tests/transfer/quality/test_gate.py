"""What the gate lets through."""

from __future__ import annotations

import numpy as np
import pytest

from transfer.quality.gate import GateLimits, judge

LIMITS = GateLimits(logloss_margin=0.002, auc_margin=0.003, bias=0.05)


def rows(n: int = 20_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are right, and the labels drawn from them."""
    random = np.random.default_rng(seed)
    logits = random.normal(-1.4, 1.0, n).astype(np.float32)
    labels = (random.random(n) < 1 / (1 + np.exp(-logits))).astype(np.float32)
    return logits, labels


def probability(logits: np.ndarray) -> np.ndarray:
    return (1 / (1 + np.exp(-logits))).astype(np.float32)


def test_an_equal_version_passes_with_its_figures() -> None:
    logits, labels = rows()
    report = judge(logits, probability(logits), labels, {"serving": probability(logits)}, LIMITS)
    assert report.passed
    assert report.figures["rows"] == 20_000
    assert report.figures["auc"] == report.figures["serving_auc"]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda z: z + 0.3, "bias"),
        (lambda z: z * 0.2 - 1.2, "LogLoss"),
        (lambda z: np.random.default_rng(1).permutation(z), "AUC"),
        (lambda z: np.where(np.arange(len(z)) == 3, np.nan, z).astype(np.float32), "not finite"),
        (lambda z: np.where(np.arange(len(z)) == 3, np.inf, z).astype(np.float32), "not finite"),
        (lambda z: np.where(np.arange(len(z)) == 3, 1e4, z).astype(np.float32), "blown up"),
    ],
)
def test_a_worse_version_is_refused_with_the_reason(spoil, reason: str) -> None:  # type: ignore[no-untyped-def]
    logits, labels = rows()
    bad = spoil(logits).astype(np.float32)
    report = judge(bad, probability(bad), labels, {"serving": probability(logits)}, LIMITS)
    assert not report.passed
    assert any(reason in text for text in report.reasons)


def test_margins_do_not_add_up_when_the_steps_first_version_is_a_reference() -> None:
    logits, labels = rows(200_000)
    random = np.random.default_rng(2)
    before = logits
    for generation in range(20):
        after = before + random.normal(0, 0.12, len(logits)).astype(np.float32)
        references = {"serving": probability(before), "step": probability(logits)}
        report = judge(after, probability(after), labels, references, LIMITS)
        if not report.passed:
            assert any("step version" in text for text in report.reasons)
            assert generation > 0
            return
        before = after
    pytest.fail("twenty small steps down were all let through")


def test_few_positives_are_not_enough_to_judge() -> None:
    logits, labels = rows(50)
    report = judge(logits, probability(logits), labels, {}, LIMITS)
    assert not report.passed
    assert "9 clicks among 50 held-out rows" in report.reasons[0]


def test_a_small_bias_that_the_rows_cannot_show_is_not_held_against_a_version() -> None:
    logits, labels = rows(2_000)
    scores = probability(logits + 0.12)
    assert not judge(logits, scores, labels, {}, LIMITS).passed
    assert judge(logits, scores, labels, {}, LIMITS, bias_error=0.05).passed
