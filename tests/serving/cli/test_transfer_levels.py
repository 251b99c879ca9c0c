"""Warnings about levels that disagree, between a log, a teacher and the traffic of its endpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from serving.cli.levels import Traffic, traffic_of, warnings_of
from transfer.offline.side_by_side import SideBySide


def sides(rate: float, teacher: float, stands_for: float = 1.0) -> SideBySide:
    labels = (np.arange(1000) < 1000 * rate).astype(np.float32)
    counts = np.where(labels > 0, 1, stands_for).astype(np.float32)
    return SideBySide({"teacher": np.full(1000, teacher, np.float32)}, labels, counts)


def test_levels_that_agree_say_nothing() -> None:
    assert warnings_of(sides(0.10, 0.11), None) == []
    assert warnings_of(sides(0.10, 0.11), Traffic("ranker", 5000, 0.105, 0.1)) == []


def test_a_thinned_log_is_told_from_a_teacher_of_the_whole_one() -> None:
    (warning,) = warnings_of(sides(0.5, 0.1), None)
    for said in ("mean of 0.5000", "one of 0.1000", "20% apart", "declare `sampling`", "--calibrate"):
        assert said in warning
    assert warnings_of(sides(0.5, 0.1, stands_for=9.0), None) == []  # it says what it lacks


def test_the_traffic_of_the_endpoint_is_held_against_both() -> None:
    found = warnings_of(sides(0.5, 0.5), Traffic("ranker", 5000, 0.1, 0.1))
    assert len(found) == 2
    assert "the labels of the newest 5,000 rows of endpoint 'ranker' one of 0.1000" in found[0]
    assert "the teacher's scores on this log have a mean of 0.5000" in found[1]


def test_figures_stand_side_by_side() -> None:
    figures = sides(0.5, 0.1, stands_for=9.0).figures("teacher")
    assert abs(figures["pcoc"] - 1.0) < 1e-6
    assert (figures["rows"], figures["positives"]) == (1000, 500)


def test_without_an_installation_there_is_no_traffic(tmp_path: Path) -> None:
    assert traffic_of(tmp_path / "baton.yaml", "teacher") is None
    (tmp_path / "baton.yaml").write_text("endpoints: {ranker: {stable: {bundle: teacher}}}\n")
    assert traffic_of(tmp_path / "baton.yaml", "other") is None
    assert traffic_of(tmp_path / "baton.yaml", "teacher") is None
