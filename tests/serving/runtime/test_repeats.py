"""Faults that repeat: one stack trace, then lines with a count."""

from __future__ import annotations

import logging

import pytest

from serving.runtime import repeats
from serving.runtime.repeats import RepeatLimit


class Lines:
    """A log behind the limit, with a clock by hand and no thread."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        self.written: list[logging.LogRecord] = []
        self.timers: list[Timer] = []
        monkeypatch.setattr(repeats.threading, "Timer", self._timer)
        self.limit = RepeatLimit(self.written.append, ("serving",), clock=lambda: self.now_s)

    def _timer(self, seconds: float, call, arguments) -> Timer:  # type: ignore[no-untyped-def]
        self.timers.append(Timer(lambda: call(*arguments)))
        return self.timers[-1]

    def add(self, text: str, *arguments: object, error: BaseException | None = None, request: str = "") -> None:
        found = (type(error), error, error.__traceback__) if error is not None else None
        record = logging.LogRecord("serving.x", logging.ERROR, "x.py", 7, text, arguments, found)
        if request:
            record.request_id = request
        if self.limit.filter(record):
            self.written.append(record)

    def passes(self, seconds: float) -> None:
        self.now_s += seconds
        for timer in [timer for timer in self.timers if not timer.cancelled]:
            timer.cancelled = True
            timer.call()

    def texts(self) -> list[str]:
        return [record.getMessage() for record in self.written]


class Timer:
    name, daemon = "", False

    def __init__(self, call) -> None:  # type: ignore[no-untyped-def]
        self.call, self.cancelled = call, False

    def start(self) -> None: ...

    def cancel(self) -> None:
        self.cancelled = True


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Lines:
    return Lines(monkeypatch)


def fault(text: str) -> Exception:
    try:
        raise OSError(28, text)
    except OSError as error:
        return error


def test_a_thousand_batches_are_one_trace_and_a_count_per_interval(lines: Lines) -> None:
    for batch in range(1000):
        lines.add("%d predictions were dropped", batch, error=fault("No space left on device"))
    assert [record.exc_info is not None for record in lines.written] == [True, False, False]
    assert "OSError: [Errno 28] No space left on device" in lines.texts()[1]
    lines.passes(60)
    assert lines.texts()[3:] == [
        "999 predictions were dropped: OSError: [Errno 28] No space left on device (997 more like this in 60 s; this is the last)"
    ]
    assert lines.written[3].repeated == 997
    for batch in range(50):  # it lasts: a line an interval, and no trace
        lines.add("%d predictions were dropped", batch, error=fault("No space left on device"))
    lines.passes(60)
    assert len(lines.written) == 5
    assert (lines.written[4].repeated, lines.written[4].exc_info) == (50, None)


def test_another_cause_is_written_at_once(lines: Lines) -> None:
    for _ in range(10):
        lines.add("a pass of %s failed", "join", error=fault("No space left on device"))
    lines.add("a pass of %s failed", "upkeep", error=fault("No space left on device"))
    lines.add("a pass of %s failed", "join", error=ValueError("a bug"))
    assert [record.exc_info is not None for record in lines.written] == [True, False, False, True, True]


def test_a_request_id_makes_no_cause_of_its_own(lines: Lines) -> None:
    for number in range(9):
        lines.add("request %s failed", f"call-of-{number}", error=fault("x"), request=f"call-of-{number}")
    assert len(lines.written) == 3


def test_what_was_counted_is_told_as_the_process_ends(lines: Lines) -> None:
    for _ in range(5):
        lines.add("it failed")
    lines.limit.flush()
    assert lines.texts()[-1] == "it failed (2 more like this in 60 s; this is the last)"
    lines.limit.flush()
    assert len(lines.written) == 4


def test_after_a_quiet_time_a_cause_is_news_again(lines: Lines) -> None:
    lines.add("it failed", error=fault("x"))
    lines.passes(601)
    lines.add("it failed", error=fault("x"))
    assert [record.exc_info is not None for record in lines.written] == [True, True]


def test_causes_without_end_take_bounded_memory(lines: Lines) -> None:
    for number in range(2 * repeats.KEPT_ENTRIES):
        lines.add("it failed for %s", "x" * number)
    assert len(lines.limit._episodes) == repeats.KEPT_ENTRIES
