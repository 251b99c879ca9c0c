"""A copy of the log that is made while lanes write, is said and joined to holds all that was there when it began."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
from lane_logs import open_lane
from traffic_samples import IDS, WINDOW_MS, sample

from pipeline.disk import copy_database
from pipeline.traffic.local import copying
from pipeline.traffic.local.copying import copy_log
from pipeline.traffic.log import ACCEPTED, Exposure, FeedbackEntry, Outcome

START = 1_000_000


def test_a_copy_has_each_label_once(tmp_path: Path) -> None:
    place, stop, said = tmp_path / "traffic", threading.Event(), list[str]()

    def serve() -> None:
        with closing(open_lane(place, 3)) as log:
            time_ms = START
            while not stop.is_set():
                ids = [IDS.new(time_ms + i) for i in range(8)]
                log.append_predictions([sample(i, time_ms + at) for at, i in enumerate(ids)])
                entries = [FeedbackEntry(i, [Exposure(0)], [Outcome(0, 1.0, final=True)]) for i in ids]
                assert all(reply.outcomes == (ACCEPTED,) for reply in log.append_feedback(entries, time_ms + 10))
                said.extend(ids)
                time_ms += 20

    def join() -> None:
        with closing(open_lane(place, 9)) as log:
            while not stop.is_set():
                log.join(START + len(said))

    threads = [threading.Thread(target=work) for work in (serve, join)]
    for thread in threads:
        thread.start()
    try:
        copies = []
        for number in range(3):
            target = 200 * (number + 1)
            while len(said) < target and all(thread.is_alive() for thread in threads):
                stop.wait(0.01)
            copies.append(said.copy())
            copy_log(place, tmp_path / f"copy-{number}")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    for number, before in enumerate(copies):
        with closing(open_lane(tmp_path / f"copy-{number}" / "traffic", 3)) as log:
            last = START + 10 * len(said) + 3 * WINDOW_MS
            while log.join(last):
                pass
            rows = [entry.prediction_id for entry in log.labelled(0, 1 << 20)]
            assert len(rows) == len(set(rows)), "a label is there twice"
            assert set(before) <= set(rows), "a label that was accepted before the copy is not in it"
            assert log.stats(last).damaged == 0
            later = IDS.new(last)
            log.append_predictions([sample(later, last)])
            entry = FeedbackEntry(later, [Exposure(0)], [Outcome(0, 1.0, final=True)])
            assert log.append_feedback([entry], last)[0].outcomes == (ACCEPTED,)
            log.join(last + 3 * WINDOW_MS)
            assert log.labelled(len(rows))[-1].prediction_id == later


def test_feedback_that_the_join_takes_in_meanwhile_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [IDS.new(START + i) for i in range(600)]
    entries = [FeedbackEntry(i, [Exposure(0)], [Outcome(0, 1.0, final=True)]) for i in ids]
    with closing(open_lane(tmp_path / "traffic", 3)) as log:

        def say(some: Sequence[FeedbackEntry]) -> None:
            log.append_feedback(some, START + 700)
            log.join(START + 800)

        def copy_and_go_on(source: Path, folder: Path) -> None:
            copy_database(source, folder)
            if source.name == "labels.db":  # what is said from here on, and taken in, the copied labels do not know
                for start in range(100, 600, 100):
                    say(entries[start : start + 100])

        log.append_predictions([sample(i, START + at) for at, i in enumerate(ids)])
        say(entries[:100])
        monkeypatch.setattr(copying, "copy_database", copy_and_go_on)
        copy_log(tmp_path / "traffic", tmp_path / "copy")
        say(entries[:1])  # the lane may forget what is taken in again
    with closing(open_lane(tmp_path / "copy" / "traffic", 3)) as copied:
        copied.join(START + 2 * WINDOW_MS)
        found = {entry.prediction_id: entry.labels.tolist() for entry in copied.labelled(0, 1000)}
        assert found == {i: [1.0] for i in ids}


def test_a_log_that_is_not_there_has_no_copy(tmp_path: Path) -> None:
    copy_log(tmp_path / "traffic", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
