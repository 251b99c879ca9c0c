"""Stores of traffic logs: each test of the log runs once on every store."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from traffic_samples import IDS, WINDOW_MS

from pipeline.redis.address import RedisAddress
from pipeline.traffic.local.log import LocalTrafficLog
from pipeline.traffic.log import TrafficLog
from pipeline.traffic.redis.log import RedisTrafficLog

DAY_MS = 86_400_000
SMALL_FILE_BYTES = 1 << 20
"""So small that a test fills several."""


@dataclass(frozen=True)
class Place:
    """Store of a test: a folder (`local`) or a server (`redis`); can be sent to other processes."""

    kind: str
    where: str

    def open(self, window_ms: int = WINDOW_MS, late_ms: int = DAY_MS) -> TrafficLog:
        if self.kind == "redis":
            return RedisTrafficLog(RedisAddress(self.where), IDS, window_ms, late_ms)
        path = Path(self.where) / "traffic"
        return LocalTrafficLog(path, IDS, window_ms, late_ms, lane=3, file_bytes=SMALL_FILE_BYTES)

    def empty(self) -> None:
        """Delete the content; no process has it open."""
        if self.kind == "redis":
            with RedisAddress(self.where).client(5.0) as client:
                client.flushall()
        else:
            shutil.rmtree(self.where)
            Path(self.where).mkdir()
