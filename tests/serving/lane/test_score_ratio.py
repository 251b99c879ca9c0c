"""Sums over a sliding window against a plain list of what was added."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.lane.score_ratio import ScoreRatio

STEPS = st.lists(
    st.tuples(st.floats(0, 4), st.sampled_from(["ranker", "shop"]), st.integers(1, 50), st.floats(0, 1)), max_size=60
)


@given(STEPS, st.floats(0, 12))
def test_the_window_sums_what_the_last_seconds_brought(steps: list[tuple[float, str, int, float]], wait: float) -> None:
    window, now = ScoreRatio(seconds=5), 100.0
    added: list[tuple[int, str, int, float]] = []
    for passed, endpoint, rows, score in steps:
        now += passed
        window.add(now, endpoint, rows, rows * score, 2 * rows * score)
        added.append((int(now), endpoint, rows, rows * score))
    now += wait
    wanted: dict[str, list[float]] = {}
    for second, endpoint, rows, stable in added:
        if second > int(now) - 5:
            sums = wanted.setdefault(endpoint, [0, 0.0])
            sums[0] += rows
            sums[1] += stable
    found = window.sums(now)
    assert found.keys() == wanted.keys()
    for endpoint, (rows, stable) in wanted.items():
        assert (found[endpoint].rows, found[endpoint].seconds) == (rows, 5)
        assert found[endpoint].stable == pytest.approx(stable, abs=1e-9)
        assert found[endpoint].candidate == pytest.approx(2 * stable, abs=1e-9)
    assert window.sums(now + 5) == {}


def test_another_version_begins_another_window() -> None:
    window = ScoreRatio(seconds=10)
    window.add(100.0, "ranker", 10, 1.0, 1.0, ("1", "1"), 20.0)
    window.add(107.0, "ranker", 10, 1.0, 3.0, ("1", "2"))
    window.add(109.0, "ranker", 10, 1.0, 3.0, ("1", "2"), degraded=True)
    sums = window.sums(109.5)["ranker"]
    assert (sums.rows, sums.candidate, sums.seconds, sums.candidate_version) == (20, 6.0, 2.5, "2")
    assert (sums.predictions, sums.degraded) == (2, 1)
