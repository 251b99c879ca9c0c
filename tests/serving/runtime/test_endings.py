"""Endings: the reason that ends a process is kept for others, and logged when it is new."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from pipeline.errors import NotReady
from serving.runtime.endings import ENDING, ending, note_ending, read_ending


def end(path: Path, error: BaseException) -> int | str | None:
    with pytest.raises(SystemExit) as ended, ending(path):
        raise error
    return ended.value.code


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (NotReady("the traffic log is away"), "the traffic log is away"),
        (OSError(28, "No space left on device", "/x"), "No space left on device: /x"),
        (ValueError("a column is missing"), "ValueError: a column is missing"),
    ],
)
def test_the_reason_is_in_words_of_the_cause(tmp_path: Path, error: Exception, reason: str) -> None:
    assert end(tmp_path / "worker.json", error) == 1
    found = read_ending(tmp_path / "worker.json")
    assert found is not None
    assert (found.pid, found.reason) == (os.getpid(), reason)


def test_of_a_library_that_logs_and_exits_its_last_error_counts(tmp_path: Path) -> None:

    def serve() -> None:
        logging.getLogger("a.library").error("address already in use")
        raise SystemExit(3)

    with pytest.raises(SystemExit), ending(tmp_path / "control.json"):
        serve()
    found = read_ending(tmp_path / "control.json")
    assert found is not None
    assert found.reason == "address already in use"
    with pytest.raises(SystemExit), ending(tmp_path / "shadow.json"):
        raise SystemExit(0)
    assert read_ending(tmp_path / "shadow.json") is None


def test_a_supervised_process_logs_a_reason_once_and_the_next_one_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "worker.json"
    monkeypatch.setenv(ENDING, str(path))
    for reason in ("no bundle", "no bundle", "no bundle", "no column"):
        end(path, ValueError(reason))
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["no bundle", "no column"]
    monkeypatch.delenv(ENDING)
    end(path, NotReady("no column"))
    end(path, NotReady("no column"))
    assert [r.getMessage() for r in caplog.records][-2:] == 2 * ["the process ends: no column"]


def test_a_file_that_cannot_be_written_or_read_hides_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert end(tmp_path / "file" / "worker.json", NotReady("away")) == 1
    (tmp_path / "worker.json").write_text("[")
    assert read_ending(tmp_path / "worker.json") is None
    assert note_ending("no file is named")
