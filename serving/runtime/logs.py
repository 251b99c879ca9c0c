"""Log of a process: a line per entry on stderr, as text for people or as JSON for programs.

An entry has the time (UTC), level, process, module and message; one about a request also has its `request_id`, and its
`trace_id` if the call is traced. Code logs by the standard `logging`, and passes these two by `extra`. Tokens and passwords
are masked in every entry. A fault that repeats is counted (`repeats`). What others wrote makes no line of its own and steers no terminal: control characters are
escapes, and a stack trace below a line is indented. The names of JSON keys are an interface: programs read them.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import re
import sys
import threading
import time
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal, TextIO

from serving.runtime.repeats import RepeatLimit
from serving.runtime.visible import json_safe, visible

__all__ = ["JsonLines", "PlainLines", "TextLines", "write_logs"]

ABOUT = ("request_id", "trace_id")
"""Attributes of an entry that name its request."""
_SECRETS = (
    (re.compile(r"\b(baton_[^_\s]+_)[\w\-]+"), r"\1***"),
    (re.compile(r"\b(bearer\s+)(?!baton_)[^\s\"',]+", re.IGNORECASE), r"\1***"),
    (re.compile(r"(://[^/\s:@]*:)[^@/\s]+@"), r"\1***@"),
)

OURS = ("serving", "pipeline", "transfer", "protos")
"""Packages whose entries are all written."""
PLACE_ENTRIES = 20
PLACE_ENTRIES_PER_S = 0.1
"""Entries of one line of a library's code: so many, and then so often. Strangers can cause some: a header of a call that is no
text is an entry with a stack trace."""

log = logging.getLogger(__name__)


class PlainLines(logging.Formatter):
    """Format of entries that a library writes during a command: the message, with its stack trace below it."""

    def format(self, record: logging.LogRecord) -> str:
        return _shown(record.getMessage(), _trace(self, record))


class TextLines(logging.Formatter):
    """Text format: `2026-01-02T03:04:05.678Z ERROR lane-0 serving.wire.errors: what happened request_id=...`, a stack trace below it."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        about = "".join(f" {name}={value}" for name, value in _about(record).items())
        line = f"{_time(record)} {record.levelname} {self._process} {record.name}: {record.getMessage()}{about}"
        return _shown(line, _trace(self, record))


class JsonLines(logging.Formatter):
    """JSON format: an object per line with `time`, `level`, `process`, `pid`, `thread`, `logger`, `message`, and where there is one
    `request_id`, `trace_id`, `repeated` (entries of the same cause that were not written), `exception`."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "process": self._process,
            "pid": os.getpid(),
            "thread": record.threadName,
            "logger": record.name,
            "message": _clean(record.getMessage()),
            **_about(record),
        }
        if repeated := getattr(record, "repeated", 0):
            entry["repeated"] = repeated
        if trace := _trace(self, record):
            entry["exception"] = _clean(trace)
        return json_safe(json.dumps(entry, default=str, ensure_ascii=False))


class _LibraryLimit(logging.Filter):
    """Filter that bounds what libraries write; the next entry of the same place tells how many were left out."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._places: dict[tuple[str, int], tuple[float, float, int]] = {}
        """Entries that are left, since when, and how many were left out."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.partition(".")[0] in OURS:
            return True
        place, now_s = (record.pathname, record.lineno), time.monotonic()
        with self._lock:
            left, since_s, out = self._places.get(place, (PLACE_ENTRIES, now_s, 0))
            left = min(PLACE_ENTRIES, left + (now_s - since_s) * PLACE_ENTRIES_PER_S)
            written = left >= 1
            self._places[place] = (left - 1, now_s, 0) if written else (left, now_s, out + 1)
        if written and out:
            record.msg, record.args = f"{record.getMessage()} ({out} like this were left out)", None
        return written


class _Lines(logging.StreamHandler[TextIO]):
    """Handler of a process's log, with its two limits."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self.repeats = RepeatLimit(self._write, OURS)
        self.addFilter(_LibraryLimit())
        self.addFilter(self.repeats)

    def _write(self, record: logging.LogRecord) -> None:
        """Write an entry past the filters."""
        self.acquire()
        try:
            self.emit(record)
        finally:
            self.release()


def write_logs(
    process: str, level: str = "info", form: Literal["text", "json"] = "text", stream: TextIO | None = None
) -> None:
    """Configure the log of this process, for libraries and for exceptions that end a thread or the process too.

    Args:
        process: its name in every entry.
        level: lowest one that is written.
        stream: file to write to; stderr by default.
    """
    handler = _Lines(stream or sys.stderr)
    handler.setFormatter(JsonLines(process) if form == "json" else TextLines(process))
    atexit.register(handler.repeats.flush)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    sys.excepthook = _died
    threading.excepthook = _thread_died


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _about(record: logging.LogRecord) -> dict[str, str]:
    return {name: str(value) for name in ABOUT if (value := getattr(record, name, ""))}


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = [formatter.formatException(record.exc_info)] if record.exc_info and record.exc_info[0] else []
    return "\n".join([*parts, record.stack_info] if record.stack_info else parts)


def _shown(line: str, trace: str) -> str:
    parts = _clean(trace).split("\n") if trace else []
    return "\n".join([visible(_clean(line)), *(f"  {visible(part)}" for part in parts)])


def _clean(text: str) -> str:
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def _died(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    log.critical("the process ends by an exception", exc_info=(kind, error, trace))


def _thread_died(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is not SystemExit and args.exc_value is not None:
        name = args.thread.name if args.thread else "?"
        log.critical(
            "thread %s ends by an exception", name, exc_info=(args.exc_type, args.exc_value, args.exc_traceback)
        )
