"""Moments of block sums: the same whether lines come one by one or together, and wide where blocks are alike."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from serving.rollout.sums import selection
from serving.rollout.sums.blocks import BlockTable
from serving.rollout.sums.evidence import Verdict
from serving.rollout.sums.moments import LEAST_BATCHES, Moments
from serving.rollout.sums.selection import LEAST_INFORMATION_BLOCKS, Selection
from serving.rollout.sums.view import EvidenceView


def lines_of(clicks: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    lines = np.zeros((len(clicks), selection.COLUMNS))
    lines[:, selection.ROWS] = lines[:, selection.EXPOSED] = 1000
    lines[:, selection.CLICKS] = lines[:, selection.STABLE] = clicks
    lines[:, selection.CANDIDATE] = candidate
    return lines


def test_a_variance_is_that_of_the_batch_means() -> None:
    rng = np.random.default_rng(1)
    lines, weights = rng.normal(3.0, 1.0, (333, 3)), np.array([1.0, -2.0, 0.5])
    together, singly = Moments(3), Moments(3)
    together.add(lines)
    for line in lines:
        singly.add(line[None])
        singly.variance(weights, batched=True)  # asked or not, the same comes out
    values = lines @ weights
    by_hand = [
        length * values[: len(values) // length * length].reshape(-1, length).mean(1).var(ddof=1)
        for length in (1, 2, 4, 8, 16)
    ]
    assert len(values) // 16 >= LEAST_BATCHES > len(values) // 32
    for moments in (together, singly):
        assert moments.mean(weights) == pytest.approx(values.mean())
        assert moments.variance(weights, batched=False) == pytest.approx(by_hand[0])
        assert moments.variance(weights, batched=True) == pytest.approx(max(by_hand))
        assert moments.information(0) == pytest.approx(lines[:, 0].sum() ** 2 / (lines[:, 0] ** 2).sum())


def test_blocks_that_are_alike_prove_less() -> None:
    rng = np.random.default_rng(2)
    noise = np.zeros(2000)
    for at in range(1, 2000):
        noise[at] = 0.9 * noise[at - 1] + rng.normal(0, 1)
    found = Selection(lines_of(np.full(2000, 100.0), 100 + noise))
    alike, single = (found.bias_tests(0.02, 0.025, 50, batched=batched)[0].limits for batched in (True, False))
    assert alike.mean == single.mean
    assert alike.high - alike.mean > 2.5 * (single.high - single.mean)


def test_clicks_in_a_few_clusters_show_nothing_yet() -> None:
    clicks = np.full(200, 1.0)
    clicks[::10] = 100.0
    clustered, even = Selection(lines_of(clicks, 2 * clicks)), Selection(lines_of(clicks * 0 + 10, clicks * 0 + 20))
    assert clustered.information() < LEAST_INFORMATION_BLOCKS < even.information()
    assert clustered.bias() == even.bias() == 1.0
    assert np.isinf(clustered.bias_limits("candidate", 0.025).high)
    assert np.isfinite(even.bias_limits("candidate", 0.025).high)
    for found, verdict in ((clustered, Verdict.OPEN), (even, Verdict.BREACHED)):
        assert found.bias_tests(0.1, 0.025, 50)[0].verdict is verdict


BLOCK = st.tuples(st.integers(0, 3), st.integers(0, 40), st.booleans(), st.integers(0, 60))


@given(blocks=st.lists(BLOCK, min_size=30, max_size=160), most=st.sampled_from([0, 10_000]), again=st.integers(1, 9))
@settings(max_examples=40)
def test_a_view_that_goes_on_shows_what_a_new_one_shows(
    blocks: list[tuple[int, int, bool, int]], most: int, again: int
) -> None:
    """Gaps, blocks without a click, labels that change old blocks, versions, evidence that begins anew, merges."""
    table = BlockTable(100, 2, most)
    at = 0
    for turn, (gap, clicks, late, back) in enumerate(blocks):
        at += 1 + gap
        line = lines_of(np.array([float(clicks)]), np.array([clicks + 1.0]))
        line[:, selection.STABLE] = 7.0
        line[:, selection.VERSION] = turn // 50
        table.fill(at, line)
        if late and table.open > back:
            row = table.row_of(table.open - back)
            table.sums[row, selection.CLICKS] += 1 << 30
        if turn % 60 == 59:
            table.begin(max(0, at - 5) * 100, turn // 50)
        if turn % again:
            continue
        head, arrays = table.save()
        fresh = BlockTable(100, 2, most)
        fresh.restore(head, arrays)
        kept, new = EvidenceView(table), EvidenceView(fresh)
        assert kept.silent == new.silent
        for mine, other in ((kept.all(), new.all()), (kept.since((at - 9) * 100), new.since((at - 9) * 100))):
            np.testing.assert_array_equal(mine.lines, other.lines)
            np.testing.assert_allclose(mine.moments.sums, other.moments.sums)
        assert len(kept.since(0).lines) == len(EvidenceView(fresh).since(0).lines)
