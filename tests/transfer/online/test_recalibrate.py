"""The online calibration against labels whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bundle.bundle import Calibration
from pipeline.features import Rows
from transfer.click_model.calibration import offset_for
from transfer.online.recalibrate import HeldRows, Ring, recalibrate, window_for


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def fitted(recent: Ring, before: np.ndarray, after: np.ndarray) -> Calibration:
    return recalibrate(Calibration(), recent, window_for(Calibration(), recent), before, after)


def draw(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    truth = random.normal(-1.4, 1.0, n)
    return truth.astype(np.float32), (random.random(n) < sigmoid(truth)).astype(np.float32)


@given(st.floats(-6, 6), st.integers(0, 10_000))
def test_offset_is_found(offset: float, seed: int) -> None:
    logits = np.random.default_rng(seed).normal(0, 2, 500)
    assert offset_for(logits, float(sigmoid(logits + offset).sum())) == pytest.approx(offset, abs=1e-6)


def test_a_bias_of_all_weights_is_taken_out() -> None:
    truth, labels = draw(200_000, 0)
    recent = Ring(200_000)
    recent.add(truth + 0.3, labels)
    held, _ = draw(10_000, 1)
    found = fitted(recent, held + 0.3, held + 0.3)
    assert found.beta == pytest.approx(-0.3, abs=0.02)


def test_what_training_has_already_corrected_is_not_corrected_again() -> None:
    truth, labels = draw(200_000, 2)
    recent = Ring(200_000)
    recent.add(truth + 0.3, labels)  # by the weights of their time, which were off
    held, _ = draw(10_000, 3)
    found = fitted(recent, held + 0.3, held)  # today's weights are right
    assert found.beta == pytest.approx(0.0, abs=0.02)


def test_little_evidence_moves_the_serving_calibration_little() -> None:
    truth, labels = draw(100, 4)
    recent = Ring(1000)
    recent.add(truth + 2.0, labels)
    assert abs(fitted(recent, np.empty(0, np.float32), np.empty(0, np.float32)).beta) < 0.3
    assert recalibrate(Calibration(alpha=0.9, beta=0.1), Ring(10), 0, truth, truth) == Calibration(alpha=0.9, beta=0.1)


def test_a_base_rate_that_moved_is_followed() -> None:
    before, labels_before = draw(100_000, 5)
    now, labels_now = draw(20_000, 6)
    recent = Ring(200_000)
    recent.add(before, labels_before)
    recent.add(now - 0.3, labels_now)  # since then clicks are more frequent than the model thinks
    found = fitted(recent, now - 0.3, now - 0.3)
    assert found.beta == pytest.approx(0.3, abs=0.06)


def test_without_drift_all_rows_count() -> None:
    truth, labels = draw(64_000, 7)
    recent = Ring(64_000)
    recent.add(truth, labels)
    assert window_for(Calibration(), recent) == 64_000


def test_ring_keeps_the_newest() -> None:
    ring = Ring(4)
    ring.add(np.arange(3, dtype=np.float32), np.zeros(3, np.float32))
    ring.add(np.arange(3, 6, dtype=np.float32), np.ones(3, np.float32))
    assert ring.logits.tolist() == [2, 3, 4, 5]
    again = Ring(4)
    again.restore(ring.state())
    again.add(np.array([6.0], np.float32), np.zeros(1, np.float32))
    assert again.logits.tolist() == [3, 4, 5, 6]


def test_held_rows_forget_the_oldest_and_survive_a_checkpoint() -> None:
    held = HeldRows(5, ("student",))
    for start in (0, 3):
        ids = np.arange(start, start + 3)[:, None]
        values = np.arange(start, start + 3, dtype=np.float32)
        labels = (values % 2 == 0).astype(np.float32)
        held.add(Rows(ids, np.empty((3, 0), np.float32)), labels, {"student": values}, start)
    again = HeldRows(5, ("student",))
    again.restore(held.state())
    for kept in (held, again):
        assert kept.rows is not None
        assert kept.rows.ids.ravel().tolist() == [1, 2, 3, 4, 5]
        assert kept.passed.tolist() == [0, 0, 3, 3, 3]
        assert kept.newest(0, 0).labels.tolist() == [0, 1, 0]
        assert kept.newest(0, 2).labels.tolist() == [1, 0, 1, 0]
        assert kept.newest(3, 10**6).labels.tolist() == [0, 1, 0, 1, 0]
        assert kept.logits["student"].tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("rare", [1.0, 0.0], ids=["clicks", "rows without a click"])
def test_held_rows_grow_until_they_hold_enough_of_both_classes_and_not_without_end(rare: float) -> None:
    held = HeldRows(100, ("student",), least=20)

    def add(rows: int, every: int) -> None:
        labels = np.full(rows, 1 - rare, np.float32)
        labels[::every] = rare
        ids = np.zeros((rows, 1), np.int64)
        held.add(Rows(ids, np.zeros((rows, 0), np.float32)), labels, {"student": labels}, 0)

    for _ in range(10):
        add(100, 50)
    assert (len(held), held.rarer[1]) == (1000, 20), "twenty of the rarer class"
    add(100, 4)
    assert len(held) == 100, "the newest rows hold enough again"
    for _ in range(30):
        add(100, 100)
    assert (len(held), held.rarer[1]) == (2000, 20)
    for _ in range(30):
        add(100, 1000)
    assert len(held) == 2000, "no more than 20 times the capacity"
    assert len(held.newest(0, 20)) == 2000
