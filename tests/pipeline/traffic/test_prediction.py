"""Prediction ids: sortable, genuine or refused, under one secret per installation."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InvalidInput
from pipeline.traffic.prediction import PredictionIds, load_secret

KEY = bytes(range(32))
LETTERS = "0123456789abcdefghijklmnopqrstuv"


@given(st.integers(0, (1 << 48) - 1), st.integers(0, (1 << 16) - 1))
@settings(derandomize=True)
def test_an_id_says_when_and_by_which_lane(time_ms: int, lane: int) -> None:
    info = PredictionIds(KEY).parse(PredictionIds(KEY, lane).new(time_ms))
    assert (info.time_ms, info.lane) == (time_ms, lane)


@given(st.lists(st.integers(0, (1 << 48) - 1), unique=True))
@settings(derandomize=True)
def test_ids_sort_by_time(times: list[int]) -> None:
    ids = PredictionIds(KEY)
    made = {ids.new(t): t for t in times}
    assert [made[i] for i in sorted(made)] == sorted(times)


def test_ids_are_unique_within_a_millisecond() -> None:
    ids = PredictionIds(KEY)
    assert len({ids.new(5) for _ in range(1000)}) == 1000


@given(st.integers(0, 31), st.sampled_from(LETTERS))
@settings(derandomize=True)
def test_a_changed_letter_is_noticed(place: int, letter: str) -> None:
    ids = PredictionIds(KEY)
    genuine = ids.new(1_700_000_000_000)
    forged = genuine[:place] + letter + genuine[place + 1 :]
    if forged != genuine:
        with pytest.raises(InvalidInput, match="prediction_id"):
            ids.parse(forged)


@given(st.text(max_size=40))
@settings(derandomize=True)
def test_any_text_is_refused_politely(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        PredictionIds(KEY).parse(text)
    assert caught.value.field == "prediction_id"


def test_another_installations_id_is_refused() -> None:
    with pytest.raises(InvalidInput):
        PredictionIds(KEY).parse(PredictionIds(b"other").new(1))


def test_a_lane_has_16_bits() -> None:
    with pytest.raises(ValueError, match="lane"):
        PredictionIds(KEY, 1 << 16)


def test_the_secret_is_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "home" / "secret"
    first = load_secret(path)
    assert len(first) == 32
    assert load_secret(path) == first
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["secret"]


def test_threads_that_race_for_the_secret_agree(tmp_path: Path) -> None:
    found: list[bytes] = []
    start = threading.Barrier(4)

    def load() -> None:
        start.wait(10)
        found.append(load_secret(tmp_path / "secret"))

    threads = [threading.Thread(target=load, name=f"load-{i}") for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(found) == 4
    assert len(set(found)) == 1


def test_a_damaged_secret_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"short")
    with pytest.raises(InvalidInput, match="32 bytes; it holds 5"):
        load_secret(path)
