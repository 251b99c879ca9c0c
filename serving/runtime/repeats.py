"""Limit of repeated faults in a log: the first entries of a cause are written, the others are counted, one line an interval.

A fault of a store or a disk comes back with every batch and every pass. Its stack trace is written once; then a line a minute
says how often the cause came and what its last entry said, for as long as it lasts. `serving.runtime.logs` has it in the
handler of every process, so that no loop has to count for itself.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, field

__all__ = ["RepeatLimit"]

INTERVAL_S = 60.0
"""Time between two lines that count entries of one cause."""
WRITTEN_ENTRIES = 3
"""Entries of a cause that are written before the others are counted; only the first has a stack trace."""
QUIET_S = 600.0
"""Time without a cause after which it is written anew, with its trace."""
KEPT_ENTRIES = 512
_VARYING = re.compile(r"\b[0-9a-fA-F]{8,}\b|\d+")
"""Parts of a message that differ between entries of one cause: numbers, and ids in hexadecimal."""


@dataclass(slots=True)
class _Episode:
    written: int = 0
    left_out: int = 0
    seen_s: float = 0.0
    last: logging.LogRecord | None = None
    timer: threading.Timer | None = field(default=None, repr=False)


class RepeatLimit(logging.Filter):
    """Filter of warnings and errors. Any thread may use it.

    Args:
        write: writes the entries that count; they do not pass the filter again.
        packages: whose entries it limits.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        write: Callable[[logging.LogRecord], object],
        packages: Collection[str],
        interval_s: float = INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._write, self._packages, self._interval_s, self._clock = write, packages, interval_s, clock
        self._lock = threading.Lock()
        self._episodes: OrderedDict[Hashable, _Episode] = OrderedDict()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether an entry is written now; one that repeats another loses its stack trace."""
        ours = record.name.partition(".")[0] in self._packages
        if not ours or not logging.WARNING <= record.levelno < logging.CRITICAL:
            return True
        cause, now_s = _cause(record), self._clock()
        with self._lock:
            episode = self._episodes.get(cause)
            if episode is None or (now_s - episode.seen_s > QUIET_S and not episode.left_out):
                episode = self._episodes[cause] = _Episode()
                if len(self._episodes) > KEPT_ENTRIES:
                    self._drop_oldest()
            self._episodes.move_to_end(cause)
            episode.seen_s = now_s
            if episode.written < WRITTEN_ENTRIES:
                episode.written += 1
                if episode.written > 1:
                    _without_trace(record)
                return True
            episode.left_out += 1
            episode.last = record
            if episode.timer is None:
                episode.timer = threading.Timer(self._interval_s, self._tell, [episode])
                episode.timer.name, episode.timer.daemon = "log-repeats", True
                episode.timer.start()
        return False

    def flush(self) -> None:
        """Write what is counted and not told yet, as the process ends."""
        with self._lock:
            episodes = list(self._episodes.values())
        for episode in episodes:
            self._tell(episode)

    def _tell(self, episode: _Episode) -> None:
        with self._lock:
            record, count = episode.last, episode.left_out
            if episode.timer is not None:
                episode.timer.cancel()
            episode.last, episode.left_out, episode.timer = None, 0, None
        if record is None:
            return
        _without_trace(record)
        record.msg = f"{record.getMessage()} ({count:,} more like this in {self._interval_s:.0f} s; this is the last)"
        record.args, record.repeated = None, count
        self._write(record)

    def _drop_oldest(self) -> None:
        _, episode = self._episodes.popitem(last=False)
        if episode.timer is not None:
            episode.timer.cancel()


def _cause(record: logging.LogRecord) -> Hashable:
    """What entries of one cause have in common: who wrote it where, the text without its numbers, and the error's place."""
    error = record.exc_info[1] if record.exc_info else None
    place = error.__traceback__ if error is not None else None
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = None if place is None else (place.tb_frame.f_code.co_filename, place.tb_lineno)
    request, text = str(getattr(record, "request_id", "")), record.getMessage()
    text = _VARYING.sub("#", text.replace(request, "#") if request else text)
    return record.name, record.levelno, record.lineno, text, type(error).__name__, where


def _without_trace(record: logging.LogRecord) -> None:
    """Put the error of an entry into its message, in place of the stack trace."""
    error = record.exc_info[1] if record.exc_info else None
    if error is not None:
        record.msg = f"{record.getMessage()}: {type(error).__name__}: {error}"
        record.args = None
    record.exc_info = record.exc_text = record.stack_info = None
