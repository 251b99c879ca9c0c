"""What moves a, r and K, seen from outside: batches in, weights out."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.errors import InvalidInput
from transfer.online.adapt import Adaptation, Adapted, AdaptSettings, Seen
from transfer.quality.drift import Cusum, Stability

ROWS = 1000


class Stream:
    """Batches of a world whose log-odds are known; the models' logits are off by what a test says."""

    def __init__(self, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)

    def batch(self, student: float = 0.0, teacher: float = 0.0, replay: float = 0.0, ids: int = 1000) -> Seen:
        """A batch. `student`, `teacher`: error of their log-odds; `replay`: the student's on replay rows; `ids`: how many
        there are."""
        r = self._random

        def rows(n: int) -> tuple[np.ndarray, np.ndarray]:
            truth = r.normal(-1.2, 1.0, n)
            return truth, (r.random(n) < 1 / (1 + np.exp(-truth))).astype(np.float32)

        truth, labels = rows(ROWS)
        old, old_labels = rows(100)
        hashed = r.integers(0, ids, (ROWS, 2)) * 2_654_435_761
        parts = (truth + student, truth + teacher, labels)
        replayed = (old + replay, old, old_labels)
        return Seen(*(x.astype(np.float32) for x in parts), hashed, *(x.astype(np.float32) for x in replayed))


def follow(adaptation: Adaptation, batches: list[Seen], start: int = 1) -> list[Adapted]:
    return [adaptation.update(number, seen) for number, seen in enumerate(batches, start)]


def test_calm_keeps_the_constants() -> None:
    stream, adaptation = Stream(), Adaptation(AdaptSettings(), 2)
    records = follow(adaptation, [stream.batch() for _ in range(300)])
    assert {(r.replay, r.every, r.alarms) for r in records} == {(0.1, 10, 0)}
    assert records[-1].teacher_weight == pytest.approx(0.7)


def test_a_jump_of_the_base_rate_is_noticed_within_ten_batches_and_over_when_the_student_has_followed() -> None:
    stream, adaptation = Stream(), Adaptation(AdaptSettings(), 2)
    follow(adaptation, [stream.batch() for _ in range(60)])
    records = follow(adaptation, [stream.batch(student=-0.3, teacher=-0.3) for _ in range(10)], 61)
    last = records[-1]
    assert last.alarms == 1
    assert last.drift == 1.0
    assert last.replay == pytest.approx(0.02)
    assert last.every == 2
    assert last.teacher_weight < 0.3  # the teacher's scores are as old as its last publication
    later = follow(adaptation, [stream.batch() for _ in range(100)], 71)
    assert later[-1].drift < 0.01
    assert (later[-1].replay, later[-1].every) == (pytest.approx(0.1, abs=0.001), 10)


def test_a_student_that_forgets_gets_more_replay() -> None:
    stream, adaptation = Stream(), Adaptation(AdaptSettings(), 2)
    follow(adaptation, [stream.batch() for _ in range(60)])
    records = follow(adaptation, [stream.batch(replay=1.0) for _ in range(20)], 61)
    assert records[-1].replay == pytest.approx(0.3)
    assert records[-1].every == 10


def test_new_ids_are_a_drift_of_their_own() -> None:
    stream, adaptation = Stream(), Adaptation(AdaptSettings(), 2)
    follow(adaptation, [stream.batch() for _ in range(60)])
    records = follow(adaptation, [stream.batch(ids=5) for _ in range(20)], 61)
    assert records[-1].stability > 0.25
    assert records[-1].every == 2


def test_the_student_that_has_overtaken_leaves_its_teacher_and_one_behind_leans_on_it_no_more_than_at_first() -> None:
    stream, adaptation = Stream(), Adaptation(AdaptSettings(), 2)
    assert follow(adaptation, [stream.batch(teacher=1.0) for _ in range(30)])[-1].teacher_weight < 0.1
    adaptation = Adaptation(AdaptSettings(), 2)
    assert follow(adaptation, [stream.batch(student=1.0) for _ in range(30)])[-1].teacher_weight == pytest.approx(0.7)


def test_constants_stay_constant_and_leave_the_same_records() -> None:
    stream, adaptation = Stream(), Adaptation(AdaptSettings(adapt=False), 2)
    records = follow(adaptation, [stream.batch(teacher=1.0, student=0.4 * (i > 40)) for i in range(60)])
    assert {(r.teacher_weight, r.replay, r.every) for r in records} == {(0.7, 0.1, 10)}
    assert records[-1].alarms == 1
    assert json.loads(json.dumps(records[-1].as_json()))["rows"] == 60 * ROWS


def test_it_goes_on_exactly_from_its_state() -> None:
    whole, first = Adaptation(AdaptSettings(), 2), Adaptation(AdaptSettings(), 2)
    batches = [Stream(3).batch(student=0.3 * (i > 30), replay=0.2 * i) for i in range(60)]
    expected = follow(whole, batches)
    follow(first, batches[:35])
    second = Adaptation(AdaptSettings(), 2)
    second.restore(json.loads(json.dumps(first.state())))
    assert follow(second, batches[35:], 36) == expected[35:]


def test_a_teacher_that_scored_nothing_moves_nothing() -> None:
    adaptation = Adaptation(AdaptSettings(), 2)
    seen = Stream().batch(teacher=np.nan)
    assert adaptation.update(1, seen).teacher_loss is None
    assert adaptation.teacher_weight == 0.7


def test_an_alarm_that_never_ends_becomes_the_new_normal() -> None:
    watch, random = Cusum(patience=50), np.random.default_rng(0)
    for _ in range(100):
        watch.update(random.normal())
    for _ in range(40):
        watch.update(random.normal() + 4)
    assert watch.alarmed
    for _ in range(100):
        watch.update(random.normal() + 4)
    assert not watch.alarmed
    assert watch.alarms == 1


def test_false_alarms_are_rare() -> None:
    random = np.random.default_rng(0)
    watches = [Cusum() for _ in range(20)]
    for watch in watches:
        for _ in range(2000):
            watch.update(random.normal())
    assert sum(watch.alarms for watch in watches) <= 10  # in 40,000 batches


def test_stability_of_the_same_mix_is_zero_but_for_chance() -> None:
    random = np.random.default_rng(0)
    index = Stability(1, 20)
    found = [index.update(random.multinomial(500, np.full(20, 0.05))[None]) for _ in range(100)]
    assert max(found) < 0.05
    moved = [
        index.update(random.multinomial(500, np.r_[np.full(10, 0.01), np.full(10, 0.09)])[None]) for _ in range(20)
    ]
    assert moved[-1] > 0.25


@pytest.mark.parametrize(("name", "value"), [("teacher_weight", 0.95), ("replay", 0.5), ("every", 0)])
def test_a_start_out_of_bounds_is_named(name: str, value: float) -> None:
    with pytest.raises(InvalidInput, match=name):
        AdaptSettings(**{name: value})  # type: ignore[arg-type]
