"""Several lanes of one traffic log in a folder, as the processes of a machine have it open."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from traffic_samples import IDS, WINDOW_MS

from pipeline.traffic.local.log import LocalTrafficLog
from pipeline.traffic.record import read_head

DAY_MS = 86_400_000
SMALL_FILE_BYTES = 1 << 16


def open_lane(path: Path, lane: int = 3, window_ms: int = WINDOW_MS, late_ms: int = DAY_MS) -> LocalTrafficLog:
    """The log of one process, which writes this lane."""
    return LocalTrafficLog(path, IDS, window_ms, late_ms, lane=lane, file_bytes=SMALL_FILE_BYTES)


def lane_writing(prediction_id: str, lanes: int) -> int:
    """Which of so many lanes writes a prediction in `SpreadLog`."""
    return zlib.crc32(prediction_id.encode()) % lanes


class SpreadLog:
    """A traffic log whose every call goes to another process's log, in turn; a prediction is written by one lane."""

    def __init__(self, path: Path, lanes: int, late_ms: int) -> None:
        self._logs = [open_lane(path, lane, late_ms=late_ms) for lane in range(lanes)]
        self._turns = cycle(self._logs)

    def append_predictions(self, records: Sequence[bytes]) -> None:
        for blob in records:
            self._logs[lane_writing(read_head(blob).prediction_id, len(self._logs))].append_predictions([blob])

    def close(self) -> None:
        for log in self._logs:
            log.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(next(self._turns), name)
