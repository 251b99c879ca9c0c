"""Log entries as people and programs read them."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest

from serving.runtime.logs import write_logs
from serving.wire.errors import failure_of

Written = Callable[[], list[str]]


@pytest.fixture
def writing() -> Iterator[Callable[[Literal["text", "json"]], Written]]:
    """Begins to log in a format; what it gives reads the lines so far."""
    root = logging.getLogger()
    before = root.handlers[:], root.level, sys.excepthook, threading.excepthook

    def begin(form: Literal["text", "json"]) -> Written:
        stream = io.StringIO()
        write_logs("lane-3", "info", form, stream)
        return lambda: stream.getvalue().splitlines()

    yield begin
    logging.captureWarnings(False)
    root.handlers[:], sys.excepthook, threading.excepthook = before[0], before[2], before[3]
    root.setLevel(before[1])


def entries(written: Written) -> list[dict[str, Any]]:
    return [json.loads(line) for line in written()]


def test_a_fault_of_ours_is_one_json_line_with_its_request_trace_and_stack(writing: Any) -> None:
    written = writing("json")
    try:
        raise ZeroDivisionError("ü\nand more")
    except ZeroDivisionError as error:
        failure_of(error, "req-7", "0af7651916cd43dd8448eb211c80319c")
    (entry,) = entries(written)
    assert (entry["level"], entry["process"], entry["logger"]) == ("error", "lane-3", "serving.wire.errors")
    assert (entry["request_id"], entry["trace_id"]) == ("req-7", "0af7651916cd43dd8448eb211c80319c")
    assert entry["time"].endswith("Z")
    assert 'raise ZeroDivisionError("ü' in entry["exception"]
    assert entry["message"] == "request req-7 failed"


def test_people_read_the_same_as_text(writing: Any) -> None:
    written = writing("text")
    logging.getLogger("serving.processes.lane").warning("late by %d ms", 7, extra={"request_id": "req-7"})
    logging.getLogger("serving.processes.lane").debug("not written")
    (line,) = written()
    time, rest = line.split(" ", 1)
    assert time.endswith("Z")
    assert rest == "WARNING lane-3 serving.processes.lane: late by 7 ms request_id=req-7"


@pytest.mark.parametrize(
    ("said", "secret"),
    [
        ("authorization: Bearer abc.def-123, next", "abc.def-123"),
        ("token baton_k3y_s3cr3tS3cr3t is new", "s3cr3tS3cr3t"),
        ("bearer baton_k3y_s3cr3tS3cr3t", "s3cr3tS3cr3t"),
        ("redis://user:hunter2@10.0.0.1:6379/0 is away", "hunter2"),
        ("redis://:hunter2@10.0.0.1:6379/0 is away", "hunter2"),
    ],
)
@pytest.mark.parametrize("form", ["text", "json"])
def test_secrets_are_blotted_out(writing: Any, form: str, said: str, secret: str) -> None:
    written = writing(form)
    try:
        raise ValueError(said)
    except ValueError:
        logging.getLogger("x").exception("it said %s", said)
    text = "\n".join(written())
    assert secret not in text
    assert "***" in text


def test_warnings_and_dying_threads_are_entries_too(writing: Any) -> None:
    written = writing("json")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old fashioned", DeprecationWarning, stacklevel=1)

    def fails() -> None:
        raise RuntimeError("gone")

    thread = threading.Thread(target=fails, name="label-join")
    thread.start()
    thread.join()
    warned, died = entries(written)
    assert "old fashioned" in warned["message"]
    assert (died["level"], died["message"]) == ("critical", "thread label-join ends by an exception")
    assert "RuntimeError: gone" in died["exception"]


def test_what_strangers_have_libraries_write_is_bounded(writing: Callable[[Literal["text", "json"]], Written]) -> None:
    written = writing("json")
    for number in range(1000):
        logging.getLogger("grpc._cython.cygrpc").error("Invalid encoding on %s", number)
    logging.getLogger("asyncio").error("another place")
    for number in range(100):
        logging.getLogger("serving.control.loops").error("one of ours %s", number)
    lines = [entry["logger"].partition(".")[0] for entry in entries(written)]
    assert {name: lines.count(name) for name in set(lines)} == {
        "grpc": 20,
        "asyncio": 1,
        "serving": 3,
    }  # of ours, see `repeats`


def test_the_log_says_how_much_was_left_out(
    writing: Callable[[Literal["text", "json"]], Written], monkeypatch: pytest.MonkeyPatch
) -> None:
    written, now = writing("json"), [1000.0]
    monkeypatch.setattr("serving.runtime.logs.time.monotonic", lambda: now[0])
    for late in (0.0, 20.0):
        now[0] += late
        for _ in range(50):
            logging.getLogger("engineio.server").error("cannot be read")
    messages = [entry["message"] for entry in entries(written)]
    assert len(messages) == 22
    assert messages[20] == "cannot be read (30 like this were left out)"
