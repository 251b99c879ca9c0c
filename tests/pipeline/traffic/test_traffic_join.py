"""Maturity, closing and revisions of one prediction, without a store."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.traffic.feedback import Change, LabelState, accept, dump_entry, load_entry
from pipeline.traffic.join import MatureRows, closes_at, mature_rows, written_labels
from pipeline.traffic.log import Exposure, FeedbackEntry, Outcome

WINDOW = 100
MADE = 1000


def said(*entries: tuple[int, FeedbackEntry], n: int = 4) -> LabelState:
    state = LabelState.fold(n)
    for now, entry in entries:
        accept(state, entry, MADE, now, lambda _: None)
    return state


def show(*rows: int) -> FeedbackEntry:
    return FeedbackEntry("p", [Exposure(row) for row in rows])


def label(row: int, value: float, final: bool = False) -> FeedbackEntry:
    return FeedbackEntry("p", (), [Outcome(row, value, final=final)])


@pytest.mark.parametrize(
    ("state", "closes"),
    [
        (said(), MADE + WINDOW),
        (said((1010, label(0, 1.0, True))), MADE + WINDOW),
        (said((1010, show(0))), 1010 + WINDOW),
        (said((1010, show(0)), (1050, show(1))), 1050 + WINDOW),
        (said((1010, show(0)), (1050, show(1)), (1060, label(1, 1.0, True))), 1010 + WINDOW),
        (said((1010, show(0)), (1060, label(0, 1.0, True))), 1010),
        (said((1010, show(0)), (1150, show(1))), MADE + 2 * WINDOW),
    ],
)
def test_when_a_prediction_closes(state: LabelState, closes: int) -> None:
    assert closes_at(state, MADE, WINDOW) == closes


def test_rows_mature_one_by_one() -> None:
    state = said((1010, show(0, 1)), (1060, show(2)), (1070, label(1, 0.5, True)))
    nothing = written_labels(4, ())
    rows, due = mature_rows(state, nothing, 1100, WINDOW)
    assert rows is not None
    assert (rows.indices.tolist(), rows.labels.tolist(), due) == ([1], [0.5], 1110)
    rows, due = mature_rows(state, written_labels(4, [rows]), 1110, WINDOW)
    assert rows is not None
    assert (rows.indices.tolist(), rows.labels.tolist(), due) == ([0], [0.0], 1160)


def test_a_clock_that_goes_back_unwrites_nothing() -> None:
    state = said((1010, show(0)), (1020, label(0, 1.0)))
    first, _ = mature_rows(state, written_labels(4, ()), 1110, WINDOW)
    assert first is not None
    written = written_labels(4, [MatureRows.unpack(first.pack())])
    assert mature_rows(state, written, 900, WINDOW) == (None, None)
    accept(state, label(0, 0.0), MADE, 900, lambda _: None)
    revised, due = mature_rows(state, written, 900, WINDOW)
    assert revised is not None
    assert (revised.labels.tolist(), revised.previous.tolist(), due) == ([0.0], [1.0], None)


def test_exposure_times_lie_between_prediction_and_now() -> None:
    shown = [Exposure(0, time_ms=5), Exposure(1, time_ms=1030), Exposure(2, time_ms=9999), Exposure(3)]
    assert said((1050, FeedbackEntry("p", shown))).exposed_ms.tolist() == [MADE, 1030, 1050, 1050]


def test_exposed_all_fills_in_what_was_not_shown_yet() -> None:
    state = LabelState.fold(3)
    entry = FeedbackEntry("p", [Exposure(1, position=9)], exposed_all=True)
    change, _ = accept(state, entry, MADE, 1010, lambda _: None)
    assert state.positions.tolist() == [0, 9, 2]
    assert accept(state, FeedbackEntry("p", exposed_all=True), MADE, 1020, lambda _: None)[0] is None
    assert change is not None
    again = LabelState.fold(3, [Change.unpack(change.pack())])
    for name in ("exposed_ms", "positions", "labels", "final"):
        np.testing.assert_array_equal(getattr(again, name), getattr(state, name))


def test_a_change_survives_packing() -> None:
    state = LabelState.fold(4)
    entry = FeedbackEntry("p", [Exposure(2, None, 1, 1005)], [Outcome(3, 0.25), Outcome(3, 1.0, final=True)])
    change, _ = accept(state, entry, MADE, 1010, lambda _: None)
    assert change is not None
    back = LabelState.fold(4, [Change.unpack(change.pack())])
    assert (back.labels[3], bool(back.final[3]), int(back.exposed_ms[2]), int(back.positions[2])) == (
        1.0,
        True,
        1005,
        1,
    )


def test_a_parked_entry_survives_writing() -> None:
    entry = FeedbackEntry("p", [Exposure(None, -(1 << 63), 2, 7)], [Outcome(1, 0.1, None, 8, True)], True)
    assert load_entry("p", dump_entry(entry)) == entry
